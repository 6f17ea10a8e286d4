//! What is refused: counted, audited, answered where it can be, and without any effect.

use std::time::Duration;

use keyturn_proto::device::MAX_STATUS;
use keyturn_store::devices::{Change, DeviceOptions, DeviceStore as _};
use serde_json::json;

use super::world::{World, id, nonce, request, settings};
use crate::devices::flow::Handled;
use crate::devices::settings::Settings;
use crate::rotation::ports::Clock as _;

#[tokio::test]
async fn every_refusal_is_audited_with_its_reason_and_issues_nothing() {
    let mut w = World::running();
    let device = id(1);
    w.allow(&device, DeviceOptions::default()).await;
    let good = request(&device, &nonce(1)).to_string();
    let long = "x".repeat(MAX_STATUS + 1);
    let topic = "iot/river-1/status";
    let other = request(&id(2), &nonce(2)).to_string();
    for (topic, payload, retained, reason, answered) in [
        (
            "iot/river-1/message",
            good.as_str(),
            false,
            "topic.wrong",
            None,
        ),
        (topic, &good, true, "message.retained", None),
        (topic, &long, false, "message.oversized", None),
        (topic, "{", false, "message.unreadable", None),
        (
            topic,
            r#"{"auth_request":"secret_id","nonce":"x"}"#,
            false,
            "message.nonce",
            None,
        ),
        (
            topic,
            &other,
            false,
            "device_id.not_the_topics",
            Some("invalid_request"),
        ),
        (
            "iot/river-2/status",
            &other,
            false,
            "not_allowed",
            Some("unauthorized"),
        ),
    ] {
        assert_eq!(
            w.raw(topic, payload.as_bytes(), retained).await,
            Handled::Refused(reason)
        );
        match answered {
            Some(error) => {
                let message = w.next().await;
                let answer: serde_json::Value = serde_json::from_slice(&message.payload).unwrap();
                assert_eq!(answer["error"], error, "{reason}");
                assert!(answer["retry_after_sec"].is_u64());
            }
            None => assert!(w.is_silent(), "{reason} was answered"),
        }
        let trail = w.refusals().await;
        let last = trail.last().unwrap();
        assert_eq!(
            (last.event.as_str(), last.reason.as_str()),
            ("device.refused", reason)
        );
        assert_eq!(last.at, w.clock.now());
        // The nonce is there wherever one could be read.
        let said = serde_json::from_str::<serde_json::Value>(payload).unwrap_or_default();
        let nonce = said["nonce"].as_str().filter(|text| text.len() >= 16);
        let device = last.device.as_ref();
        assert_eq!(device.and_then(|it| it.nonce.as_deref()), nonce, "{reason}");
        assert!(device.is_none_or(|it| it.claimed), "{reason}");
    }
    assert!(
        w.issuer.order.lock().unwrap().is_empty(),
        "the issuer was called"
    );
    w.stop().await;
}

#[tokio::test]
async fn a_used_nonce_and_a_denied_device_get_nothing() {
    let mut w = World::running();
    let device = id(1);
    w.allow(&device, DeviceOptions::default()).await;
    let message = request(&device, &nonce(1));
    w.publish(&device, &message).await;
    w.answer(&device).await;
    assert_eq!(
        w.publish(&device, &message).await,
        Handled::Ignored,
        "a second delivery"
    );
    w.publish(&device, &json!({ "nonce": nonce(1), "auth_result": "ok" }))
        .await;
    assert_eq!(
        w.publish(&device, &message).await,
        Handled::Refused("nonce.used")
    );
    assert_eq!(w.answer(&device).await["error"], "nonce_used");
    w.store
        .change_device(&device, Change::Deny, w.clock.now())
        .await
        .unwrap();
    assert_eq!(
        w.publish(&device, &request(&device, &nonce(2))).await,
        Handled::Refused("not_allowed")
    );
    w.until("what it held is destroyed", async |w| {
        w.issuer.accessors().is_empty()
    })
    .await;
    w.stop().await;
}

