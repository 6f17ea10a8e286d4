//! What the audit trail says of a refusal: the device, the nonce, the secret_id that it is about; and that no refusal is lost or told twice.

use std::time::Duration;

use ed25519_dalek::{Signer as _, SigningKey};
use keyturn_proto::device::{DeviceId, DeviceNonce, IdentityKey, Statement};
use keyturn_proto::encoding::b64url;
use keyturn_store::audit::Chain;
use keyturn_store::devices::DeviceOptions;
use keyturn_store::documents::{Actor, AuditDevice, AuditRecord};
use keyturn_store::store::AuditTrail as _;
use serde_json::{Value, json};

use super::world::{World, id, nonce, ok, request};
use crate::devices::flow::Handled;
use crate::devices::intake::{Carriage, Incoming};
use crate::devices::refusals::TERMS;
use crate::rotation::ports::Clock as _;
use crate::trail::{EVERY, KEPT};

fn about(device: &DeviceId, nonce: &DeviceNonce, accessor: Option<&str>) -> Option<AuditDevice> {
    Some(AuditDevice {
        device_id: device.clone(),
        nonce: Some(nonce.to_string()),
        accessor: accessor.map(str::to_owned),
        claimed: false,
    })
}

fn by(device: &DeviceId) -> Actor {
    Actor::Device {
        device_id: device.clone(),
    }
}

/// How many refusals the records account for.
fn accounted(records: &[AuditRecord]) -> usize {
    let count = |record: &AuditRecord| match record.event.as_str() {
        "device.refused" => 1,
        _ => {
            let (_, rest) = record.reason.split_once("count=").unwrap();
            rest.split(' ').next().unwrap().parse().unwrap()
        }
    };
    records.iter().map(count).sum()
}

impl World {
    /// Asks, and is given a secret_id; the command.
    async fn given(&mut self, device: &DeviceId, nonce: &DeviceNonce) -> Value {
        let asked = self.publish(device, &request(device, nonce)).await;
        assert_eq!(asked, Handled::Asked);
        self.answer(device).await
    }

    /// The last refusal, which must have this reason.
    async fn last_refusal(&self, reason: &str) -> AuditRecord {
        let last = self.refusals().await.pop().unwrap();
        assert_eq!(
            (last.event.as_str(), last.reason.as_str()),
            ("device.refused", reason)
        );
        last
    }

    async fn chains(&self) -> Vec<String> {
        let heads = self.store.chains(None, 1_000).await.unwrap();
        heads
            .into_iter()
            .map(|head| head.doc.unwrap().chain)
            .collect()
    }
}

#[tokio::test]
async fn who_is_not_on_the_list_is_recorded_with_its_nonce_and_makes_no_chain() {
    let w = World::new();
    let (stranger, victim) = (id(7), id(8));
    w.publish(&stranger, &request(&stranger, &nonce(1))).await;
    let record = w.last_refusal("not_allowed").await;
    let claim = |device: &DeviceId, n| {
        about(device, &nonce(n), None).map(|it| AuditDevice {
            claimed: true,
            ..it
        })
    };
    assert_eq!(
        (record.actor, record.device),
        (by(&stranger), claim(&stranger, 1))
    );

    // In somebody else's name: who spoke, and who it claims to be.
    w.publish(&stranger, &request(&victim, &nonce(2))).await;
    let record = w.last_refusal("device_id.not_the_topics").await;
    assert_eq!(
        (record.actor, record.device),
        (by(&stranger), claim(&victim, 2))
    );
    let message = request(&victim, &nonce(3)).to_string();
    w.raw("iot/a b/status", message.as_bytes(), false).await;
    let record = w.last_refusal("topic.wrong").await;
    assert_eq!(
        (record.actor, record.device),
        (Actor::Unknown, claim(&victim, 3))
    );
    w.raw("iot/river-8/status", message.as_bytes(), true).await;
    let record = w.last_refusal("message.retained").await;
    assert_eq!(
        (record.actor, record.device),
        (by(&victim), claim(&victim, 3))
    );

    // All of it in one chain, whoever it names; what is known of a device is in its own.
    let chains = w.chains().await;
    assert!(
        matches!(&chains[..], [one] if one.starts_with("instance:")),
        "{chains:?}"
    );
    w.allow(&victim, DeviceOptions::default()).await;
    let device = Chain::Device(victim.clone());
    assert!(w.chains().await.contains(&device.to_string()));
}

