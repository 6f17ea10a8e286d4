//! The official Cloud Firestore emulator for tests (feature `emulator`): one per test process, in a process group that cannot outlive it.
//!
//! What must always hold: it listens on loopback, on a port nobody chose; it answers when it is handed out; it dies with the value, and with the test process
//! however that one ends. Whoever lacks it is told how to install it: nothing is skipped.
//!
//! Tests share one emulator ([`Emulator::shared`]) and keep apart by project ([`Emulator::fresh_project`]). It enforces security rules for everybody but
//! `Bearer owner`; it enforces no composite index, and nothing of IAM.

mod probe;
mod process;
mod sdk;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::OnceCell;

use probe::Probe;
use process::Process;

/// A JVM on a busy machine takes its time; one that takes longer than this is stuck.
const START_DEADLINE: Duration = Duration::from_secs(90);
/// How many ports are tried: each was free when it was picked, and may be taken before the emulator binds it.
const PORTS: u32 = 5;

/// A running emulator; dropping it kills it.
pub struct Emulator {
    process: Process,
    port: u16,
}

impl Emulator {
    /// The one emulator of this test process, without rules, started by the first who asks.
    ///
    /// # Panics
    /// As [`Emulator::start`].
    pub async fn shared() -> &'static Self {
        // Never dropped: statics are not. The process group notices the end of this process by itself.
        static SHARED: OnceCell<Emulator> = OnceCell::const_new();
        SHARED.get_or_init(|| Self::start(None)).await
    }

    /// Starts an emulator of one's own; with `rules`, everybody but `owner` is judged by that file.
    ///
    /// # Panics
    /// When the emulator or Java is not installed (naming the line that installs it), does not start, or does not understand the rules.
    pub async fn start(rules: Option<&Path>) -> Self {
        let rules = rules.map(Path::to_owned);
        match tokio::task::spawn_blocking(move || Self::launch(rules)).await {
            Ok(emulator) => emulator,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(error) => panic!("the emulator was not started: {error}"),
            },
        }
    }

    /// Where it listens: `http://127.0.0.1:PORT`, for gRPC and REST alike.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// A project id that no other test of this process has.
    #[must_use]
    pub fn fresh_project(&self) -> String {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        format!("keyturn-test-{}", NEXT.fetch_add(1, Ordering::Relaxed))
    }

    /// Id of the process group that everything of this emulator runs in.
    #[must_use]
    pub fn process_group(&self) -> u32 {
        self.process.group()
    }

    fn launch(rules: Option<PathBuf>) -> Self {
        let launcher = sdk::launcher();
        let deadline = Instant::now() + START_DEADLINE;
        for _ in 0..PORTS {
            let port = free_port();
            let mut process = Process::spawn(&launcher, port, rules.as_deref());
            if process.wait_until_ready(deadline, || probe::ask(port)) {
                return Self { process, port };
            }
        }
        panic!("the Firestore emulator found {PORTS} free ports taken before it could bind them");
    }
}

fn free_port() -> u16 {
    let picked = std::net::TcpListener::bind(("127.0.0.1", 0)).and_then(|it| it.local_addr());
    match picked {
        Ok(address) => address.port(),
        Err(error) => panic!("no port on 127.0.0.1: {error}"),
    }
}
