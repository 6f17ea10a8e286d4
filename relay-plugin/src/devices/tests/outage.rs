//! A store that is away: what is asked is answered, what is reported is not lost.

use std::sync::Arc;
use std::time::{Duration, Instant};

use keyturn_proto::device::{SealingKey, Suite};
use keyturn_store::devices::{DeviceOptions, Sealing};
use serde_json::{Value, json};

use super::faulty::{Fault, Faults, Faulty};
use super::world::{World, id, nonce, ok, request, settings};
use crate::devices::flow::{Devices, Handled};
use crate::devices::intake::{Carriage, Incoming};
use crate::web::deliver;

/// Of the time that a result is tried.
const LONG_AGO: Duration = Duration::from_secs(40);

/// A device that has an answer and has not said how it went; what it would say.
async fn answered() -> (World, Faults, Value) {
    let faults = Faults::default();
    let mut world = World::over(settings(), |store, _| {
        Arc::new(Faulty {
            store,
            faults: faults.clone(),
        })
    });
    world.start();
    world.allow(&id(1), DeviceOptions::default()).await;
    world.publish(&id(1), &request(&id(1), &nonce(1))).await;
    let result = ok(&world.answer(&id(1)).await);
    (world, faults, result)
}

async fn report(devices: &Arc<Devices>, result: &Value, arrived: Instant) -> Handled {
    let payload = result.to_string();
    let incoming = Incoming {
        carriage: Carriage::Mqtt,
        topic: "iot/river-1/status",
        payload: payload.as_bytes(),
        retained: false,
        arrived,
    };
    devices.handle(incoming).await
}

#[tokio::test]
async fn a_result_is_tried_until_the_store_takes_it() {
    let (mut w, faults, result) = answered().await;
    for (fault, expected) in [
        // It cannot even be looked up.
        (Fault::Away(2), Handled::Reported),
        // It cannot be written; it has come through the first time.
        (Fault::Unwritable(2), Handled::Ignored),
    ] {
        let before = faults.met(&id(1));
        faults.set(&id(1), fault);
        let handled = report(&w.devices, &result, Instant::now()).await;
        assert_eq!(handled, expected);
        assert!(faults.met(&id(1)) > before + 2);
    }
    assert!(w.doc(&id(1)).await.current.is_some_and(|held| held.proven));
    assert!(w.is_silent(), "there is nothing to tell a device");
    w.stop().await;
}

#[tokio::test]
async fn a_request_is_answered_at_once() {
    let (mut w, faults, _) = answered().await;
    faults.set(&id(1), Fault::Away(u32::MAX));
    let asked = w.publish(&id(1), &request(&id(1), &nonce(2))).await;
    assert_eq!(asked, Handled::Refused("store"));
    assert_eq!(faults.met(&id(1)), 1, "it was tried again");
    let answer = w.answer(&id(1)).await;
    assert_eq!(answer["error"], "unavailable");
    faults.mend(&id(1));
    w.stop().await;
}

#[tokio::test]
async fn a_result_that_the_store_never_takes_is_given_up() {
    let (mut w, faults, result) = answered().await;
    faults.set(&id(1), Fault::Away(u32::MAX));
    let before = Instant::now().checked_sub(LONG_AGO).unwrap();
    let handled = report(&w.devices, &result, before).await;
    assert_eq!(handled, Handled::Unrecorded);
    // A document that cannot be read is no outage.
    faults.set(&id(1), Fault::Damaged);
    let met = faults.met(&id(1));
    let handled = report(&w.devices, &result, Instant::now()).await;
    assert_eq!(handled, Handled::Unrecorded);
    assert_eq!(faults.met(&id(1)), met + 1);
    faults.mend(&id(1));
    // The device may have said it once more.
    let handled = report(&w.devices, &result, Instant::now()).await;
    assert_eq!(handled, Handled::Reported);
    w.stop().await;
    // And the trail says so, when it can.
    let refusals = w.refusals().await;
    let lost = |record: &&keyturn_store::documents::AuditRecord| {
        record.reason.contains("result.unrecorded") && record.reason.contains("count=2")
    };
    assert_eq!(refusals.iter().filter(lost).count(), 1, "{refusals:?}");
}

