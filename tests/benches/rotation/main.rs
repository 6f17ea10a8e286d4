//! What a rotation costs and how long it takes: `cargo bench -p keyturn-tests --bench rotation`.
//!
//! Three sites are measured in turns, rotation by rotation: 2 admins and 10 clients; 100 admins; 10,000 clients. Each is a relay process of its own
//! on embedded defaults (SQLite store, local MAC key, files), asked by real admin sessions over websockets; only the clock at the core's ports is
//! added ([`Stamped`]). Every rotation goes its whole way: request, notify, proven ack, promotion.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    missing_docs
)]

mod site;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use keyturn_tests::measure::{self, Disk, Sample, Stamped, Targets};
use site::{Rotated, Site};

/// Clients that are rotated, in turns; each keeps an old secret in grace from its second rotation on.
const ROTATED: usize = 10;
/// Rotations before anything is counted: afterwards every client has a secret to replace.
const WARM_UP: usize = ROTATED;
/// Rotations that are counted, per site.
const COUNTED: usize = 100;
/// The relay's write batch. Rotations are begun all over it, as requests are in real life.
const BATCH: Duration = Duration::from_millis(100);
const MANY_ADMINS: usize = 100;
const MANY_CLIENTS: usize = 10_000;

type Figure = fn(&Rotated) -> f64;

fn main() -> ExitCode {
    // The relay of a site is this program as well.
    if std::env::args().nth(1).as_deref() == Some("serve") {
        return keyturn::cli::main(|| Box::new(Stamped));
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

async fn compare() -> ExitCode {
    let begun = Instant::now();
    let mut sites = [
        Site::build("2 admins, 10 clients", 2, ROTATED).await,
        Site::build("100 admins, 10 clients", MANY_ADMINS, ROTATED).await,
        Site::build("2 admins, 10,000 clients", 2, MANY_CLIENTS).await,
    ];
    println!("sites built in {:.0} s", begun.elapsed().as_secs_f64());
    let mut disk = Disk::new();
    for turn in 0..WARM_UP + COUNTED {
        tokio::task::block_in_place(|| disk.sync());
        for nth in 0..sites.len() {
            // Nobody goes first every time.
            let site = &mut sites[(turn + nth) % 3];
            // The last rotation's reports are stored by then; and no two rotations begin at the same moment of a batch.
            tokio::time::sleep(BATCH + BATCH.mul_f64((turn as f64 * 0.618) % 1.0)).await;
            site.rotate(turn % ROTATED).await;
        }
    }
    println!(
        "\n{:<58} {:>9.2} {:>9.2} {:>9.2}",
        "one durable write of 4 KiB on this disk, ms (p50, p99, max)",
        disk.syncs.median(),
        disk.syncs.percentile(99.0),
        disk.syncs.max()
    );
    let mut measured = Vec::new();
    for site in sites {
        let name = site.name;
        let rotated = site.close().await.split_off(WARM_UP);
        print(name, &rotated);
        measured.push(rotated);
    }
    let [few, many_admins, many_clients] = measured.try_into().unwrap_or_else(|_| unreachable!());

    let mut targets = Targets::default();
    for (admins, rotated) in [("2 admins", &few), ("100 admins", &many_admins)] {
        let core = of(rotated, Rotated::core).percentile(99.0);
        let whole = of(rotated, Rotated::whole).percentile(99.0);
        targets.at_most(
            &format!("request → notify handed over, p99 ms, {admins}"),
            core,
            20.0,
        );
        targets.at_most(
            &format!("the whole way to an admin, p99 ms, {admins}"),
            whole,
            250.0,
        );
    }
    let ratio = |what: Figure| of(&many_clients, what).median() / of(&few, what).median();
    targets.at_most(
        "processor time per rotation, 10,000 ÷ 10 clients",
        ratio(Rotated::cost),
        1.2,
    );
    targets.at_most(
        "request → notify, p50, 10,000 ÷ 10 clients",
        ratio(Rotated::core),
        1.2,
    );
    println!("took {:.0} s", begun.elapsed().as_secs_f64());
    targets.finish()
}

fn of(rotated: &[Rotated], what: Figure) -> Sample {
    rotated.iter().map(what).collect()
}

fn print(name: &str, rotated: &[Rotated]) {
    println!(
        "\n{:<58} {:>9} {:>9} {:>9}",
        format!("{name}: {} rotations, ms", rotated.len()),
        "p50",
        "p99",
        "max"
    );
    let rows: [(&str, Figure); 8] = [
        (
            "admin: proof in hand → request at the core",
            Rotated::asking,
        ),
        ("core: request → notify handed to the relay", Rotated::core),
        (
            "relay: notify handed over → with the other admin",
            Rotated::relay,
        ),
        ("admin: delivered → opened", Rotated::opening),
        ("the whole way: proof in hand → opened", Rotated::whole),
        (
            "the whole way without the relay's part",
            Rotated::without_relay,
        ),
        (
            "beside it: notify handed over → read back by the core",
            Rotated::read_back,
        ),
        (
            "relay process, processor time per whole rotation",
            Rotated::cost,
        ),
    ];
    for (row, what) in rows {
        let sample = of(rotated, what);
        println!(
            "  {row:<56} {:>9.2} {:>9.2} {:>9.2}",
            sample.median(),
            sample.percentile(99.0),
            sample.max()
        );
    }
}
