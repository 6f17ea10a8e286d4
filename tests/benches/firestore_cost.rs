//! What a rotation costs on Firestore: `cargo bench -p keyturn-tests --bench firestore_cost` (needs the Firestore emulator).
//!
//! A real relay process on the official emulator, asked by real admin sessions, with a quorum of one. Whole rotations are counted by the relay itself
//! (`keyturn_firestore_*_total` of `/metrics`): what Google bills, which is documents read and documents written, and the commits that carry them. What the requester
//! waits for, request → promoted, is counted by a proxy in front of the emulator, without renewals of the lease. What happens by the clock is measured on its own
//! while nobody asks for anything. Counts do not depend on the build profile; reads depend a little on time, since the relay looks for what is due.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    missing_docs
)]

#[path = "../../firestore-schema/tests/firestore/proxy.rs"]
#[allow(dead_code, reason = "it can do more than is needed here")]
mod proxy;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use keyturn_proto::Action;
use keyturn_store::emulator::Emulator;
use keyturn_tests::attack::contains;
use keyturn_tests::measure::{self, Sample, Targets};
use keyturn_tests::world::{deadline, open_and_ack, reason, set};
use keyturn_tests::{World, eventually};
use proxy::Proxy;

const PROGRAM: &str = env!("CARGO_BIN_EXE_keyturn-under-test");
/// The first has no secret to replace, the second no previous one to retire.
const WARM_UP: usize = 2;
const COUNTED: usize = 20;
/// Several renewals of the lease, and two looks for what nobody announced.
const IDLE: Duration = Duration::from_secs(90);

fn main() -> ExitCode {
    if !measure::asked() {
        return ExitCode::SUCCESS;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(count())
}

async fn count() -> ExitCode {
    let emulator = Emulator::shared().await;
    let proxy = Proxy::before(&emulator.endpoint()).await;
    let mut world = World::new(PROGRAM, |config| {
        config["store"] = toml::Table::new().into();
        set(config, "store", "kind", "firestore");
        set(config, "store", "project", emulator.fresh_project());
        set(config, "store", "endpoint", proxy.endpoint());
        set(config, "policy", "quorum", 1);
        for limit in ["client_requests_per_hour", "admin_requests_per_hour"] {
            set(config, "policy", limit, 100_000);
        }
    })
    .await;
    let (relay, mut alice, mut bob, group) = world.with_group().await;
    let store = world.operator().await;
    let mut whole = Rows::default();
    let mut until_promoted = Rows::default();
    for turn in 0..WARM_UP + COUNTED {
        let (before, sent) = (Asked::by(&relay.web).await, proxy.committed().len());
        let reply = world
            .ask(&mut alice, &group, Action::Rotation, reason("benchmark"))
            .await
            .unwrap();
        open_and_ack(&mut bob, &reply.action_id).await;
        let id = &reply.action_id;
        bob.await_done(id, deadline()).await.unwrap();
        eventually("announced", async || {
            let rotation = store.rotation(id).await.unwrap().unwrap();
            rotation.announced_at
        })
        .await;
        let announced = Asked::by(&relay.web).await;
        if turn >= WARM_UP {
            whole.push(&before, &announced);
            let commits = promoting(proxy.committed().split_off(sent));
            until_promoted.commits.push(commits.len() as f64);
            let writes: usize = commits.iter().map(|commit| writes(commit)).sum();
            until_promoted.writes.push(writes as f64);
        }
    }

    // What the last rotation left to do is done.
    let (before, begun) = (Asked::by(&relay.web).await, Instant::now());
    // This is the measurement: time in which nobody asks for anything.
    tokio::time::sleep(IDLE).await;
    let after = Asked::by(&relay.web).await;
    let idle = after.reads_by(&before);
    let hours = begun.elapsed().as_secs_f64() / 3_600.0;

    println!(
        "\n{:<44} {:>9} {:>9} {:>9}",
        format!("{COUNTED} rotations, quorum of one; median, most"),
        "commits",
        "writes",
        "reads"
    );
    until_promoted.print("request → promoted");
    whole.print("request → announced, lease included");
    println!(
        "{:<44} {:>9.0} {:>9.0} {:>9.0}",
        format!("idle relay, per hour (from {} s)", IDLE.as_secs()),
        (after.commits - before.commits) / hours,
        (after.writes - before.writes) / hours,
        (after.reads - before.reads) / hours,
    );
    for (op, reads) in idle {
        println!("{:<64} {:>9.0}", format!("  reads by {op}"), reads / hours);
    }
    alice.close().await;
    bob.close().await;
    tokio::task::spawn_blocking(move || relay.terminate())
        .await
        .unwrap();
    let mut targets = Targets::default();
    targets.at_most(
        "commits, request → promoted, most",
        until_promoted.commits.max(),
        4.0,
    );
    targets.finish()
}

/// Up to the one that promotes, without renewals of the lease.
fn promoting(commits: Vec<bytes::Bytes>) -> Vec<bytes::Bytes> {
    let is_lease = |commit: &bytes::Bytes| contains(commit, b"/documents/leases/");
    let mut commits: Vec<_> = commits.into_iter().filter(|it| !is_lease(it)).collect();
    let promotes = |commit: &bytes::Bytes| contains(commit, b"rotation.promoted");
    let last = commits.iter().position(promotes).unwrap();
    commits.truncate(last + 1);
    commits
}

/// Documents that a `CommitRequest` writes: its fields 2, after the five bytes of gRPC's frame.
fn writes(commit: &[u8]) -> usize {
    let (mut at, mut writes) = (5, 0);
    let number = |at: &mut usize| {
        let mut value = 0;
        for shift in (0..).step_by(7) {
            let byte = commit[*at];
            *at += 1;
            value |= usize::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                break;
            }
        }
        value
    };
    while at < commit.len() {
        let tag = number(&mut at);
        assert_eq!(tag & 7, 2, "every field of a CommitRequest has a length");
        let length = number(&mut at);
        at += length;
        writes += usize::from(tag >> 3 == 2);
    }
    writes
}