#[tokio::test]
async fn a_refusal_about_a_secret_id_that_was_issued_names_it() {
    let mut w = World::running();
    let device = id(1);
    w.allow(&device, DeviceOptions::default()).await;
    let command = w.given(&device, &nonce(1)).await;
    w.publish(&device, &ok(&command)).await;
    let again = request(&device, &nonce(1));
    assert_eq!(
        w.publish(&device, &again).await,
        Handled::Refused("nonce.used")
    );
    assert_eq!(w.answer(&device).await["error"], "nonce_used");
    let record = w.last_refusal("nonce.used").await;
    assert_eq!(record.device, about(&device, &nonce(1), Some("acc-0")));
    let id = Chain::Device(device.clone()).id();
    let own = w.store.chain(&id, 1, 1_000).await.unwrap();
    let last = own.last().unwrap().doc.as_ref().unwrap();
    assert_eq!(last.record, record, "it is in the device's own chain");

    // Also when the signature is what is wrong with it.
    let key = SigningKey::from_bytes(&[3; 32]);
    let identity_key = Some(IdentityKey::from_bytes(key.verifying_key().to_bytes()).unwrap());
    let options = DeviceOptions {
        identity_key,
        ..DeviceOptions::default()
    };
    w.allow(&device, options).await;
    let signed = |statement: Statement, n: usize| {
        let now = w.clock.now();
        let bytes = statement.bytes(&device, &nonce(n), now);
        (now.0, b64url(&key.sign(&bytes).to_bytes()))
    };
    let mut message = request(&device, &nonce(2));
    let (ts, sig) = signed(Statement::Request, 2);
    (message["ts"], message["sig"]) = (json!(ts), json!(sig));
    let (ts, wrong) = signed(Statement::Request, 3);
    assert_eq!(w.publish(&device, &message).await, Handled::Asked);
    w.answer(&device).await;
    for (result, reason) in [
        (
            json!({ "nonce": nonce(2), "auth_result": "failed" }),
            "signature.missing",
        ),
        (
            json!({ "nonce": nonce(2), "auth_result": "ok", "ts": ts, "sig": wrong }),
            "signature.wrong",
        ),
    ] {
        assert_eq!(w.publish(&device, &result).await, Handled::Refused(reason));
        let record = w.last_refusal(reason).await;
        assert_eq!(record.device, about(&device, &nonce(2), Some("acc-1")));
    }
    assert!(
        w.doc(&device).await.outstanding.is_some(),
        "it is still awaited"
    );
    while !w.is_silent() {}
    w.stop().await;
}

#[tokio::test]
async fn a_result_that_counts_for_less_than_it_says_is_recorded_and_nobody_is_told() {
    let mut w = World::running();
    let device = id(1);
    w.allow(&device, DeviceOptions::default()).await;
    let command = w.given(&device, &nonce(1)).await;
    let good = ok(&command);
    let mut wrong = good.clone();
    wrong["proof"] = json!("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA");
    let failed = json!({ "nonce": nonce(1), "auth_result": "failed" });
    let of = |n: usize, result: &str| json!({ "nonce": nonce(n), "auth_result": result });

    for (message, handled, refused, accessor) in [
        // Somebody guesses a nonce, or makes one up.
        (
            of(9, "failed"),
            Handled::Refused("result.unasked"),
            Some("result.unasked"),
            None,
        ),
        (
            of(9, "ok"),
            Handled::Refused("result.unasked"),
            Some("result.unasked"),
            None,
        ),
        // It is believed as one without proof is, and is more than that.
        (
            wrong.clone(),
            Handled::Reported,
            Some("proof.wrong"),
            Some("acc-0"),
        ),
        (
            wrong.clone(),
            Handled::Refused("proof.wrong"),
            Some("proof.wrong"),
            Some("acc-0"),
        ),
        (
            failed.clone(),
            Handled::Refused("result.contradicts"),
            Some("result.contradicts"),
            Some("acc-0"),
        ),
        // The device itself.
        (good.clone(), Handled::Reported, None, None),
        (good, Handled::Ignored, None, None),
        (
            wrong,
            Handled::Refused("proof.wrong"),
            Some("proof.wrong"),
            Some("acc-0"),
        ),
        (of(1, "ok"), Handled::Ignored, None, None),
        (
            failed,
            Handled::Refused("result.contradicts"),
            Some("result.contradicts"),
            Some("acc-0"),
        ),
    ] {
        let before = w.refusals().await.len();
        assert_eq!(w.publish(&device, &message).await, handled, "{message}");
        let refusals = w.refusals().await;
        assert_eq!(
            refusals.len() - before,
            usize::from(refused.is_some()),
            "{message}"
        );
        if let Some(reason) = refused {
            let n = if message["nonce"] == json!(nonce(9)) {
                9
            } else {
                1
            };
            let record = w.last_refusal(reason).await;
            assert_eq!(
                record.device,
                about(&device, &nonce(n), accessor),
                "{message}"
            );
            assert_eq!(record.actor, by(&device));
        }
        assert!(w.is_silent(), "told: {message}");
    }

    // Of an issue that is over nothing is left but its nonce.
    let command = w.given(&device, &nonce(2)).await;
    w.publish(&device, &of(2, "failed")).await;
    assert_eq!(
        w.publish(&device, &ok(&command)).await,
        Handled::Refused("result.stale")
    );
    let record = w.last_refusal("result.stale").await;
    assert_eq!(record.device, about(&device, &nonce(2), None));
    assert!(w.doc(&device).await.current.is_some_and(|held| held.proven));
    w.stop().await;
}

