//! The broker of the quickstart: `rumqttd` in this process, on a loopback port of its own.
//!
//! It keeps what it carries in memory, writes no file and may log nothing ([`crate::telemetry`]). It asks for no password and has no access rules, so whoever is
//! on this machine can listen in: what crosses it is signed and sealed, as production demands. It cannot be stopped; it ends with the process.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use rumqttd::{Broker, Config, ConnectionSettings, RouterConfig, ServerSettings};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::{QuickstartError, free_port};

/// Ports tried. `rumqttd` does not say which one it got, so one that was free a moment ago is given to it.
const TRIES: usize = 5;
/// How long one may take until it listens.
const PATIENCE: Duration = Duration::from_secs(20);
/// Between two looks.
const POLL: Duration = Duration::from_millis(5);
/// Messages kept for slow readers, bytes; it begins a new segment when one is full and forgets the oldest.
const SEGMENT: usize = 1 << 20;

/// Starts it; returns where it listens, once it does.
///
/// # Errors
/// [`QuickstartError::Io`] without a thread or a port; [`QuickstartError::Step`] when it does not listen in time.
pub async fn start() -> Result<SocketAddr, QuickstartError> {
    let until = Instant::now() + PATIENCE;
    for _ in 0..TRIES {
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
        let thread = std::thread::Builder::new()
            .name("quickstart-broker".to_owned())
            .spawn(move || Broker::new(config(listen)).start().is_ok())?;
        // It ends only when it cannot have the port.
        while !thread.is_finished() && Instant::now() < until {
            if TcpStream::connect(listen).await.is_ok() && !thread.is_finished() {
                return Ok(listen);
            }
            tokio::time::sleep(POLL).await;
        }
    }
    Err(QuickstartError::Step {
        step: "broker",
        cause: "the embedded broker does not listen".to_owned(),
    })
}

fn config(listen: SocketAddr) -> Config {
    let connections = ConnectionSettings {
        connection_timeout_ms: 10_000,
        max_payload_size: 65_536,
        max_inflight_count: 100,
        auth: None,
        external_auth: None,
        dynamic_filters: true,
    };
    let server = ServerSettings {
        name: "quickstart".to_owned(),
        listen,
        tls: None,
        next_connection_delay_ms: 1,
        connections,
    };
    Config {
        router: RouterConfig {
            max_connections: 64,
            max_outgoing_packet_count: 200,
            max_segment_size: SEGMENT,
            max_segment_count: 2,
            ..RouterConfig::default()
        },
        v5: Some(HashMap::from([("1".to_owned(), server)])),
        ..Config::default()
    }
}
