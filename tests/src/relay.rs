//! The relay as a child process: started, killed, ended in order, started again over the same files.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use keyturn::crash::Point;
use rustix::process::{Pid, Signal, kill_process};

use crate::world::PATIENCE;

/// A running relay. Dropping it kills it.
pub struct Relay {
    child: Child,
    /// `ws://…`
    pub url: String,
    /// `http://…`
    pub web: String,
    log: PathBuf,
    orders: ChildStdin,
    answers: mpsc::Receiver<String>,
}

impl Relay {
    /// Starts `program serve` and waits until it takes requests. `crash_at` arms a crash point: then the process may die before it is ready, which
    /// is an `Err` with its exit status.
    pub fn start(
        program: &Path,
        config: &Path,
        log: &Path,
        crash_at: Option<Point>,
    ) -> Result<Self, ExitStatus> {
        let stderr = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .unwrap();
        let mut command = Command::new(program);
        command
            .args(["serve", "--config"])
            .arg(config)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(stderr);
        command.env_remove("KEYTURN_TEST_CRASH_AT");
        if let Some(point) = crash_at {
            command.env("KEYTURN_TEST_CRASH_AT", point.name());
        }
        let mut child = command.spawn().unwrap();
        let stdout = child.stdout.take().unwrap();
        let orders = child.stdin.take().unwrap();
        let (lines, line) = mpsc::channel();
        std::thread::spawn(move || {
            for text in BufReader::new(stdout).lines().map_while(Result::ok) {
                if lines.send(text).is_err() {
                    break;
                }
            }
        });
        match line.recv_timeout(PATIENCE) {
            Ok(text) => {
                let addresses: serde_json::Value = serde_json::from_str(&text).unwrap();
                let address = |name: &str| addresses[name].as_str().unwrap().to_owned();
                Ok(Self {
                    child,
                    url: address("relay"),
                    web: address("web"),
                    log: log.to_owned(),
                    orders,
                    answers: line,
                })
            }
            // Its standard output closed: it has ended.
            Err(mpsc::RecvTimeoutError::Disconnected) => Err(child.wait().unwrap()),
            Err(mpsc::RecvTimeoutError::Timeout) => {
                child.kill().unwrap();
                panic!("the relay was not ready in time:\n{}", tail(log))
            }
        }
    }

    /// Arms a crash point in the running process.
    pub fn arm(&mut self, point: Point) {
        self.order(point.name());
    }

    /// Lets the process stop itself (SIGSTOP) when it next passes `point`, until [`Self::go_on`].
    pub fn arm_stop(&mut self, point: Point) {
        self.order(&format!("stop {}", point.name()));
    }

    fn order(&mut self, order: &str) {
        writeln!(self.orders, "{order}").unwrap();
        let answer = self.answers.recv_timeout(PATIENCE).unwrap();
        assert_eq!(answer, "armed");
    }

    /// SIGKILL, now.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM; how long it took to end. Panics unless it ended with status 0.
    pub fn terminate(mut self) -> Duration {
        let begun = Instant::now();
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        let status = self.wait_within(PATIENCE);
        assert!(
            status.success(),
            "ended with {status}:\n{}",
            tail(&self.log)
        );
        begun.elapsed()
    }

    /// Waits until the armed crash point has killed it.
    pub fn wait_for_crash(mut self) {
        let status = self.wait_within(PATIENCE);
        assert_eq!(
            status.signal(),
            Some(9),
            "it ended with {status} instead of dying at its crash point:\n{}",
            tail(&self.log)
        );
    }

    /// Whether its armed crash point has killed it. Panics if it has ended in another way.
    pub fn has_crashed(&mut self) -> bool {
        let ended = self.child.try_wait().unwrap();
        ended.is_some_and(|status| {
            assert_eq!(status.signal(), Some(9), "{status}:\n{}", tail(&self.log));
            true
        })
    }

    /// SIGSTOP: it does nothing until [`Self::go_on`], and notices nothing.
    pub fn pause(&self) {
        kill_process(Pid::from_child(&self.child), Signal::STOP).unwrap();
    }

    /// Whether it was stopped and has not been told to go on.
    pub fn is_stopped(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
        // The name before it is in brackets, and may hold anything.
        let state = stat.rsplit_once(") ").map(|(_, rest)| &rest[..1]);
        state == Some("T")
    }

    /// SIGCONT.
    pub fn go_on(&self) {
        kill_process(Pid::from_child(&self.child), Signal::CONT).unwrap();
    }

    /// Whether it is still running.
    pub fn is_alive(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    fn wait_within(&mut self, limit: Duration) -> ExitStatus {
        let until = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(
                Instant::now() < until,
                "the relay did not end within {limit:?}:\n{}",
                tail(&self.log)
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // What it said belongs to the failure; its files go with the world.
            eprintln!("the log of {}:\n{}", self.url, tail(&self.log));
        }
        // Both fail only if it has ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(60)..].join("\n")
}
