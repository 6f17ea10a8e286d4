//! What happens when everybody does as they should.

use std::sync::atomic::Ordering;
use std::time::Duration;

use ed25519_dalek::{Signer as _, SigningKey};
use hpke::Serializable as _;
use keyturn_proto::device::{IdentityKey, Sealed, SealingKey, Statement, Suite};
use keyturn_proto::encoding::b64url;
use keyturn_store::devices::{DeviceOptions, DevicePolicy, Sealing};
use serde_json::json;

use super::world::{World, id, nonce, ok, request};
use crate::devices::flow::Handled;
use crate::rotation::ports::Clock as _;

#[tokio::test]
async fn a_device_gets_a_secret_id_and_the_one_before_is_destroyed() {
    let mut w = World::running();
    let device = id(1);
    w.allow(&device, DeviceOptions::default()).await;
    assert_eq!(
        w.publish(&device, &request(&device, &nonce(1))).await,
        Handled::Asked
    );
    let first = w.answer(&device).await;
    assert_eq!(
        first,
        json!({ "nonce": nonce(1), "role_id": "role-id-of-river-iot", "secret_id": "secret-0", "ttl_sec": 43_200 })
    );
    assert_eq!(w.publish(&device, &ok(&first)).await, Handled::Reported);

    w.later(Duration::from_secs(6 * 3600));
    w.publish(&device, &request(&device, &nonce(2))).await;
    let second = w.answer(&device).await;
    assert_eq!(
        w.issuer.accessors(),
        ["acc-0", "acc-1"],
        "the old one lives until the device confirms"
    );
    w.publish(&device, &ok(&second)).await;
    w.until("the first secret_id is destroyed", async |w| {
        w.issuer.accessors() == ["acc-1"]
    })
    .await;
    w.until("its destruction is recorded", async |w| {
        w.doc(&device).await.doomed.is_empty()
    })
    .await;
    w.stop().await;

    let mut trail = w.events().await;
    trail.retain(|record| record.device.is_some());
    let told: Vec<_> = trail.iter().map(|record| record.event.as_str()).collect();
    assert_eq!(
        told,
        [
            "device.allowed",
            "device.asked",
            "device.issued",
            "device.confirmed",
            "device.asked",
            "device.issued",
            "device.confirmed",
            "device.destroyed"
        ]
    );
    let text = serde_json::to_string(&trail).unwrap();
    assert!(text.contains("acc-0") && text.contains(nonce(2).as_str()));
    assert!(
        !text.contains("secret-0") && !text.contains("secret-1"),
        "a secret_id is in the trail"
    );
}

#[tokio::test]
async fn a_failure_destroys_the_new_one_and_an_unproven_ok_leaves_the_old() {
    let mut w = World::running();
    let device = id(1);
    w.allow(&device, DeviceOptions::default()).await;
    w.publish(&device, &request(&device, &nonce(1))).await;
    w.answer(&device).await;
    w.publish(&device, &json!({ "nonce": nonce(1), "auth_result": "ok" }))
        .await;
    w.publish(&device, &request(&device, &nonce(2))).await;
    w.answer(&device).await;
    w.publish(
        &device,
        &json!({ "nonce": nonce(2), "auth_result": "failed", "reason": "login_refused" }),
    )
    .await;
    w.until("the new one is destroyed", async |w| {
        w.issuer.accessors() == ["acc-0"]
    })
    .await;
    w.publish(&device, &request(&device, &nonce(3))).await;
    w.answer(&device).await;
    w.publish(&device, &json!({ "nonce": nonce(3), "auth_result": "ok" }))
        .await;
    w.stop().await;
    assert_eq!(w.issuer.accessors(), ["acc-0", "acc-2"]);
}

#[tokio::test]
async fn a_sealed_command_shows_the_broker_nothing_and_may_be_retained() {
    let mut w = World::running();
    let device = id(1);
    let (private, public) = <hpke::kem::X25519HkdfSha256 as hpke::Kem>::derive_keypair(&[7; 32]);
    let key = SealingKey::from_bytes(public.to_bytes().as_slice().try_into().unwrap()).unwrap();
    let sealing = Sealing {
        key,
        suite: Suite::Aes128Gcm,
        retain: true,
    };
    w.allow(
        &device,
        DeviceOptions {
            sealing: Some(sealing),
            ..DeviceOptions::default()
        },
    )
    .await;
    w.publish(&device, &request(&device, &nonce(1))).await;
    let message = w.next().await;
    assert!(message.retain);
    assert_eq!(
        message.expires_in,
        Duration::from_secs(43_200),
        "kept as long as it is good for something"
    );
    let text = String::from_utf8(message.payload.to_vec()).unwrap();
    assert!(!text.contains("secret") && !text.contains("role"), "{text}");
    let sealed: Sealed = serde_json::from_str(&text).unwrap();
    let opened = sealed
        .open(private.to_bytes().as_slice().try_into().unwrap(), &device)
        .unwrap();
    let command: serde_json::Value = serde_json::from_slice(&opened).unwrap();
    assert_eq!(command["secret_id"], "secret-0");
    w.publish(&device, &ok(&command)).await;
    w.until("it is confirmed", async |w| {
        w.doc(&device).await.current.is_some_and(|held| held.proven)
    })
    .await;
    w.stop().await;
}

