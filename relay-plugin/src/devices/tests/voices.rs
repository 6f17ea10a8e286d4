//! Whoever can publish on a device's topic, and cannot sign, takes nothing of what is the device's.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ed25519_dalek::{Signer as _, SigningKey};
use keyturn_proto::device::{DeviceId, DeviceNonce, IdentityKey, Statement};
use keyturn_proto::encoding::b64url;
use keyturn_store::devices::DeviceOptions;
use serde_json::{Value, json};

use super::faulty::{Fault, Faults, Faulty};
use super::world::{World, id, nonce, request, settings};
use crate::devices::flow::Handled;
use crate::devices::settings::Settings;
use crate::rotation::ports::Clock as _;

fn key() -> SigningKey {
    SigningKey::from_bytes(&[3; 32])
}

/// `device` has a key. It may say and ask little, so that it shows when somebody else uses that up.
async fn signed(device: &DeviceId) -> World {
    signed_over(device, Faults::default()).await
}

async fn signed_over(device: &DeviceId, faults: Faults) -> World {
    let settings = Settings {
        per_minute: 3,
        per_hour: 2,
        ..settings()
    };
    let world = World::over(settings, |store, _| Arc::new(Faulty { store, faults }));
    let public = key().verifying_key().to_bytes();
    let options = DeviceOptions {
        identity_key: Some(IdentityKey::from_bytes(public).unwrap()),
        ..DeviceOptions::default()
    };
    world.allow(device, options).await;
    world
}

fn sign(w: &World, key: &SigningKey, device: &DeviceId, nonce: &DeviceNonce) -> Value {
    let now = w.clock.now();
    let bytes = Statement::Request.bytes(device, nonce, now);
    let mut message = request(device, nonce);
    message["ts"] = json!(now.0);
    message["sig"] = json!(b64url(&key.sign(&bytes).to_bytes()));
    message
}

fn answers(w: &mut World) -> usize {
    std::iter::from_fn(|| (!w.is_silent()).then_some(())).count()
}

#[tokio::test]
async fn unsigned_and_forged_messages_use_up_neither_its_messages_nor_its_answers() {
    let device = id(1);
    let mut w = signed(&device).await;
    let mut refused = std::collections::BTreeMap::new();
    for n in 0..200 {
        let handled = w.publish(&device, &request(&device, &nonce(n))).await;
        let Handled::Refused(reason) = handled else {
            panic!("{handled:?}");
        };
        *refused.entry(reason).or_insert(0) += 1;
    }
    // Most were not looked into.
    assert!(refused["signature.missing"] < 150, "{refused:?}");
    assert!(refused["rate.unproven"] > 50, "{refused:?}");
    let stranger = SigningKey::from_bytes(&[4; 32]);
    for n in 200..240 {
        let forged = sign(&w, &stranger, &device, &nonce(n));
        let handled = w.publish(&device, &forged).await;
        assert_eq!(handled, Handled::Refused("signature.wrong"));
    }
    let told = answers(&mut w);
    assert!(told < 200, "{told} answers");
    // The device itself is heard as often as ever, and told when it was too often.
    for n in 300..302 {
        let own = sign(&w, &key(), &device, &nonce(n));
        assert_eq!(w.publish(&device, &own).await, Handled::Asked);
    }
    let own = sign(&w, &key(), &device, &nonce(302));
    let handled = w.publish(&device, &own).await;
    assert_eq!(handled, Handled::Refused("rate.device_hour"));
    assert_eq!(w.answer(&device).await["error"], "rate_limited");
}

