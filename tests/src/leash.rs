//! Child processes that end with the test process, however that one ends.
//!
//! A shell waits on a pipe whose other end only we hold, and kills its whole group when the pipe closes.

use std::ffi::OsStr;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout_at;

use crate::world::deadline;

/// The shell that waits keeps none of the output open: whoever reads it sees when the program ends.
const WATCHDOG: &str = r#"
exec 3<&0
(read -r line <&3; kill -KILL 0) >/dev/null 2>&1 &
exec 3<&-
exec "$@" </dev/null
"#;

/// A process on the leash, and what it prints, line by line. Dropping it kills it.
pub struct Leashed {
    name: String,
    child: Child,
    lifeline: Option<ChildStdin>,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Leashed {
    /// Starts `program` with `arguments`; its standard error goes to `errors`.
    pub fn spawn<A: AsRef<OsStr>>(
        program: impl AsRef<OsStr>,
        arguments: impl IntoIterator<Item = A>,
        errors: std::fs::File,
    ) -> Self {
        let name = program.as_ref().to_string_lossy().into_owned();
        let mut command = std::process::Command::new("/bin/sh");
        command
            .args(["-c", WATCHDOG, "leash"])
            .arg(program)
            .args(arguments)
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(errors);
        let mut child = Command::from(command).kill_on_drop(true).spawn().unwrap();
        // Waiting for a child closes its standard input, which is the leash.
        let lifeline = child.stdin.take();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self {
            name,
            child,
            lifeline,
            lines,
        }
    }

    /// The next line; `None` when it has closed its standard output. Panics when there is neither in time.
    pub async fn line(&mut self) -> Option<String> {
        timeout_at(deadline(), self.lines.next_line())
            .await
            .unwrap_or_else(|_| panic!("{} said nothing in time", self.name))
            .unwrap()
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Waits until it ends by itself.
    pub async fn ended(&mut self) -> ExitStatus {
        timeout_at(deadline(), self.child.wait())
            .await
            .unwrap_or_else(|_| panic!("{} did not end in time", self.name))
            .unwrap()
    }

    /// SIGKILL, and wait.
    pub async fn kill(&mut self) {
        self.end();
        let status = self.ended().await;
        assert!(status.signal() == Some(9) || status.code().is_some());
    }

    fn end(&self) {
        if let Some(pid) = self
            .child
            .id()
            .and_then(|id| Pid::from_raw(i32::try_from(id).ok()?))
        {
            let _already_gone = kill_process_group(pid, Signal::KILL);
        }
    }
}

impl Drop for Leashed {
    fn drop(&mut self) {
        self.end();
        drop(self.lifeline.take());
    }
}
