//! A write is done, and the answer to it is lost: whoever made it does all the same what is left to do, and refuses nothing.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use keyturn_proto::device::{SealingKey, Suite};
use keyturn_store::devices::{Change, DeviceOptions, DevicePolicy, Sealing};
use serde_json::json;

use super::faulty::{Fault, Faults, Faulty};
use super::world::{World, id, nonce, request, settings};
use crate::devices::flow::Handled;

/// A flow at work, and a device with `options`; the answer to the first change that is `lost` does not come.
async fn loses(options: DeviceOptions, lost: fn(&Change) -> bool) -> World {
    let faults = Faults::default();
    let mut world = World::over(settings(), |store, _| {
        Arc::new(Faulty {
            store,
            faults: faults.clone(),
        })
    });
    faults.set(&id(1), Fault::Loses(lost));
    world.start();
    world.allow(&id(1), options).await;
    world
}

async fn asks(w: &World) {
    let handled = w.publish(&id(1), &request(&id(1), &nonce(1))).await;
    assert_eq!(handled, Handled::Asked);
}

/// Ends the flow: nobody was told anything more, and nothing honest was refused.
async fn ends_well(mut w: World) {
    w.stop().await;
    assert!(w.is_silent(), "it was told twice");
    let refusals = w.refusals().await;
    assert!(refusals.is_empty(), "{refusals:?}");
}

#[tokio::test]
async fn a_recorded_request_is_worked_on() {
    let mut w = loses(DeviceOptions::default(), |change| {
        matches!(change, Change::Ask { .. })
    })
    .await;
    asks(&w).await;
    assert_eq!(w.answer(&id(1)).await["secret_id"], "secret-0");
    ends_well(w).await;
}

#[tokio::test]
async fn a_recorded_failure_is_no_stale_result() {
    let mut w = loses(DeviceOptions::default(), |change| {
        matches!(change, Change::Result { .. })
    })
    .await;
    asks(&w).await;
    w.answer(&id(1)).await;
    let failed = json!({ "nonce": nonce(1), "auth_result": "failed" });
    assert_eq!(w.publish(&id(1), &failed).await, Handled::Reported);
    w.until("it is destroyed", async |w| w.issuer.accessors().is_empty())
        .await;
    ends_well(w).await;
}

#[tokio::test]
async fn after_a_recorded_success_the_retained_command_is_taken_back() {
    let key = SealingKey::from_bytes([9; 32]).unwrap();
    let options = DeviceOptions {
        sealing: Some(Sealing {
            key,
            suite: Suite::ChaCha20Poly1305,
            retain: true,
        }),
        ..DeviceOptions::default()
    };
    let mut w = loses(options, |change| matches!(change, Change::Result { .. })).await;
    asks(&w).await;
    let command = w.next().await;
    assert!(command.retain && !command.payload.is_empty());
    let success = json!({ "nonce": nonce(1), "auth_result": "ok" });
    assert_eq!(w.publish(&id(1), &success).await, Handled::Reported);
    assert!(w.next().await.forgets());
    ends_well(w).await;
}

#[tokio::test]
async fn a_device_is_told_that_nothing_was_sent() {
    let mut w = loses(DeviceOptions::default(), |change| {
        matches!(change, Change::NotSent { .. })
    })
    .await;
    w.full.store(true, Ordering::SeqCst);
    asks(&w).await;
    assert_eq!(w.answer(&id(1)).await["error"], "unavailable");
    ends_well(w).await;
}

#[tokio::test]
async fn a_device_is_told_that_its_time_is_over() {
    let expires = |change: &Change| matches!(change, Change::Expire { .. });
    // It has not said how it went; the document still names its nonce.
    let mut w = loses(DeviceOptions::default(), expires).await;
    asks(&w).await;
    w.answer(&id(1)).await;
    w.later(settings().confirm + Duration::from_secs(1));
    assert_eq!(w.answer(&id(1)).await["error"], "interrupted");
    ends_well(w).await;

    // It waits for the issuer; what its request may have made is all that the document still knows of it.
    let mut w = loses(DeviceOptions::default(), expires).await;
    w.issuer.close_gate();
    asks(&w).await;
    w.until("the issuer is called", async |w| {
        !w.issuer.order.lock().unwrap().is_empty()
    })
    .await;
    w.later(settings().step + Duration::from_secs(1));
    let told = w.answer(&id(1)).await;
    assert_eq!(
        (&told["error"], &told["nonce"]),
        (&json!("interrupted"), &json!(nonce(1)))
    );
    w.issuer.open_gate();
    ends_well(w).await;
}

#[tokio::test]
async fn a_recorded_invitation_is_sent() {
    let options = DeviceOptions {
        policy: DevicePolicy::Scheduled,
        ..DeviceOptions::default()
    };
    let mut w = loses(options, |change| matches!(change, Change::Ping { .. })).await;
    w.later(Duration::from_secs(60));
    let ping = w.answer(&id(1)).await;
    let invited = w.doc(&id(1)).await.ping.unwrap();
    assert_eq!(ping["nonce"], json!(invited));
    ends_well(w).await;
}
