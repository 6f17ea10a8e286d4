//! Devices on the schedule: invited every six hours or so, found again after they were away, and never by a clock that sleeps.

use std::collections::BTreeSet;
use std::time::Duration;

use keyturn_proto::UnixMs;
use keyturn_store::devices::{Change, DeviceOptions, DevicePolicy, DeviceStore as _};

use super::world::{World, id, nonce, ok, request};
use crate::devices::flow::Handled;
use crate::rotation::ports::Clock as _;

const HOUR: Duration = Duration::from_secs(3600);
const MINUTE: Duration = Duration::from_secs(60);

fn scheduled() -> DeviceOptions {
    DeviceOptions {
        policy: DevicePolicy::Scheduled,
        ..DeviceOptions::default()
    }
}

impl World {
    /// Puts it on the schedule; its first invitation is due.
    async fn schedule(&self, n: usize) {
        self.allow(&id(n), scheduled()).await;
        self.later(MINUTE);
    }

    /// The ping that is due now, answered as a device does; what it got is confirmed.
    async fn answered_ping(&mut self, n: usize) {
        let device = id(n);
        let ping = self.answer(&device).await;
        assert_eq!(ping["ping"], "secret_id", "{ping}");
        let asked = ping["nonce"].as_str().unwrap().parse().unwrap();
        self.publish(&device, &request(&device, &asked)).await;
        let command = self.answer(&device).await;
        assert_eq!(command["nonce"], ping["nonce"]);
        assert_eq!(
            self.publish(&device, &ok(&command)).await,
            Handled::Reported
        );
    }

    async fn next_ping(&self, n: usize) -> Duration {
        let doc = self.doc(&id(n)).await;
        doc.ping_at.unwrap().since(self.clock.now())
    }

    /// Whether the store would hand the device to a sweep at `now`.
    async fn is_due(&self, n: usize, now: UnixMs) -> bool {
        let due = self.store.devices_due(now, usize::MAX).await.unwrap();
        due.iter()
            .any(|doc| doc.device_id == id(n) && doc.ping_at.is_some_and(|at| at <= now))
    }

    async fn count(&self, event: &str) -> usize {
        let trail = self.events().await;
        trail.iter().filter(|record| record.event == event).count()
    }
}

#[tokio::test]
async fn it_is_invited_about_every_six_hours_and_not_before() {
    let mut w = World::running();
    w.schedule(1).await;
    for _round in 0..3 {
        w.answered_ping(1).await;
        let next = w.next_ping(1).await;
        assert!(
            (6 * HOUR..=6 * HOUR + 36 * MINUTE).contains(&next),
            "{next:?}"
        );
        let at = w.clock.now().plus(next);
        assert!(!w.is_due(1, UnixMs(at.0 - 1)).await);
        assert!(w.is_due(1, at).await);
        w.later(next);
    }
    w.answered_ping(1).await;
    assert_eq!(w.count("device.pinged").await, 4);
    assert_eq!(w.count("device.confirmed").await, 4);
    assert_eq!(w.count("device.ping_unanswered").await, 0);
    w.stop().await;
}

/// A fleet that was registered in one minute must not ask in one minute for ever.
#[tokio::test]
async fn invitations_of_a_fleet_spread_out() {
    const FLEET: usize = 100;
    let mut w = World::running();
    for n in 0..FLEET {
        w.allow(&id(n), DeviceOptions::default()).await;
        w.publish(&id(n), &request(&id(n), &nonce(n))).await;
        // One that was put on the schedule before may be invited before its result is in.
        let command = loop {
            let said: serde_json::Value = serde_json::from_slice(&w.next().await.payload).unwrap();
            if said.get("secret_id").is_some() {
                break said;
            }
        };
        w.allow(&id(n), scheduled()).await;
        w.publish(&id(n), &ok(&command)).await;
    }
    let mut times = BTreeSet::new();
    for n in 0..FLEET {
        // Registration invites within a minute; a result that has come since is as good as its answer.
        let next = w.next_ping(n).await;
        assert!(
            (6 * HOUR..=6 * HOUR + 36 * MINUTE).contains(&next),
            "{next:?}"
        );
        times.insert(next.as_secs() / 60);
    }
    assert!(
        times.len() >= 10,
        "they fall into {} minutes of 36",
        times.len()
    );
    w.stop().await;
}