#[tokio::test]
async fn who_repeats_what_the_device_has_signed_uses_up_nothing_of_its_own() {
    let device = id(1);
    let mut w = signed(&device).await;
    let first = sign(&w, &key(), &device, &nonce(1));
    assert_eq!(w.publish(&device, &first).await, Handled::Asked);
    let second = sign(&w, &key(), &device, &nonce(2));
    assert_eq!(w.publish(&device, &second).await, Handled::Asked);
    // One repeats the request under way, which is taken for a second delivery, the other one that is over.
    for _ in 0..15 {
        assert_eq!(w.publish(&device, &second).await, Handled::Ignored);
        let handled = w.publish(&device, &first).await;
        assert_eq!(handled, Handled::Refused("nonce.used"));
    }
    answers(&mut w);
    let third = sign(&w, &key(), &device, &nonce(3));
    let handled = w.publish(&device, &third).await;
    assert_eq!(handled, Handled::Refused("rate.device_hour"));
    assert_eq!(w.answer(&device).await["error"], "rate_limited");
}

#[tokio::test]
async fn a_flood_of_forged_signatures_is_bounded_and_harms_only_its_own_topic() {
    let device = id(1);
    let mut w = signed(&device).await;
    w.allow(&id(2), DeviceOptions::default()).await;
    let stranger = SigningKey::from_bytes(&[4; 32]);
    let forged = sign(&w, &stranger, &device, &nonce(1));
    let began = std::time::Instant::now();
    let mut verified = 0;
    for _ in 0..5_000 {
        match w.publish(&device, &forged).await {
            Handled::Refused("signature.wrong") => verified += 1,
            Handled::Refused("rate.unproven") => {}
            other => panic!("{other:?}"),
        }
    }
    // Fifty at once and ten a second.
    let most = 51 + began.elapsed().as_millis() / 100;
    assert!(
        verified <= most,
        "{verified} were verified, at most {most} should be"
    );
    let asked = w.publish(&id(2), &request(&id(2), &nonce(2))).await;
    assert_eq!(asked, Handled::Asked);
    answers(&mut w);
    // And that passes by itself.
    w.until("the device is heard again", async |w| {
        let own = sign(w, &key(), &device, &nonce(3));
        w.publish(&device, &own).await == Handled::Asked
    })
    .await;
}

#[tokio::test]
async fn who_repeats_a_request_that_was_never_recorded_uses_up_nothing_of_its_own() {
    let device = id(1);
    let mut w = signed(&device).await;
    for n in 1..=2 {
        let own = sign(&w, &key(), &device, &nonce(n));
        assert_eq!(w.publish(&device, &own).await, Handled::Asked);
    }
    // Refused before its nonce was stored, and so it is as good as new each time.
    let third = sign(&w, &key(), &device, &nonce(3));
    let began = Instant::now();
    for _ in 0..30 {
        let handled = w.publish(&device, &third).await;
        assert_eq!(handled, Handled::Refused("rate.device_hour"));
    }
    // Twenty at once, and one more every three seconds.
    let most = 21 + began.elapsed().as_secs() / 3;
    let told = answers(&mut w) as u64;
    assert!((1..=most).contains(&told), "{told} answers");
    // The device itself is heard as soon as it may ask again.
    w.later(Duration::from_secs(3600));
    let own = sign(&w, &key(), &device, &nonce(4));
    assert_eq!(w.publish(&device, &own).await, Handled::Asked);
}

#[tokio::test]
async fn a_store_that_is_away_makes_nobody_flood_a_device_with_answers() {
    let device = id(1);
    for fault in [Fault::Away(u32::MAX), Fault::Unwritable(u32::MAX)] {
        let faults = Faults::default();
        let mut w = signed_over(&device, faults.clone()).await;
        faults.set(&device, fault);
        let began = Instant::now();
        for n in 0..40 {
            let own = sign(&w, &key(), &device, &nonce(n));
            let handled = w.publish(&device, &own).await;
            assert_eq!(handled, Handled::Refused("store"));
        }
        // Twenty at once, and one more every three seconds.
        let most = 21 + began.elapsed().as_secs() / 3;
        let told = answers(&mut w) as u64;
        assert!((1..=most).contains(&told), "{told} answers");
        // None of it was counted as its own.
        faults.mend(&device);
        let own = sign(&w, &key(), &device, &nonce(100));
        assert_eq!(w.publish(&device, &own).await, Handled::Asked);
    }
}
