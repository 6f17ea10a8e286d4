//! The emulator's processes: a watchdog shell, Google's launcher script and Java, all in one process group.
//!
//! What must always hold: none of them outlives the [`Process`], nor the test process. The launcher does not `exec`, so killing it would leave Java behind; and a
//! test process that is killed runs no destructor. So the shell holds the read end of a pipe whose only write end is ours: when that end closes,
//! because we dropped it or because the kernel did it for a dead process, the shell kills its whole group, itself included.

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

use super::Probe;

/// Background commands of a shell get /dev/null as standard input, hence the copy of the pipe on descriptor 3. The launcher must not hold it.
const WATCHDOG: &str = r#"
exec 3<&0
(read -r line <&3; kill -KILL 0) &
exec 3<&-
"$@" </dev/null
"#;
/// Small and quick to start: tests keep a few thousand documents.
const JAVA_OPTIONS: &str = "-Xmx256m -XX:+UseSerialGC -XX:TieredStopAtLevel=1";
/// It says this after it has bound its port; before that, somebody else may be answering there.
const BOUND: &str = "is now running";
/// Java's word when the port was taken.
const TAKEN: &str = "BindException";
const POLL: Duration = Duration::from_millis(50);
/// How much of its output is kept, for the message of a start that failed.
const KEPT: usize = 16 * 1024;

pub(super) struct Process {
    watchdog: Child,
    /// The pipe; nothing is ever written to it.
    lifeline: Option<ChildStdin>,
    output: Arc<Mutex<String>>,
    readers: Vec<JoinHandle<()>>,
}

impl Process {
    pub(super) fn spawn(launcher: &Path, port: u16, rules: Option<&Path>) -> Self {
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", WATCHDOG, "firestore-emulator-watchdog"])
            .arg(launcher)
            .args(["start", "--host=127.0.0.1", &format!("--port={port}")]);
        if let Some(rules) = rules {
            command.arg(format!("--rules={}", rules.display()));
        }
        let spawned = command
            .env("JAVA_TOOL_OPTIONS", JAVA_OPTIONS)
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let mut watchdog = match spawned {
            Ok(child) => child,
            Err(error) => panic!("/bin/sh does not start: {error}"),
        };
        let output = Arc::new(Mutex::new(String::new()));
        let mut readers = Vec::new();
        readers.extend(watchdog.stdout.take().map(|pipe| collect(pipe, &output)));
        readers.extend(watchdog.stderr.take().map(|pipe| collect(pipe, &output)));
        Self {
            lifeline: watchdog.stdin.take(),
            watchdog,
            output,
            readers,
        }
    }

    pub(super) fn group(&self) -> u32 {
        self.watchdog.id()
    }

    /// False when the port was taken by somebody else in the meantime.
    pub(super) fn wait_until_ready(&mut self, deadline: Instant, ask: impl Fn() -> Probe) -> bool {
        loop {
            if self.said(BOUND) {
                match ask() {
                    Probe::Ready => return true,
                    Probe::Broken(why) => panic!("the Firestore emulator refuses its rules: {why}"),
                    Probe::Silent => {}
                }
            }
            let ended = match self.watchdog.try_wait() {
                Ok(ended) => ended.is_some(),
                Err(error) => panic!("the emulator's watchdog is lost: {error}"),
            };
            if ended {
                // All it said has been read after this.
                self.end();
                if self.said(TAKEN) {
                    return false;
                }
                panic!("the Firestore emulator ended by itself:\n{}", self.words());
            }
            if Instant::now() > deadline {
                panic!("the Firestore emulator is not ready:\n{}", self.words());
            }
            std::thread::sleep(POLL);
        }
    }

    fn said(&self, words: &str) -> bool {
        self.words().contains(words)
    }

    fn words(&self) -> String {
        self.output
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}

impl Process {
    fn end(&mut self) {
        // Until the pipe closes, the watchdog or its own child is in the group: the id cannot have gone to somebody else.
        if let Some(lifeline) = self.lifeline.take() {
            let _already_gone = kill_process_group(Pid::from_child(&self.watchdog), Signal::KILL);
            drop(lifeline);
        }
        let _status = self.watchdog.wait();
        // The pipes end with the last process that holds them: after this, Java is gone too.
        for reader in self.readers.drain(..) {
            let _ended = reader.join();
        }
    }
}

/// Keeps the first words it says, and reads the rest, so that it never waits for us.
fn collect(mut pipe: impl Read + Send + 'static, output: &Arc<Mutex<String>>) -> JoinHandle<()> {
    let output = Arc::clone(output);
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(read @ 1..) = pipe.read(&mut buffer) {
            let mut kept = output.lock().unwrap_or_else(PoisonError::into_inner);
            if kept.len() < KEPT {
                kept.push_str(&String::from_utf8_lossy(&buffer[..read]));
            }
        }
    })
}