#[tokio::test]
async fn too_many_messages_are_refused_and_the_device_is_told_for_how_long() {
    let mut w = World::with(Settings {
        per_hour: 2,
        ..settings()
    });
    w.start();
    let device = id(1);
    w.allow(&device, DeviceOptions::default()).await;
    for n in 0..2 {
        assert_eq!(
            w.publish(&device, &request(&device, &nonce(n))).await,
            Handled::Asked
        );
        w.answer(&device).await;
    }
    assert_eq!(
        w.publish(&device, &request(&device, &nonce(2))).await,
        Handled::Refused("rate.device_hour")
    );
    let answer = w.answer(&device).await;
    assert_eq!(answer["error"], "rate_limited");
    assert!(
        (3600..=5400).contains(&answer["retry_after_sec"].as_u64().unwrap()),
        "{answer}"
    );
    w.later(Duration::from_secs(3600));
    assert_eq!(
        w.publish(&device, &request(&device, &nonce(2))).await,
        Handled::Asked
    );
    w.stop().await;
}

#[tokio::test]
async fn one_shouting_device_does_not_use_up_what_the_others_need() {
    let mut w = World::with(Settings {
        per_minute: 3,
        per_second: 1,
        ..settings()
    });
    let (loud, quiet) = (id(1), id(2));
    w.allow(&loud, DeviceOptions::default()).await;
    w.allow(&quiet, DeviceOptions::default()).await;
    let mut refused = 0;
    for n in 0..50 {
        let handled = w.publish(&loud, &request(&loud, &nonce(n))).await;
        refused += usize::from(handled == Handled::Refused("rate.device"));
    }
    assert_eq!(refused, 47);
    assert_eq!(
        w.publish(&quiet, &request(&quiet, &nonce(1))).await,
        Handled::Asked
    );
    while !w.is_silent() {}
}

#[tokio::test]
async fn all_devices_together_are_held_to_the_relays_own_limit_and_told_so() {
    let mut w = World::with(Settings {
        per_second: 1,
        ..settings()
    });
    // Ten at once, whatever the clock says.
    for n in 1..=10 {
        w.allow(&id(n), DeviceOptions::default()).await;
        let handled = w.publish(&id(n), &request(&id(n), &nonce(n))).await;
        assert_eq!(handled, Handled::Asked);
    }
    // The next one a second later; nobody is so slow for so long.
    let mut n = 10;
    let refused = loop {
        n += 1;
        assert!(n < 1_000, "nobody is refused");
        match w.publish(&id(n), &request(&id(n), &nonce(n))).await {
            Handled::Refused("not_allowed") => w.answer(&id(n)).await,
            handled => break handled,
        };
    };
    assert_eq!(refused, Handled::Refused("rate.all"));
    let told = w.answer(&id(n)).await;
    assert_eq!(told["error"], "rate_limited");
    // Its nonce is as good as before.
    assert_eq!(told["nonce"], json!(nonce(n)));
    let trail = w.refusals().await;
    assert_eq!(trail.last().unwrap().reason, "rate.all");
}

#[tokio::test]
async fn where_signing_and_sealing_are_required_a_device_without_the_keys_gets_nothing() {
    for (settings, reason) in [
        (
            Settings {
                require_signed: true,
                ..settings()
            },
            "policy.not_signed",
        ),
        (
            Settings {
                require_sealed: true,
                ..settings()
            },
            "policy.not_sealed",
        ),
    ] {
        let mut w = World::with(settings);
        w.allow(&id(1), DeviceOptions::default()).await;
        assert_eq!(
            w.publish(&id(1), &request(&id(1), &nonce(1))).await,
            Handled::Refused(reason)
        );
        assert_eq!(w.answer(&id(1)).await["error"], "unauthorized");
    }
}

#[tokio::test]
async fn a_full_queue_says_so() {
    let mut w = World::with(Settings {
        queue: 1,
        ..settings()
    });
    for n in 1..=2 {
        w.allow(&id(n), DeviceOptions::default()).await;
    }
    assert_eq!(
        w.publish(&id(1), &request(&id(1), &nonce(1))).await,
        Handled::Asked
    );
    assert_eq!(
        w.publish(&id(2), &request(&id(2), &nonce(2))).await,
        Handled::Refused("queue.full")
    );
    assert_eq!(w.answer(&id(2)).await["error"], "unavailable");
    assert!(
        w.doc(&id(2)).await.nonces.is_empty(),
        "the nonce can be used again"
    );
}
