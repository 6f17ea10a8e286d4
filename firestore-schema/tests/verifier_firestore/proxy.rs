//! A TCP proxy on loopback that can freeze what is open, cut everything, and be pointed elsewhere.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// What becomes of the connections.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Weather {
    Fair,
    /// Connections before this one stand still; nobody is told.
    FrozenBefore(u64),
    /// Every connection ends, and none is let through.
    Cut,
}

pub struct Proxy {
    pub address: SocketAddr,
    weather: watch::Sender<Weather>,
    target: Arc<Mutex<SocketAddr>>,
    next: Arc<Mutex<u64>>,
    task: JoinHandle<()>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Proxy {
    pub async fn before(endpoint: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let target = Arc::new(Mutex::new(at(endpoint)));
        let (weather, seen) = watch::channel(Weather::Fair);
        let next = Arc::new(Mutex::new(0));
        let task = tokio::spawn({
            let (target, next) = (Arc::clone(&target), Arc::clone(&next));
            async move {
                while let Ok((inbound, _)) = listener.accept().await {
                    let number = {
                        let mut next = next.lock().unwrap();
                        *next += 1;
                        *next
                    };
                    let target = *target.lock().unwrap();
                    tokio::spawn(carry(inbound, target, number, seen.clone()));
                }
            }
        });
        Self {
            address,
            weather,
            target,
            next,
            task,
        }
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What is open stands still; new connections pass.
    pub fn freeze_open(&self) {
        let next = *self.next.lock().unwrap();
        self.weather.send_replace(Weather::FrozenBefore(next + 1));
    }

    /// Nothing passes any more, and nobody is told.
    pub fn freeze_all(&self) {
        self.weather.send_replace(Weather::FrozenBefore(u64::MAX));
    }

    pub fn cut(&self) {
        self.weather.send_replace(Weather::Cut);
    }

    pub fn clear_up(&self) {
        self.weather.send_replace(Weather::Fair);
    }

    pub fn point_at(&self, endpoint: &str) {
        *self.target.lock().unwrap() = at(endpoint);
    }
}

fn at(endpoint: &str) -> SocketAddr {
    endpoint.trim_start_matches("http://").parse().unwrap()
}

async fn carry(
    inbound: TcpStream,
    target: SocketAddr,
    number: u64,
    mut weather: watch::Receiver<Weather>,
) {
    if *weather.borrow() == Weather::Cut {
        return;
    }
    let Ok(outbound) = TcpStream::connect(target).await else {
        return;
    };
    let (from_client, to_client) = inbound.into_split();
    let (from_server, to_server) = outbound.into_split();
    let fair = weather.clone();
    tokio::select! {
        () = copy(from_client, to_server, number, fair.clone()) => {}
        () = copy(from_server, to_client, number, fair) => {}
        _ = weather.wait_for(|now| *now == Weather::Cut) => {}
    }
}

async fn copy(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    number: u64,
    mut weather: watch::Receiver<Weather>,
) {
    let mut buffer = vec![0u8; 64 * 1024];
    loop {
        let read = match from.read(&mut buffer).await {
            Ok(read @ 1..) => read,
            Ok(0) | Err(_) => return,
        };
        let passes = |now: &Weather| !matches!(now, Weather::FrozenBefore(n) if number < *n);
        if weather.wait_for(passes).await.is_err() || to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}
