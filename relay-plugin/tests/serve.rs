//! `keyturn serve` from start to signal. One test only: the signal goes to the whole process.
#![allow(clippy::unwrap_used)]

mod world;

use std::thread;

use keyturn::cli::serve;
use rustix::process::{Signal, getpid, kill_process};
use tokio::{
    sync::oneshot,
    time::{Instant, timeout},
};
use world::{Client, Handover, ORDERLY, PATIENCE, config, served};

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_ends_serve_in_order_with_websockets_open() {
    let dir = tempfile::tempdir().unwrap();
    // `serve` tells its port to the log only, so it is chosen here: on a loopback address that no other test uses, so
    // that nobody takes it in between.
    let free = std::net::TcpListener::bind("127.7.7.7:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let (host, port) = (free.ip().to_string(), free.port().to_string());
    let config = config(
        dir.path(),
        &[
            ("KEYTURN_RELAY__HOST", &host),
            ("KEYTURN_RELAY__PORT", &port),
        ],
    );
    let (ports, handed_over) = oneshot::channel();
    let factory = Handover {
        ports,
        served: Some(served()),
        fails: false,
    };
    let server = thread::spawn(move || serve::run(config, Box::new(factory)));
    let ports = timeout(PATIENCE, handed_over).await.unwrap().unwrap();
    timeout(PATIENCE, ports.relay.attached()).await.unwrap();
    let mut client = Client::connect(&format!("ws://{free}")).await;

    let signalled = Instant::now();
    kill_process(getpid(), Signal::TERM).unwrap();
    assert_eq!(client.close_frame().await, Some(1001));
    assert!(ports.stopping.is_cancelled());
    let ended = tokio::task::spawn_blocking(move || server.join().unwrap())
        .await
        .unwrap();
    assert!(ended.is_ok(), "{:?}", ended.err());
    assert!(
        signalled.elapsed() < ORDERLY,
        "took {:?}",
        signalled.elapsed()
    );
}
