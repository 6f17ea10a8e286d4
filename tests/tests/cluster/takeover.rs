//! The relay that lives goes on where the other one was killed, or stopped and woken.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_other_relay_finishes_whatever_the_step_at_which_one_is_killed() {
    killed_at_each_step(|_| {}).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_firestore_too_the_other_relay_finishes_whatever_the_step() {
    let store = firestore().await;
    killed_at_each_step(|config| config["store"] = store.into()).await;
}

/// Waits until the relay has `come` to its armed point, or the rotation is over without that.
async fn came_or_over(mut come: impl FnMut() -> bool, judge: &Judge, wish: &Wish) -> bool {
    eventually("the relay comes to its point", async || {
        if come() {
            return Some(true);
        }
        let over = judge.rotation(&wish.id).await?.announced_at.is_some();
        // Looked at again: the last of the points comes right before that.
        over.then(&mut come)
    })
    .await
}

async fn killed_at_each_step(tune: impl FnOnce(&mut toml::Table)) {
    let (mut stage, mut first, mut second) = Stage::set(tune).await;
    for point in [
        Point::AfterInbox,
        Point::AfterAdmit,
        Point::AfterReserve,
        Point::AfterSeal,
        Point::AfterPrepare,
        Point::AfterOnePublish,
        Point::AfterPublish,
        Point::AfterAck,
        Point::AfterPromote,
    ] {
        let at = point.name();
        let mut tries = 0;
        let wish = loop {
            tries += 1;
            println!("kill at {at}, try {tries}");
            first.arm(point);
            let wish = stage.wish(at);
            let judge = Arc::clone(&stage.judge);
            let died = stage
                .rotate(&wish, came_or_over(|| first.has_crashed(), &judge, &wish))
                .await;
            stage.well(&wish, &second, at).await;
            // It comes back while the other acts, takes in what it missed, and repeats nothing.
            first.kill();
            first = stage.world.relay().await;
            if died {
                break wish;
            }
            // On a machine that stood still for longer than the lease, the other acted already.
            assert!(tries < 3, "{at}: the first relay never got there");
            second = stage.hand_back(second).await;
        };
        second = stage.hand_back(second).await;
        stage.judge.recorded_once(&wish.id, at).await;
        let mut wire = Wire::connect(&first.url).await;
        let outbox = stage.judge.store.outbox(&wish.id).await.unwrap();
        let ids: BTreeSet<String> = outbox.iter().map(|event| event.event_id.clone()).collect();
        eventually("the first relay has the events too", async || {
            (wire.stored(ids.clone()).await == ids).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_holder_that_was_stopped_at_a_step_and_wakes_up_does_nothing_twice() {
    let points = [
        Point::AfterAdmit,
        Point::AfterReserve,
        Point::AfterSeal,
        Point::AfterPrepare,
        Point::AfterAck,
    ];
    stopped_at_each(&points, |_| {}).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_firestore_too_the_commit_of_a_holder_that_wakes_up_is_refused() {
    let store = firestore().await;
    stopped_at_each(&[Point::AfterSeal], |config| config["store"] = store.into()).await;
}

/// The holder stands still at a step, the other relay finishes, and then the holder goes on from where it stood. At [`Point::AfterSeal`] the
/// very next thing it does is the commit of a step that is long over: that it was tried and refused is counted.
async fn stopped_at_each(points: &[Point], tune: impl FnOnce(&mut toml::Table)) {
    let (mut stage, mut first, mut second) = Stage::set(tune).await;
    let file = stage.world.layout.store();
    for &point in points {
        let at = point.name();
        let mut tries = 0..5;
        let (wish, fenced) = loop {
            tries.next().expect("it never stands still at its point");
            println!("stop at {at}");
            let fenced = counter(&first, FENCED, "").await;
            first.arm_stop(point);
            let wish = stage.wish(at);
            let judge = Arc::clone(&stage.judge);
            let stands_still = async {
                let stopped = came_or_over(|| first.is_stopped(), &judge, &wish).await;
                // Another thread of it may be writing the embedded store, which nobody else can then.
                let still = stopped && !is_locked(&file).await;
                if !still {
                    first.go_on();
                }
                still
            };
            let stands_still = stage.rotate(&wish, stands_still).await;
            stage.well(&wish, &second, at).await;
            if stands_still {
                break (wish, fenced);
            }
            // Nobody had to take over, or it was late for that: this shows nothing. Once more.
            first.kill();
            first = stage.world.relay().await;
            second = stage.hand_back(second).await;
        };
        assert!(first.is_stopped(), "control: it has not helped");
        let acts = stage.holder().await;
        assert_eq!(acts, Some(stage.sibling.npub.to_string()), "{at}");
        first.go_on();
        eventually("it knows that another acts", async || {
            (counter(&first, LEASE_HELD, "").await == 0).then_some(())
        })
        .await;
        if point == Point::AfterSeal {
            eventually("its commit was tried and refused", async || {
                (counter(&first, FENCED, "").await > fenced).then_some(())
            })
            .await;
        }
        stage.judge.recorded_once(&wish.id, at).await;
        // It follows, and when it acts again, it repeats nothing.
        second = stage.hand_back(second).await;
        stage.judge.recorded_once(&wish.id, at).await;
    }
    let wish = stage.wish("after all");
    stage.rotate(&wish, async {}).await;
    stage.well(&wish, &second, "after all").await;
}

/// Whether somebody holds the embedded store's lock, and goes on holding it. A store on no disk has none.
async fn is_locked(file: &Path) -> bool {
    if !file.exists() {
        return false;
    }
    let file = file.to_owned();
    let tried = tokio::task::spawn_blocking(move || {
        let db = rusqlite::Connection::open(file).unwrap();
        db.busy_timeout(Duration::from_secs(5)).unwrap();
        db.execute_batch("BEGIN IMMEDIATE; ROLLBACK;").is_err()
    });
    tried.await.unwrap()
}
