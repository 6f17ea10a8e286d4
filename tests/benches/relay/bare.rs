//! The relay without the extension: the same host, started the way `keyturn serve` does, and nothing in it.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use keyturn::config::{Config, Environment};
use keyturn::host::Host;
use keyturn::{hardening, telemetry};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;

/// The name of its configuration file.
pub const CONFIG: &str = "bare.toml";

/// Runs until SIGTERM.
pub fn serve(config: &Path) -> ExitCode {
    hardening::close_off_memory().unwrap();
    let config = Config::load(config, Environment::from_process()).unwrap();
    telemetry::init(&config.log).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut terminated = signal(SignalKind::terminate()).unwrap();
        let host = Host::start(&config.relay, Ok).await.unwrap();
        let url = format!("ws://{}", host.address());
        let line = serde_json::json!({ "relay": url, "web": "" });
        println!("{line}");
        terminated.recv().await;
        host.shutdown(Instant::now() + Duration::from_secs(4)).await;
    });
    ExitCode::SUCCESS
}
