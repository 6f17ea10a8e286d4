//! What happens when the issuer, the relay or the device fail half-way.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use keyturn_proto::UnixMs;
use keyturn_proto::device::DeviceId;
use keyturn_store::devices::{Answer, Change, DeviceDoc, DeviceOptions, DeviceStore, Mint, Stage};
use keyturn_store::sqlite::SqliteStore;
use keyturn_store::store::{Early, StoreError};
use serde_json::json;

use crate::devices::settings::Settings;

use crate::rotation::ports::Clock as _;

use super::world::{Mood, TestClock, World, id, nonce, ok, request, settings};
use crate::devices::flow::Handled;

#[tokio::test]
async fn while_the_issuer_is_sealed_the_device_is_told_to_come_back_and_nothing_is_left() {
    let mut w = World::running();
    let device = id(1);
    w.allow(&device, DeviceOptions::default()).await;
    *w.issuer.mood.lock().unwrap() = Mood::Sealed;
    w.publish(&device, &request(&device, &nonce(1))).await;
    let answer = w.answer(&device).await;
    assert_eq!(answer["error"], "unavailable");
    assert!(
        (30..=45).contains(&answer["retry_after_sec"].as_u64().unwrap()),
        "{answer}"
    );
    let doc = w.doc(&device).await;
    assert!(doc.outstanding.is_none() && doc.unresolved.is_empty());
    *w.issuer.mood.lock().unwrap() = Mood::Works;
    w.publish(&device, &request(&device, &nonce(2))).await;
    assert_eq!(w.answer(&device).await["secret_id"], "secret-0");
    w.stop().await;
}

#[tokio::test]
async fn what_was_issued_without_an_answer_is_found_and_destroyed() {
    let mut w = World::running();
    let device = id(1);
    w.allow(&device, DeviceOptions::default()).await;
    *w.issuer.mood.lock().unwrap() = Mood::LosesAnswers;
    w.publish(&device, &request(&device, &nonce(1))).await;
    assert_eq!(w.answer(&device).await["error"], "unavailable");
    w.until("the orphan is destroyed", async |w| {
        w.issuer.accessors().is_empty()
    })
    .await;
    w.until("nothing is open", async |w| {
        let doc = w.doc(&device).await;
        doc.unresolved.is_empty() && doc.doomed.is_empty()
    })
    .await;
    w.stop().await;
}

#[tokio::test]
async fn an_orphan_hunt_spares_what_other_devices_hold() {
    let mut w = World::running();
    for n in 1..=2 {
        w.allow(&id(n), DeviceOptions::default()).await;
    }
    w.publish(&id(1), &request(&id(1), &nonce(1))).await;
    let held = w.answer(&id(1)).await;
    w.publish(&id(1), &ok(&held)).await;
    *w.issuer.mood.lock().unwrap() = Mood::LosesAnswers;
    w.publish(&id(2), &request(&id(2), &nonce(2))).await;
    w.answer(&id(2)).await;
    w.until("only the orphan is destroyed", async |w| {
        w.issuer.accessors() == ["acc-0"]
    })
    .await;
    w.stop().await;
}

#[tokio::test]
async fn after_a_crash_the_waiting_devices_are_told_and_what_was_issued_is_destroyed() {
    let mut w = World::running();
    let one = id(1);
    w.allow(&one, DeviceOptions::default()).await;
    // The first is caught in the issuer; the process dies with it there.
    w.issuer.close_gate();
    w.publish(&one, &request(&one, &nonce(1))).await;
    w.until("the issuer is called", async |w| {
        !w.issuer.order.lock().unwrap().is_empty()
    })
    .await;
    w.kill();
    assert_eq!(w.doc(&one).await.outstanding.unwrap().stage, Stage::Issuing);
    // The issuer had done its part.
    w.issuer.makes("acc-lost", &nonce(1));
    w.issuer.open_gate();
    w.later(Duration::from_millis(1));
    w.restarted();
    let answer = w.answer(&one).await;
    assert_eq!(
        (answer["error"].as_str(), answer["nonce"].as_str()),
        (Some("interrupted"), Some(nonce(1).as_str()))
    );
    w.until("the lost one is destroyed", async |w| {
        w.issuer.accessors().is_empty()
    })
    .await;
    w.publish(&one, &request(&one, &nonce(2))).await;
    assert!(w.answer(&one).await["secret_id"].is_string());
    w.stop().await;
}