#[tokio::test]
async fn what_the_store_does_not_take_is_written_when_it_does_and_only_once() {
    for in_doubt in [false, true] {
        let w = World::new();
        match in_doubt {
            true => w.trail.doubt("record"),
            false => w.trail.fail("record"),
        }
        for n in 0..8 {
            w.publish(&id(1), &request(&id(1), &nonce(n))).await;
            w.later(Duration::from_secs(1));
        }
        w.devices.refusals.flush(w.clock.now(), false).await;
        w.trail.mend();
        w.devices.refusals.flush(w.clock.now(), false).await;
        let early = w.refusals().await;
        assert!(in_doubt || early.is_empty(), "tried again at once");

        w.later(EVERY);
        w.devices.refusals.flush(w.clock.now(), false).await;
        let records = w.refusals().await;
        // Each with its own time and nonce.
        for (n, record) in records.iter().enumerate() {
            assert_eq!(
                (record.event.as_str(), record.reason.as_str()),
                ("device.refused", "not_allowed")
            );
            assert_eq!(
                record.device.as_ref().unwrap().nonce.as_deref(),
                Some(nonce(n).as_str())
            );
            assert_eq!(record.at, records[0].at.plus(Duration::from_secs(n as u64)));
        }
        assert_eq!(records.len(), TERMS.first as usize);
        // What followed them within a minute.
        w.later(TERMS.every);
        for _ in 0..2 {
            w.devices.refusals.flush(w.clock.now(), false).await;
        }
        let records = w.refusals().await;
        assert_eq!(
            (records.len(), accounted(&records)),
            (TERMS.first as usize + 1, 8)
        );
        let summary = records.last().unwrap();
        let (since, until) = (
            records[0].at.plus(Duration::from_secs(5)),
            records[0].at.plus(Duration::from_secs(7)),
        );
        let expected = format!(
            "not_allowed count=3 since={} until={} digest=",
            since.0, until.0
        );
        assert!(summary.reason.starts_with(&expected), "{}", summary.reason);
        assert_eq!(summary.actor, by(&id(1)));
    }
}

#[tokio::test]
async fn what_is_left_is_written_at_the_end() {
    let mut w = World::running();
    w.trail.fail("record");
    for n in 0..8 {
        w.publish(&id(1), &request(&id(1), &nonce(n))).await;
        w.answer(&id(1)).await;
    }
    w.trail.mend();
    w.stop().await;
    assert_eq!(accounted(&w.refusals().await), 8);
}

#[tokio::test]
async fn a_flood_of_invented_devices_is_bounded_in_the_trail_and_in_memory_and_fully_counted() {
    const STRANGERS: usize = 20_000;
    for away in [false, true] {
        let w = World::new();
        if away {
            w.trail.fail("record");
        }
        for n in 0..STRANGERS {
            w.raw(&format!("iot/invented-{n}/status"), b"{", false)
                .await;
        }
        w.trail.mend();
        w.devices.refusals.flush(w.clock.now(), true).await;
        let records = w.refusals().await;
        assert_eq!(accounted(&records), STRANGERS);
        let (own, sums): (Vec<_>, Vec<_>) = records
            .iter()
            .partition(|record| record.event == "device.refused");
        let expected = if away { KEPT } else { TERMS.in_all as usize };
        assert_eq!(own.len(), expected);
        assert!(
            sums.len() <= TERMS.summaries + 1,
            "{} summaries",
            sums.len()
        );
        let chains = w.chains().await;
        assert_eq!(chains.len(), 1, "{chains:?}");
    }
}

#[tokio::test]
async fn a_message_for_which_there_was_no_time_is_counted_among_the_refused() {
    let mut w = World::new();
    let message = request(&id(1), &nonce(1)).to_string();
    let result = json!({ "nonce": nonce(2), "auth_result": "ok" }).to_string();
    for payload in [message.as_str(), &result, r#"{"uptime":5}"#] {
        w.devices.overrun(&Incoming {
            carriage: Carriage::Mqtt,
            topic: "iot/river-1/status",
            payload: payload.as_bytes(),
            retained: false,
            arrived: std::time::Instant::now(),
        });
    }
    assert_eq!(w.answer(&id(1)).await["error"], "unavailable");
    assert!(w.is_silent(), "a result is not answered");
    w.devices.refusals.flush(w.clock.now(), true).await;
    let records = w.refusals().await;
    assert_eq!(records.len(), 1);
    assert!(records[0].reason.starts_with("queue.overrun count=2 "));
}
