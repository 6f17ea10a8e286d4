//! What happens when the issuer, the relay or the device fail half-way.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use keyturn_proto::UnixMs;
use keyturn_proto::device::DeviceId;
use keyturn_store::devices::{Answer, Change, DeviceDoc, DeviceOptions, DeviceStore, Mint, Stage};
use keyturn_store::sqlite::SqliteStore;
use keyturn_store::store::{Early, StoreError};
use serde_json::json;

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
    w.issuer.living.lock().unwrap().insert(
        "acc-lost".to_owned(),
        (
            crate::devices::issuer::NonceHash::of(nonce(1).as_str()),
            "secret-lost".to_owned(),
        ),
    );
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