#[tokio::test]
async fn a_newer_request_wins_and_what_the_older_one_made_is_destroyed() {
    let mut w = World::running();
    let device = id(1);
    w.allow(&device, DeviceOptions::default()).await;
    w.issuer.close_gate();
    w.publish(&device, &request(&device, &nonce(1))).await;
    w.until("the issuer is called", async |w| {
        w.issuer.order.lock().unwrap().len() == 1
    })
    .await;
    assert_eq!(
        w.publish(&device, &request(&device, &nonce(2))).await,
        Handled::Asked
    );
    w.issuer.open_gate();
    let command = w.answer(&device).await;
    assert_eq!(
        command["nonce"],
        json!(nonce(2)),
        "the older request was answered"
    );
    w.publish(&device, &ok(&command)).await;
    let kept = w.doc(&device).await.current.unwrap().accessor;
    w.until("one secret_id is left", async |w| {
        w.issuer.accessors() == [kept.clone()]
    })
    .await;
    assert!(w.is_silent());
    w.stop().await;
}

#[tokio::test]
async fn a_device_that_never_answers_is_told_once_and_can_still_confirm() {
    let mut w = World::running();
    let device = id(1);
    w.allow(&device, DeviceOptions::default()).await;
    w.publish(&device, &request(&device, &nonce(1))).await;
    let command = w.answer(&device).await;
    w.later(Duration::from_secs(301));
    assert_eq!(w.answer(&device).await["error"], "interrupted");
    assert_eq!(w.issuer.accessors(), ["acc-0"]);
    assert_eq!(w.publish(&device, &ok(&command)).await, Handled::Reported);
    w.stop().await;
    assert!(w.is_silent(), "it was told twice");
}

#[tokio::test]
async fn destruction_goes_on_after_the_issuer_is_back() {
    let mut w = World::running();
    let device = id(1);
    w.allow(&device, DeviceOptions::default()).await;
    w.publish(&device, &request(&device, &nonce(1))).await;
    w.answer(&device).await;
    *w.issuer.mood.lock().unwrap() = Mood::Sealed;
    w.publish(
        &device,
        &json!({ "nonce": nonce(1), "auth_result": "failed" }),
    )
    .await;
    w.until("it was tried in vain", async |w| {
        w.doc(&device)
            .await
            .doomed
            .first()
            .is_some_and(|doomed| doomed.failures > 0)
    })
    .await;
    *w.issuer.mood.lock().unwrap() = Mood::Works;
    w.later(Duration::from_secs(600));
    w.until("it is destroyed", async |w| w.issuer.accessors().is_empty())
        .await;
    w.stop().await;
}

#[tokio::test]
async fn a_request_that_comes_while_the_relay_recovers_is_no_leftover() {
    let mut w = World::new();
    let device = id(1);
    w.allow(&device, DeviceOptions::default()).await;
    assert_eq!(
        w.publish(&device, &request(&device, &nonce(1))).await,
        Handled::Asked
    );
    w.start();
    assert_eq!(w.answer(&device).await["secret_id"], "secret-0");
    w.stop().await;
}

/// The process is stopped for a minute between the record of a call to the issuer and the call.
struct Stopped(Arc<SqliteStore>, Arc<TestClock>);

#[async_trait]
impl DeviceStore for Stopped {
    async fn change_device(
        &self,
        id: &DeviceId,
        change: Change,
        now: UnixMs,
    ) -> Result<Answer, StoreError> {
        let starts = matches!(change, Change::Start { .. });
        let answer = self.0.change_device(id, change, now).await;
        if starts {
            self.1.later(Duration::from_secs(60));
        }
        answer
    }
    async fn issue_at_once(
        &self,
        id: &DeviceId,
        ask: Change,
        confirm: Duration,
        mint: Mint,
        now: UnixMs,
    ) -> Result<Early<Answer>, StoreError> {
        self.0.issue_at_once(id, ask, confirm, mint, now).await
    }

    async fn device(&self, id: &DeviceId) -> Result<Option<DeviceDoc>, StoreError> {
        self.0.device(id).await
    }
    async fn devices(
        &self,
        after: Option<&DeviceId>,
        limit: usize,
    ) -> Result<Vec<DeviceDoc>, StoreError> {
        self.0.devices(after, limit).await
    }
    /// Whoever looks after abandoned intents comes later still: what is tested does not depend on who is first.
    async fn devices_due(&self, _: UnixMs, _: usize) -> Result<Vec<DeviceDoc>, StoreError> {
        Ok(Vec::new())
    }
    async fn devices_of(&self, owner: &str, limit: usize) -> Result<Vec<DeviceDoc>, StoreError> {
        self.0.devices_of(owner, limit).await
    }
}

