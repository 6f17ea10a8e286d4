//! Ten thousand devices whose secret_ids die at once: `cargo bench -p keyturn-tests --bench device_storm`.
//!
//! The product's relay as a process of its own, with the settings it ships with, behind a real Mosquitto; the devices share a handful of connections. In turns with single
//! devices the broker's own round trip is measured, so that the two can be compared. Then the storms: with the embedded issuer, and with a Vault that takes 5 ms for a
//! call and counts how many it is asked at once.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    missing_docs
)]

mod mosquitto;

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use keyturn::assembly::Assembly;
use keyturn::devices::flow::AT_ONCE;
use keyturn_tests::fleet::{self, Echo, Line, Story};
use keyturn_tests::measure::{self, Disk, Sample, Targets, forget_peak, memory, processor_time};
use keyturn_tests::vault::Api;
use keyturn_tests::{Relay, World, eventually, storm};
use mosquitto::Mosquitto;
use serde_json::json;

const DEVICES: usize = 10_000;
/// Connections that the devices share.
const LINES: usize = 8;
/// Storms with the embedded issuer; in all but the first one every device has a secret_id, which is destroyed.
const STORMS: usize = 3;
/// Devices that ask alone, each once, in turns with a round trip of the broker.
const SINGLES: usize = 400;
/// How long a started relay is left alone before its memory is looked at.
const IDLE: Duration = Duration::from_secs(2);
/// What the Vault takes for a secret_id, and how many calls at once it is to bear.
const VAULT: (Duration, usize) = (Duration::from_millis(5), 16);

