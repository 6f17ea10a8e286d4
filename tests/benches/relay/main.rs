//! What the extension costs the relay that it lives in: `cargo bench -p keyturn-tests --bench relay`.
//!
//! Two relay processes, one with the extension and one without, get the same events in turns: notes, which do not concern the extension, and 445
//! events of groups that it does not serve, which it has to look at. Then the idle memory of both, freshly started.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    missing_docs
)]

mod bare;
mod load;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use keyturn::assembly::Assembly;
use keyturn_tests::measure::{self, Memory, Sample, Targets, memory, processor_time};
use keyturn_tests::{Relay, World};
use load::Connections;

/// Pairs of rounds; each pair gets events of its own.
const PAIRS: usize = 16;
/// Events in one round: about a second, so that the relay's write batch of 100 ms does not decide the ratio.
const EVENTS: usize = 24_000;
/// Starts per relay for the idle memory.
const STARTS: usize = 3;
/// How long a started relay is left alone before its memory is looked at: key packages are published, keys fetched, writes done.
const IDLE: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    // The relays are this program as well; which one, the configuration's name says.
    if args.next().as_deref() == Some("serve") {
        let config = args.nth(1).unwrap();
        return match Path::new(&config).file_name() {
            Some(name) if name == bare::CONFIG => bare::serve(Path::new(&config)),
            _ => keyturn::cli::main(|| Box::new(Assembly)),
        };
    }
    if !measure::asked() {
        return ExitCode::SUCCESS;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(compare())
}

/// The two relays: same settings, files of their own.
struct Pair {
    world: World,
    program: PathBuf,
}

impl Pair {
    async fn new() -> Self {
        let program = std::env::current_exe().unwrap();
        let world = World::new(program.to_str().unwrap(), |config| {
            config["log"]["level"] = "info".into();
            config["log"]["format"] = "json".into();
        })
        .await;
        let text = std::fs::read_to_string(world.layout.config()).unwrap();
        let mut config: toml::Table = text.parse().unwrap();
        config["relay"]["data_dir"] = "data/bare".into();
        config["relay"]["port"] = 0.into();
        std::fs::write(world.dir.path().join(bare::CONFIG), config.to_string()).unwrap();
        Self { world, program }
    }

    async fn with(&self) -> Relay {
        self.world.relay().await
    }

    async fn without(&self) -> Relay {
        let program = self.program.clone();
        let (config, log) = (
            self.world.dir.path().join(bare::CONFIG),
            self.world.dir.path().join("bare.log"),
        );
        let started =
            tokio::task::spawn_blocking(move || Relay::start(&program, &config, &log, None));
        started.await.unwrap().unwrap()
    }
}

async fn compare() -> ExitCode {
    let pair = Pair::new().await;
    let (idle_with, idle_without) = idle(&pair).await;
    let (rate, cost) = throughput(&pair).await;

    let mut targets = Targets::default();
    targets.at_least(
        "events/s with the extension ÷ without, median of pairs",
        rate,
        0.98,
    );
    println!(
        "{:<58} {cost:>9.3}",
        "processor time per event, with ÷ without, median of pairs"
    );
    targets.at_most(
        "idle memory, with − without, MiB resident",
        idle_with - idle_without,
        20.0,
    );
    targets.finish()
}

/// Median resident memory with and without.
async fn idle(pair: &Pair) -> (f64, f64) {
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for _ in 0..STARTS {
        with.push(left_alone(pair.with().await).await);
        without.push(left_alone(pair.without().await).await);
    }
    println!(
        "{:<58} {:>9} {:>9}",
        format!("idle memory, MiB, median of {STARTS} starts"),
        "resident",
        "anonymous"
    );
    let medians = [("with the extension", with), ("without", without)].map(|(name, seen)| {
        let resident: Sample = seen.iter().map(|memory| memory.resident).collect();
        let anonymous: Sample = seen.iter().map(|memory| memory.anonymous).collect();
        println!(
            "  {name:<56} {:>9.1} {:>9.1}",
            resident.median(),
            anonymous.median()
        );
        resident.median()
    });
    medians.into()
}

async fn left_alone(relay: Relay) -> Memory {
    tokio::time::sleep(IDLE).await;
    let seen = memory(relay.pid());
    relay.terminate();
    seen
}

/// Median ratios of the pairs: events per second, and processor time per event.
async fn throughput(pair: &Pair) -> (f64, f64) {
    let relays = [pair.with().await, pair.without().await];
    let mut connections = Vec::new();
    for relay in &relays {
        connections.push(Connections::open(&relay.url).await);
    }
    let mut rates = [Sample::default(), Sample::default()];
    let mut costs = [Sample::default(), Sample::default()];
    // The first pair warms both up and is not counted.
    for round in 0..=PAIRS {
        let events = tokio::task::spawn_blocking(|| load::events(EVENTS))
            .await
            .unwrap();
        for turn in 0..2 {
            let which = (round + turn) % 2;
            let before = processor_time(relays[which].pid());
            let took = connections[which].send(&events).await;
            let spent = processor_time(relays[which].pid()) - before;
            if round > 0 {
                rates[which].push(EVENTS as f64 / took.as_secs_f64());
                costs[which].push(spent.as_secs_f64() * 1e6 / EVENTS as f64);
            }
        }
    }
    println!(
        "\n{:<58} {:>9} {:>9} {:>9}",
        format!("{PAIRS} pairs of {EVENTS} events"),
        "median/s",
        "best/s",
        "cpu µs"
    );
    for (nth, name) in ["with the extension", "without"].into_iter().enumerate() {
        println!(
            "  {name:<56} {:>9.0} {:>9.0} {:>9.1}",
            rates[nth].median(),
            rates[nth].max(),
            costs[nth].median()
        );
    }
    let [with, without] = relays;
    with.terminate();
    without.terminate();
    let rate = rates[0].ratio(&rates[1]);
    println!(
        "  {:<56} {:>9.3} {:>9.3}",
        "events/s of a pair, with ÷ without: quartiles",
        rate.percentile(25.0),
        rate.percentile(75.0)
    );
    (rate.median(), costs[0].ratio(&costs[1]).median())
}