#[tokio::test]
async fn a_relay_that_was_stopped_issues_nothing_for_what_others_may_have_given_up() {
    let mut w = World::over(settings(), |store, clock| Arc::new(Stopped(store, clock)));
    w.start();
    let device = id(1);
    w.allow(&device, DeviceOptions::default()).await;
    w.publish(&device, &request(&device, &nonce(1))).await;
    let answer = w.answer(&device).await;
    assert_eq!(answer["error"], "unavailable", "{answer}");
    w.stop().await;
    assert!(
        w.issuer.order.lock().unwrap().is_empty(),
        "the issuer was called"
    );
    let doc = w.doc(&device).await;
    assert!(doc.outstanding.is_none() && doc.unresolved.is_empty());
    let trail = w.events().await;
    let failed = trail
        .iter()
        .find(|record| record.event == "device.issue_failed");
    assert_eq!(failed.unwrap().reason, "too_late");
}

/// The device does as it is told through ten minutes of an outage, and pays nothing for it.
#[tokio::test]
async fn when_the_issuer_is_back_the_next_request_of_a_patient_device_is_served() {
    let mut w = World::with(Settings {
        // This limit counts by the machine's clock.
        per_minute: 10_000,
        skew: Duration::from_secs(300),
        ..settings()
    });
    w.start();
    let device = id(1);
    w.allow(&device, DeviceOptions::default()).await;
    *w.issuer.mood.lock().unwrap() = Mood::Sealed;
    for n in 0..60 {
        let handled = w.publish(&device, &request(&device, &nonce(n))).await;
        assert_eq!(handled, Handled::Asked, "request {n}");
        assert_eq!(w.answer(&device).await["error"], "unavailable");
        w.later(Duration::from_secs(10));
    }
    *w.issuer.mood.lock().unwrap() = Mood::Works;
    w.publish(&device, &request(&device, &nonce(60))).await;
    assert_eq!(w.answer(&device).await["secret_id"], "secret-0");
    w.stop().await;
}

/// The issuer was slow: what it makes shows after the first search.
#[tokio::test]
async fn what_shows_late_is_found_and_destroyed() {
    let mut w = World::running();
    let device = id(1);
    w.allow(&device, DeviceOptions::default()).await;
    *w.issuer.mood.lock().unwrap() = Mood::Silent;
    w.publish(&device, &request(&device, &nonce(1))).await;
    assert_eq!(w.answer(&device).await["error"], "unavailable");
    w.until("it was searched for", async |w| {
        let issue = w.doc(&device).await.unresolved.pop();
        w.issuer.searches.load(Ordering::SeqCst) > 0
            && issue.is_some_and(|issue| issue.retry_at > w.clock.now())
    })
    .await;
    w.issuer.makes("acc-late", &nonce(1));
    w.later(Duration::from_secs(90));
    w.until("it is destroyed", async |w| w.issuer.accessors().is_empty())
        .await;
    w.stop().await;
}

#[tokio::test]
async fn what_was_never_made_is_searched_for_until_that_is_sure() {
    let mut w = World::running();
    let device = id(1);
    w.allow(&device, DeviceOptions::default()).await;
    *w.issuer.mood.lock().unwrap() = Mood::Silent;
    w.publish(&device, &request(&device, &nonce(1))).await;
    w.answer(&device).await;
    // One at once, which may come too early; one after the time in which it may show; one more.
    for pause in [90, 30] {
        w.until("it was searched for", async |w| {
            let issue = w.doc(&device).await.unresolved.pop();
            issue.unwrap().retry_at > w.clock.now()
        })
        .await;
        w.later(Duration::from_secs(pause));
    }
    w.until("it is settled", async |w| {
        w.doc(&device).await.unresolved.is_empty()
    })
    .await;
    w.stop().await;
    assert_eq!(w.issuer.searches.load(Ordering::SeqCst), 3);
    let trail = w.events().await;
    let told = trail
        .iter()
        .filter(|record| record.event == "device.nothing_found");
    assert_eq!(told.count(), 1);
}

/// What may be all that the device has stays until there is something new for it.
#[tokio::test]
async fn a_request_that_fails_takes_nothing_from_the_device() {
    let mut w = World::running();
    let device = id(1);
    w.allow(&device, DeviceOptions::default()).await;
    w.publish(&device, &request(&device, &nonce(1))).await;
    let first = w.answer(&device).await;
    *w.issuer.mood.lock().unwrap() = Mood::Silent;
    w.publish(&device, &request(&device, &nonce(2))).await;
    assert_eq!(w.answer(&device).await["error"], "unavailable");
    w.until("it was searched for", async |w| {
        w.issuer.searches.load(Ordering::SeqCst) > 0
    })
    .await;
    assert_eq!(w.issuer.accessors(), ["acc-0"]);
    assert_eq!(w.publish(&device, &ok(&first)).await, Handled::Reported);
    *w.issuer.mood.lock().unwrap() = Mood::Works;
    w.publish(&device, &request(&device, &nonce(3))).await;
    let second = w.answer(&device).await;
    w.publish(&device, &ok(&second)).await;
    w.until("the first is destroyed", async |w| {
        w.issuer.accessors() == ["acc-1"]
    })
    .await;
    w.stop().await;
}