#[tokio::test]
async fn a_broker_that_calls_the_webhook_is_told_to_send_a_lost_result_again() {
    let (mut w, faults, result) = answered().await;
    let body = json!({ "topic": "iot/river-1/status", "payload": result.to_string() });
    let body = body.to_string();
    faults.set(&id(1), Fault::Damaged);
    let told = deliver(&w.devices, body.as_bytes()).await;
    assert_eq!(told.status(), 503);
    faults.mend(&id(1));
    let told = deliver(&w.devices, body.as_bytes()).await;
    assert_eq!(told.status(), 200);
    assert!(w.doc(&id(1)).await.current.is_some_and(|held| held.proven));
    w.stop().await;
}

#[tokio::test]
async fn a_relay_that_stops_waits_for_no_result() {
    let (mut w, faults, result) = answered().await;
    faults.set(&id(1), Fault::Away(u32::MAX));
    let devices = Arc::clone(&w.devices);
    let reporting = tokio::spawn(async move { report(&devices, &result, Instant::now()).await });
    w.until("it is tried again", async |_| faults.met(&id(1)) > 2)
        .await;
    w.devices.give_way();
    let handled = tokio::time::timeout(Duration::from_secs(20), reporting)
        .await
        .expect("it went on")
        .unwrap();
    assert_eq!(handled, Handled::Interrupted);
    faults.mend(&id(1));
    w.stop().await;
}

/// 300 results that the store does not take, and one device that asks.
#[tokio::test]
async fn results_that_wait_keep_nobody_from_the_store() {
    const WAITING: usize = 300;
    let (mut w, faults, _) = answered().await;
    let mut reporting = Vec::new();
    for n in 100..100 + WAITING {
        faults.set(&id(n), Fault::Away(u32::MAX));
        let devices = Arc::clone(&w.devices);
        reporting.push(tokio::spawn(async move {
            let result = json!({ "nonce": nonce(n), "auth_result": "ok" }).to_string();
            let incoming = Incoming {
                carriage: Carriage::Mqtt,
                topic: &format!("iot/{}/status", id(n)),
                payload: result.as_bytes(),
                retained: false,
                arrived: Instant::now(),
            };
            devices.handle(incoming).await
        }));
    }
    w.until("all of them wait", async |_| {
        (100..100 + WAITING).all(|n| faults.met(&id(n)) > 0)
    })
    .await;
    let asked = w.publish(&id(1), &request(&id(1), &nonce(2))).await;
    assert_eq!(asked, Handled::Asked);
    assert!(w.answer(&id(1)).await["secret_id"].is_string());
    w.devices.give_way();
    for reporting in reporting {
        assert_eq!(reporting.await.unwrap(), Handled::Interrupted);
    }
    w.stop().await;
}

#[tokio::test]
async fn a_late_result_takes_back_no_command_but_its_own() {
    let mut w = World::running();
    let key = SealingKey::from_bytes([9; 32]).unwrap();
    let sealing = Sealing {
        key,
        suite: Suite::ChaCha20Poly1305,
        retain: true,
    };
    let options = DeviceOptions {
        sealing: Some(sealing),
        ..DeviceOptions::default()
    };
    w.allow(&id(1), options).await;
    let ask = async |w: &mut World, n| {
        w.publish(&id(1), &request(&id(1), &nonce(n))).await;
        let command = w.next().await;
        assert!(command.retain && !command.payload.is_empty());
    };
    let report = |n, result| json!({ "nonce": nonce(n), "auth_result": result });
    ask(&mut w, 1).await;
    w.publish(&id(1), &report(1, "ok")).await;
    assert!(w.next().await.forgets(), "it has done its work");
    // It asks again, and is told of it only later: its second command lies at the broker.
    ask(&mut w, 2).await;
    let secret = w.issuer.living.lock().unwrap()["acc-0"].1.clone();
    let proven = json!({
        "nonce": nonce(1),
        "auth_result": "ok",
        "proof": keyturn_proto::device::proof::proof(&secret, &nonce(1)),
    });
    assert_eq!(w.publish(&id(1), &proven).await, Handled::Reported);
    assert!(w.is_silent(), "the second command was taken back");
    w.publish(&id(1), &report(2, "failed")).await;
    assert!(w.next().await.forgets());
    w.stop().await;
}
