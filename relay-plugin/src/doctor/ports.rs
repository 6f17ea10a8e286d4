//! The two addresses to listen on: free, or held by a running Keyturn, which is then asked how it is.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    time::Duration,
};

use serde_json::Value;

use super::{Report, Subject};

const CHECK: &str = "ports";
/// A local listener that does not answer by then hangs.
const PATIENCE: Duration = Duration::from_secs(3);

/// Whether a Keyturn runs on this configuration's addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Running {
    /// It answers.
    Yes,
    /// Nothing of ours listens.
    No,
}

/// What stands at an address.
enum Held {
    Free,
    /// Somebody listens there.
    Taken,
    /// It cannot be listened on at all.
    Impossible(io::Error),
}

pub(super) async fn check(subject: Subject<'_>, report: &mut Report) -> Running {
    let web = subject.config.web.listen;
    let relay = SocketAddr::new(subject.config.relay.host, subject.config.relay.port);
    if web == relay && web.port() != 0 {
        report.fail(
            CHECK,
            format!("web.listen and the relay have the same address {web}"),
            "give web.listen another port",
        );
        return Running::No;
    }
    let running = check_web(web, report).await;
    check_relay(relay, running, report).await;
    running
}

async fn check_web(address: SocketAddr, report: &mut Report) -> Running {
    match held(address) {
        Held::Free => {
            report.ok(
                CHECK,
                format!("web.listen {address} is free: keyturn is not running"),
            );
            Running::No
        }
        Held::Impossible(error) => {
            impossible("web.listen", address, &error, report);
            Running::No
        }
        Held::Taken => match readiness(address).await {
            Some(readiness) => {
                tell_readiness(address, &readiness, report);
                Running::Yes
            }
            None => {
                taken("web.listen", address, report);
                Running::No
            }
        },
    }
}

fn tell_readiness(address: SocketAddr, readiness: &Value, report: &mut Report) {
    let checks = readiness["checks"].as_object().into_iter().flatten();
    let ailing = checks
        .filter(|(_, state)| state["state"] != "ready")
        .map(|(name, state)| {
            let reason = state["reason"].as_str().unwrap_or("no reason given");
            format!("{name}: {reason}")
        })
        .collect::<Vec<_>>()
        .join("; ");
    let hint = "see the other findings, and the log of the service (journalctl -u keyturn)";
    if readiness["ready"] != true {
        let what = format!("the running keyturn at {address} is not ready ({ailing})");
        report.fail(CHECK, what, hint);
    } else if ailing.is_empty() {
        report.ok(CHECK, format!("a running keyturn at {address} is ready"));
    } else {
        let what = format!("a running keyturn at {address} is ready, but not for all ({ailing})");
        report.warn(CHECK, what, hint);
    }
}

async fn check_relay(address: SocketAddr, running: Running, report: &mut Report) {
    match (held(address), running) {
        (Held::Free, Running::No) => {
            report.ok(CHECK, format!("relay.host and relay.port {address} are free"));
        }
        (Held::Free, Running::Yes) if address.port() == 0 => {}
        (Held::Free, Running::Yes) => report.warn(
            CHECK,
            format!("a keyturn is running, and nothing listens at {address}"),
            "right if the extension runs in a relay of your own; else restart the service: systemctl restart keyturn",
        ),
        (Held::Impossible(error), _) => {
            impossible("relay.host, relay.port", address, &error, report);
        }
        (Held::Taken, Running::Yes) => match software(address).await.as_deref() {
            Some("keyturn") => report.ok(CHECK, format!("the relay answers at {address}")),
            Some(_) => report.ok(CHECK, format!("a relay answers at {address}")),
            None => report.fail(
                CHECK,
                format!("what listens at {address} does not answer as a relay"),
                "restart the service: systemctl restart keyturn",
            ),
        },
        (Held::Taken, Running::No) => taken("relay.host, relay.port", address, report),
    }
}

fn held(address: SocketAddr) -> Held {
    match TcpListener::bind(address) {
        Ok(_) => Held::Free,
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Held::Taken,
        Err(error) => Held::Impossible(error),
    }
}

fn taken(keys: &str, address: SocketAddr, report: &mut Report) {
    report.fail(
        CHECK,
        format!("{keys}: {address} is taken, by something that is no keyturn"),
        format!(
            "see who it is (ss -ltnp 'sport = :{}'), and stop it or choose another port",
            address.port()
        ),
    );
}

fn impossible(keys: &str, address: SocketAddr, error: &io::Error, report: &mut Report) {
    let mend = match error.kind() {
        io::ErrorKind::PermissionDenied => "choose a port above 1023, behind the proxy",
        _ => "choose an address that this machine has (ip address)",
    };
    report.fail(
        CHECK,
        format!("{keys}: cannot listen on {address}: {error}"),
        mend,
    );
}

/// Where a listener on `address` can be reached from here.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// What `/readyz` says, if this is one of ours.
async fn readiness(address: SocketAddr) -> Option<Value> {
    let answer = get(address, "/readyz", "application/json").await?;
    answer.get("ready")?.as_bool()?;
    Some(answer)
}

/// The software that a relay calls itself (NIP-11).
async fn software(address: SocketAddr) -> Option<String> {
    let answer = get(address, "/", "application/nostr+json").await?;
    answer.get("supported_nips")?;
    let software = answer.get("software").and_then(Value::as_str);
    Some(software.unwrap_or_default().to_owned())
}

async fn get(address: SocketAddr, path: &str, accept: &str) -> Option<Value> {
    let client = reqwest::Client::builder()
        .timeout(PATIENCE)
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .ok()?;
    let url = format!("http://{}{path}", reachable(address));
    let answer = client
        .get(url)
        .header(reqwest::header::ACCEPT, accept)
        .send()
        .await
        .ok()?;
    answer.json().await.ok()
}