#[tokio::test]
async fn under_another_role_nothing_is_sent_that_was_made_under_the_old_one() {
    let mut w = World::running();
    let device = id(1);
    w.allow(&device, DeviceOptions::default()).await;
    w.issuer.close_gate();
    w.publish(&device, &request(&device, &nonce(1))).await;
    w.until("the issuer is called", async |w| {
        !w.issuer.order.lock().unwrap().is_empty()
    })
    .await;
    let change = Change::Allow {
        role: "sea-iot".to_owned(),
        options: DeviceOptions::default(),
    };
    w.store
        .change_device(&device, change, w.clock.now())
        .await
        .unwrap();
    w.issuer.open_gate();
    let told = w.answer(&device).await;
    assert_eq!(
        (&told["error"], &told["nonce"]),
        (&json!("interrupted"), &json!(nonce(1)))
    );
    w.until("what was made under the old role is destroyed", async |w| {
        let doc = w.doc(&device).await;
        w.issuer.accessors().is_empty() && doc.unresolved.is_empty() && doc.doomed.is_empty()
    })
    .await;
    w.publish(&device, &request(&device, &nonce(2))).await;
    assert_eq!(w.answer(&device).await["role_id"], "role-id-of-sea-iot");
    w.stop().await;
    assert!(w.is_silent());
}

#[tokio::test]
async fn what_cannot_be_sent_is_destroyed_at_once_and_the_device_is_asked_to_come_again() {
    let mut w = World::running();
    let device = id(1);
    w.allow(&device, DeviceOptions::default()).await;
    w.full.store(true, Ordering::SeqCst);
    w.publish(&device, &request(&device, &nonce(1))).await;
    assert_eq!(w.answer(&device).await["error"], "unavailable");
    w.until("it is destroyed", async |w| {
        w.issuer.accessors().is_empty() && w.doc(&device).await.doomed.is_empty()
    })
    .await;
    w.full.store(false, Ordering::SeqCst);
    w.publish(&device, &request(&device, &nonce(2))).await;
    assert_eq!(w.answer(&device).await["secret_id"], "secret-1");
    w.stop().await;
    let trail = w.events().await;
    let not_sent = trail
        .iter()
        .find(|record| record.event == "device.not_sent")
        .unwrap();
    let named = not_sent.device.clone().unwrap();
    assert_eq!(named.accessor.as_deref(), Some("acc-0"));
}

/// Every worker has met it, and so has the upkeep: everybody is served all the same.
#[tokio::test]
async fn a_panic_costs_one_request_and_no_worker() {
    let mut w = World::running();
    let devices: Vec<_> = (0..9).map(id).collect();
    for device in &devices {
        w.allow(device, DeviceOptions::default()).await;
    }
    let (unlucky, lucky) = devices.split_at(8);
    // Something to destroy, so that the upkeep calls the issuer too.
    w.publish(&lucky[0], &request(&lucky[0], &nonce(1))).await;
    let command = w.answer(&lucky[0]).await;
    w.publish(&lucky[0], &ok(&command)).await;
    w.issuer.close_gate();
    for (n, device) in unlucky.iter().enumerate() {
        w.publish(device, &request(device, &nonce(n))).await;
    }
    w.until("every worker is at it", async |w| {
        w.issuer.order.lock().unwrap().len() == 1 + settings().concurrency
    })
    .await;
    *w.issuer.mood.lock().unwrap() = Mood::Panics;
    w.store
        .change_device(&lucky[0], Change::Invalidate, w.clock.now())
        .await
        .unwrap();
    w.issuer.open_gate();
    w.until("everybody has met it", async |w| {
        let met = w.issuer.panics.lock().unwrap();
        let issues = met.iter().filter(|call| **call == "issue").count();
        issues == unlucky.len() && met.contains(&"destroy")
    })
    .await;
    *w.issuer.mood.lock().unwrap() = Mood::Works;
    w.until("the upkeep has destroyed", async |w| {
        w.issuer.accessors().is_empty()
    })
    .await;
    // Whose request it was is told at its deadline, and is served then.
    w.later(settings().step);
    for _ in unlucky {
        let told: serde_json::Value = serde_json::from_slice(&w.next().await.payload).unwrap();
        assert_eq!(told["error"], "interrupted", "{told}");
    }
    w.publish(&unlucky[0], &request(&unlucky[0], &nonce(100)))
        .await;
    assert!(w.answer(&unlucky[0]).await["secret_id"].is_string());
    w.stop().await;
}