#[tokio::test]
async fn a_device_with_an_identity_key_is_heard_only_when_it_signs() {
    let mut w = World::running();
    let device = id(1);
    let key = SigningKey::from_bytes(&[3; 32]);
    let identity_key = Some(IdentityKey::from_bytes(key.verifying_key().to_bytes()).unwrap());
    w.allow(
        &device,
        DeviceOptions {
            identity_key,
            ..DeviceOptions::default()
        },
    )
    .await;
    let sign = |statement: Statement, n, ts: keyturn_proto::UnixMs| {
        let bytes = statement.bytes(&device, &nonce(n), ts);
        (ts.0, b64url(&key.sign(&bytes).to_bytes()))
    };
    let now = w.clock.now();
    let mut message = request(&device, &nonce(1));
    assert_eq!(
        w.publish(&device, &message).await,
        Handled::Refused("signature.missing")
    );
    assert_eq!(w.answer(&device).await["error"], "unauthorized");
    for (statement, ts, expected) in [
        (Statement::Ok, now, Handled::Refused("signature.wrong")),
        (
            Statement::Request,
            now.minus(Duration::from_secs(121)),
            Handled::Refused("signature.clock_skew"),
        ),
        (
            Statement::Request,
            now.minus(Duration::from_secs(119)),
            Handled::Asked,
        ),
    ] {
        let (ts, sig) = sign(statement, 1, ts);
        message["ts"] = json!(ts);
        message["sig"] = json!(sig);
        assert_eq!(w.publish(&device, &message).await, expected);
        w.answer(&device).await;
    }
    // An unsigned or wrongly signed result changes nothing.
    let failed = json!({ "nonce": nonce(1), "auth_result": "failed" });
    assert_eq!(
        w.publish(&device, &failed).await,
        Handled::Refused("signature.missing")
    );
    w.answer(&device).await;
    let (ts, sig) = sign(Statement::Ok, 1, now);
    let forged = json!({ "nonce": nonce(1), "auth_result": "failed", "ts": ts, "sig": sig });
    assert_eq!(
        w.publish(&device, &forged).await,
        Handled::Refused("signature.wrong")
    );
    assert_eq!(w.issuer.accessors(), ["acc-0"]);
    let good = json!({ "nonce": nonce(1), "auth_result": "ok", "ts": ts, "sig": sig });
    assert_eq!(w.publish(&device, &good).await, Handled::Reported);
    w.stop().await;
}

#[tokio::test]
async fn a_scheduled_device_is_invited_and_asks_under_the_pings_nonce() {
    let mut w = World::running();
    let device = id(1);
    w.allow(
        &device,
        DeviceOptions {
            policy: DevicePolicy::Scheduled,
            ..DeviceOptions::default()
        },
    )
    .await;
    w.later(Duration::from_secs(60));
    let ping = w.answer(&device).await;
    assert_eq!(ping["ping"], "secret_id");
    let asked = ping["nonce"].as_str().unwrap().parse().unwrap();
    w.publish(&device, &request(&device, &asked)).await;
    let command = w.answer(&device).await;
    assert_eq!(command["nonce"], ping["nonce"]);
    w.publish(&device, &ok(&command)).await;
    let doc = w.doc(&device).await;
    let next = doc.ping_at.unwrap().since(w.clock.now());
    assert!(
        (Duration::from_secs(21_600)..=Duration::from_secs(23_760)).contains(&next),
        "{next:?}"
    );
    assert!(doc.ping.is_none());
    w.stop().await;
}

#[tokio::test]
async fn many_at_once_are_all_answered_in_order_and_no_more_calls_are_made_than_allowed() {
    const DEVICES: usize = 300;
    let mut w = World::running();
    for n in 0..DEVICES {
        w.allow(&id(n), DeviceOptions::default()).await;
    }
    // Everybody asks before anything is issued.
    w.issuer.close_gate();
    for n in 0..DEVICES {
        assert_eq!(
            w.publish(&id(n), &request(&id(n), &nonce(n))).await,
            Handled::Asked
        );
    }
    w.issuer.open_gate();
    let mut answered = std::collections::BTreeSet::new();
    for _ in 0..DEVICES {
        let message = w.next().await;
        assert!(
            answered.insert(message.device.clone()),
            "{} was answered twice",
            message.device
        );
    }
    assert_eq!(w.issuer.most_at_once.load(Ordering::SeqCst), 4);
    let order = w.issuer.order.lock().unwrap().clone();
    // Four workers take them in order; how their calls interleave is theirs.
    for (place, device) in order.iter().enumerate() {
        let n: usize = device.strip_prefix("river-").unwrap().parse().unwrap();
        assert!(n.abs_diff(place) <= 8, "{device} came at place {place}");
    }
    w.stop().await;
}