fn main() -> ExitCode {
    // The relay is this program as well.
    if std::env::args().nth(1).as_deref() == Some("serve") {
        return keyturn::cli::main(|| Box::new(Assembly));
    }
    if !measure::asked() {
        return ExitCode::SUCCESS;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(measure_all())
}

async fn measure_all() -> ExitCode {
    let broker = Mosquitto::start();
    let embedded = embedded(broker.address).await;
    let vault = vault(broker.address).await;

    let mut targets = Targets::default();
    targets.at_most(
        "single device, p50 ÷ the broker's own round trip, p50",
        embedded.single.median() / embedded.round_trip.median(),
        3.0,
    );
    targets.at_least(
        "devices/s, embedded issuer, median of storms",
        embedded.rate.median(),
        1_000.0,
    );
    targets.at_most("memory over idle, MiB resident", embedded.memory, 100.0);
    targets.at_most("Vault: memory over idle, MiB resident", vault.memory, 100.0);
    targets.at_most(
        "Vault: most calls at once",
        vault.most_at_once as f64,
        VAULT.1 as f64,
    );
    targets.at_most(
        "a device was overtaken by so many of its connection",
        embedded.overtaken.max(vault.overtaken) as f64,
        (AT_ONCE + VAULT.1) as f64,
    );
    targets.finish()
}

/// A relay with its devices allowed and connected.
struct Site {
    world: World,
    relay: Relay,
    lines: Vec<Line>,
    /// Resident, MiB, before anybody asked.
    idle: f64,
}

impl Site {
    async fn new(broker: SocketAddr, issuer: impl FnOnce(&mut toml::Table)) -> Self {
        let program = std::env::current_exe().unwrap();
        let world = World::new(program.to_str().unwrap(), |config| {
            config["log"]["level"] = "info".into();
            config["log"]["format"] = "json".into();
            storm::serve_devices(config, broker);
            issuer(config);
        })
        .await;
        world.allow_devices(0..DEVICES + SINGLES).await;
        let mut lines = Vec::new();
        for n in 0..LINES {
            let devices = (n..DEVICES).step_by(LINES);
            lines.push(Line::open(&format!("line-{n}"), broker, devices).await);
        }
        let relay = world.relay().await;
        eventually("the relay hears the devices", async || {
            world
                .log()
                .contains("subscribed to the devices' messages")
                .then_some(())
        })
        .await;
        tokio::time::sleep(IDLE).await;
        let idle = memory(relay.pid()).resident;
        forget_peak(relay.pid());
        Self {
            world,
            relay,
            lines,
            idle,
        }
    }

    /// One storm, told as a line; devices per second, and the most places anybody lost.
    async fn storm(&mut self, what: &str, attempts: u64) -> (f64, usize) {
        let (begun, busy) = (Instant::now(), processor_time(self.relay.pid()));
        let told = fleet::storm(&mut self.lines).await;
        fleet::everybody_once(&told);
        let stories = || told.iter().flatten();
        let took: Sample = stories().map(|story| milliseconds(story.took)).collect();
        let rate = DEVICES as f64 / (took.max() / 1e3);
        let retries: usize = stories().map(|story: &Story| story.retries).sum();
        let docs = self.world.settled_devices(0..DEVICES).await;
        let settled = begun.elapsed();
        let busy = processor_time(self.relay.pid()).saturating_sub(busy);
        let exactly = docs.iter().all(|doc| doc.attempts == attempts);
        assert!(exactly || retries > 0, "somebody was issued to twice");
        let overtaken = fleet::most_overtaken(&told);
        println!(
            "{what:<28} {rate:>9.0} {:>9.0} {:>9.0} {:>9.0} {:>9.1} {retries:>8} {overtaken:>9} {:>9.0}",
            took.median(),
            took.percentile(99.0),
            took.max(),
            settled.as_secs_f64(),
            busy.as_secs_f64() * 1e6 / DEVICES as f64,
        );
        (rate, overtaken)
    }

    /// What it has used over idle at most, MiB resident.
    fn over_idle(&self) -> f64 {
        memory(self.relay.pid()).peak - self.idle
    }
}

fn heading() {
    println!(
        "\n{:<28} {:>9} {:>9} {:>9} {:>9} {:>9} {:>8} {:>9} {:>9}",
        format!("{DEVICES} devices at once"),
        "devices/s",
        "p50 ms",
        "p99 ms",
        "last ms",
        "settled s",
        "retries",
        "overtaken",
        "µs CPU"
    );
}

struct Embedded {
    round_trip: Sample,
    single: Sample,
    rate: Sample,
    memory: f64,
    overtaken: usize,
}

async fn embedded(broker: SocketAddr) -> Embedded {
    let mut site = Site::new(broker, storm::embedded_issuer).await;
    let (round_trip, single) = singles(broker, &site.world).await;
    heading();
    let (mut rate, mut overtaken) = (Sample::default(), 0);
    for n in 1..=STORMS {
        let (found, lost) = site.storm(&format!("embedded issuer, {n}"), n as u64).await;
        rate.push(found);
        overtaken = overtaken.max(lost);
    }
    println!(
        "memory over idle ({:.1} MiB): {:.1} MiB",
        site.idle,
        site.over_idle()
    );
    let memory = site.over_idle();
    site.relay.terminate();
    Embedded {
        round_trip,
        single,
        rate,
        memory,
        overtaken,
    }
}

/// The broker's own round trip, and the time from one device's request to its secret_id.
async fn singles(broker: SocketAddr, world: &World) -> (Sample, Sample) {
    let echo = Echo::start(broker).await;
    let mut line = Line::open("single", broker, DEVICES..DEVICES + SINGLES).await;
    line.listen_to(&echo).await;
    let (mut round_trip, mut single) = (Sample::default(), Sample::default());
    let mut disk = Disk::new();
    let store = world.store();
    for place in 0..SINGLES {
        round_trip.push(milliseconds(line.round_trip(&echo).await));
        single.push(milliseconds(line.single(place).await));
        // Behind it the report is on its way, too. The next device asks when nobody else is being served.
        line.round_trip(&echo).await;
        storm::settled_device(&store, DEVICES + place).await;
        disk.sync();
    }
    println!(
        "{:<58} {:>9} {:>9}",
        format!("milliseconds, {SINGLES} times in turns"),
        "p50",
        "p99"
    );
    for (what, sample) in [
        ("the broker's own round trip, there and back", &round_trip),
        ("one device: asked → has its secret_id", &single),
        ("one durable write of 4 KiB", &disk.syncs),
    ] {
        println!(
            "{what:<58} {:>9.2} {:>9.2}",
            sample.median(),
            sample.percentile(99.0)
        );
    }
    (round_trip, single)
}

struct Vault {
    most_at_once: usize,
    memory: f64,
    overtaken: usize,
}

async fn vault(broker: SocketAddr) -> Vault {
    let api = Api::start().await;
    let stand = api.operator().stand(json!({})).await;
    let token = stand.least_privileged_token(json!({ "ttl": "1h" })).await;
    let mut site = Site::new(broker, |config| {
        storm::vault_issuer(config, &stand, &api.address(), &token, VAULT.1);
    })
    .await;
    api.fault(storm::slow(VAULT.0));
    api.forget_seen();
    let (_, overtaken) = site
        .storm(&format!("Vault, {} ms a call", VAULT.0.as_millis()), 1)
        .await;
    let path = stand.path(&format!("role/{}/secret-id", storm::ROLE));
    let issues = api
        .seen()
        .iter()
        .filter(|it| it.method == "POST" && it.path == path)
        .count();
    assert_eq!(issues, DEVICES, "Vault was asked for another number");
    println!(
        "memory over idle ({:.1} MiB): {:.1} MiB",
        site.idle,
        site.over_idle()
    );
    let memory = site.over_idle();
    site.relay.terminate();
    Vault {
        most_at_once: api.most_at_once(),
        memory,
        overtaken,
    }
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