#[tokio::test]
async fn a_device_that_is_away_is_invited_now_and_then_and_served_when_it_asks() {
    let mut w = World::running();
    let device = id(1);
    w.schedule(1).await;
    let mut pings = BTreeSet::new();
    // Less and less often, and in the end as often as everybody.
    for minutes in [15, 30, 60, 120, 240, 360, 360] {
        let ping = w.answer(&device).await;
        assert!(
            pings.insert(ping["nonce"].as_str().unwrap().to_owned()),
            "the same nonce twice"
        );
        let next = w.next_ping(1).await;
        let most = (minutes * MINUTE * 3 / 2).min(6 * HOUR + 36 * MINUTE);
        assert!((minutes * MINUTE..=most).contains(&next), "{next:?}");
        w.later(next);
    }
    let missed = w.answer(&device).await;
    assert_eq!(w.count("device.ping_unanswered").await, 7);
    // Back again, it knows of no invitation and asks under a nonce of its own.
    w.publish(&device, &request(&device, &nonce(1))).await;
    let command = w.answer(&device).await;
    assert_eq!(command["nonce"], nonce(1).as_str());
    assert_eq!(w.publish(&device, &ok(&command)).await, Handled::Reported);
    let next = w.next_ping(1).await;
    assert!(
        next >= 6 * HOUR,
        "it was served, so it is left alone: {next:?}"
    );
    // Or an invitation reaches it late: a nonce is a nonce.
    let late = missed["nonce"].as_str().unwrap().parse().unwrap();
    assert_eq!(
        w.publish(&device, &request(&device, &late)).await,
        Handled::Asked
    );
    assert_eq!(w.answer(&device).await["nonce"], missed["nonce"]);
    // And when it is away again, it is looked for soon again.
    assert_eq!(w.doc(&device).await.pings_missed, 0);
    w.stop().await;
}

#[tokio::test]
async fn a_restart_neither_forgets_an_invitation_nor_repeats_one() {
    let mut w = World::running();
    w.schedule(1).await;
    let ping = w.answer(&id(1)).await;
    w.kill();
    w.restarted();
    // The one that is open is still good.
    let asked = ping["nonce"].as_str().unwrap().parse().unwrap();
    w.publish(&id(1), &request(&id(1), &asked)).await;
    let command = w.answer(&id(1)).await;
    assert_eq!(command["nonce"], ping["nonce"]);
    w.publish(&id(1), &ok(&command)).await;
    assert_eq!(w.count("device.pinged").await, 1);
    let next = w.next_ping(1).await;
    w.kill();
    w.later(next);
    w.restarted();
    w.answered_ping(1).await;
    assert_eq!(w.count("device.pinged").await, 2);
    w.stop().await;
}

#[tokio::test]
async fn who_is_off_the_schedule_or_the_list_is_not_invited() {
    let mut w = World::running();
    for n in 1..=2 {
        w.schedule(n).await;
        w.answered_ping(n).await;
    }
    w.allow(&id(1), DeviceOptions::default()).await;
    w.store
        .change_device(&id(2), Change::Deny, w.clock.now())
        .await
        .unwrap();
    let in_a_day = w.clock.now().plus(24 * HOUR);
    for n in 1..=2 {
        assert_eq!(w.doc(&id(n)).await.ping_at, None);
        assert!(!w.is_due(n, in_a_day).await);
    }
    w.stop().await;
}

/// What a device may hold has been read by somebody: it is invited within a minute, without waiting for its next login to fail.
#[tokio::test]
async fn an_invalidated_device_is_invited_soon() {
    let mut w = World::running();
    w.schedule(1).await;
    w.answered_ping(1).await;
    let change = Change::Invalidate;
    w.store
        .change_device(&id(1), change, w.clock.now())
        .await
        .unwrap();
    w.later(MINUTE);
    w.answered_ping(1).await;
    w.until("only the new one is left", async |w| {
        w.issuer.accessors() == ["acc-1"]
    })
    .await;
    w.stop().await;
}