/// What a relay has asked of Firestore since it was started.
struct Asked {
    commits: f64,
    writes: f64,
    reads: f64,
    /// By the method of the store that asked.
    by_op: BTreeMap<String, f64>,
}

impl Asked {
    async fn by(web: &str) -> Self {
        let answer = reqwest::get(format!("{web}/metrics")).await.unwrap();
        let text = answer.text().await.unwrap();
        let value = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap_or_else(|| panic!("{name} is not in the metrics"))
                .trim()
                .parse()
                .unwrap()
        };
        let by_op: BTreeMap<String, f64> = text
            .lines()
            .filter_map(|line| {
                let line = line.strip_prefix("keyturn_firestore_reads_total{op=\"")?;
                let (op, count) = line.split_once("\"} ")?;
                Some((op.to_owned(), count.trim().parse().unwrap()))
            })
            .collect();
        assert!(!by_op.is_empty(), "no reads in the metrics");
        Self {
            commits: value("keyturn_firestore_commits_total "),
            writes: value("keyturn_firestore_writes_total "),
            reads: by_op.values().sum(),
            by_op,
        }
    }

    /// What was read since `before`, the most first.
    fn reads_by(&self, before: &Self) -> Vec<(String, f64)> {
        let since = |(op, count): (&String, &f64)| {
            let before = before.by_op.get(op).copied().unwrap_or(0.0);
            (op.clone(), count - before)
        };
        let mut reads: Vec<_> = self.by_op.iter().map(since).collect();
        reads.retain(|(_, count)| *count > 0.0);
        reads.sort_by(|(_, a), (_, b)| b.total_cmp(a));
        reads
    }
}

/// One kind of step, of all rotations.
#[derive(Default)]
struct Rows {
    commits: Sample,
    writes: Sample,
    reads: Sample,
}

impl Rows {
    fn push(&mut self, before: &Asked, after: &Asked) {
        self.commits.push(after.commits - before.commits);
        self.writes.push(after.writes - before.writes);
        self.reads.push(after.reads - before.reads);
    }

    fn print(&self, name: &str) {
        let cell = |sample: &Sample| match sample.is_empty() {
            true => "-".to_owned(),
            false => format!("{:.0}, {:.0}", sample.median(), sample.max()),
        };
        println!(
            "{name:<44} {:>9} {:>9} {:>9}",
            cell(&self.commits),
            cell(&self.writes),
            cell(&self.reads)
        );
    }
}
