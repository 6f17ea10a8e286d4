//! The configuration names another issuer than the one that made what a device holds: nothing may be called gone that lives on elsewhere.

use std::time::Duration;

use keyturn_proto::device::DeviceId;
use keyturn_store::devices::{Answer, Change, DeviceOptions, DeviceStore as _};

use super::world::{World, id, nonce};

const VAULT: &str = "vault:auth/approle";

/// What a relay with `issuer` has recorded before it called it, and what the issuer made, if an answer came.
async fn issued_by(w: &World, device: &DeviceId, issuer: &str, accessor: Option<&str>) {
    w.allow(device, DeviceOptions::default()).await;
    let limits = super::world::settings().limits();
    let ask = Change::Ask {
        nonce: nonce(1),
        reason: "invalid_secret".to_owned(),
        identity: None,
        owner: "relay-that-is-gone".to_owned(),
        issuer: issuer.to_owned(),
        limits,
    };
    let asked = w.store.change_device(device, ask, w.clock_now()).await;
    assert!(matches!(asked, Ok(Answer::Done(_))), "{asked:?}");
    let start = Change::Start {
        attempt: 1,
        step: limits.step,
    };
    let begun = w.store.change_device(device, start, w.clock_now()).await;
    assert!(matches!(begun, Ok(Answer::Done(_))), "{begun:?}");
    let change = match accessor {
        Some(accessor) => Change::Issued {
            attempt: 1,
            role: "river-iot".to_owned(),
            accessor: accessor.to_owned(),
            expected_proof: "0".repeat(64),
            expires_at: w.clock_now().plus(limits.ttl),
            confirm: Duration::from_secs(300),
        },
        None => Change::IssueFailed {
            attempt: 1,
            why: "timeout".to_owned(),
            in_doubt: true,
        },
    };
    let ended = w.store.change_device(device, change, w.clock_now()).await;
    assert!(matches!(ended, Ok(Answer::Done(_))), "{ended:?}");
}

async fn recorded(w: &World, event: &str) -> Vec<String> {
    let all = w.events().await.into_iter();
    all.filter(|record| record.event == event)
        .map(|record| record.reason)
        .collect()
}

#[tokio::test]
async fn what_another_issuer_made_is_not_called_gone() {
    let mut w = World::new();
    let (theirs, ours) = (id(1), id(2));
    issued_by(&w, &theirs, VAULT, Some("84896a0c-theirs")).await;
    issued_by(&w, &ours, "test", Some("84896a0c-ours")).await;
    for device in [&theirs, &ours] {
        let denied = w.store.change_device(device, Change::Deny, w.clock_now());
        assert!(matches!(denied.await, Ok(Answer::Done(_))));
    }
    w.start();
    w.until("ours is seen to be gone, theirs is refused", async |w| {
        w.doc(&ours).await.doomed.is_empty() && w.doc(&theirs).await.doomed[0].failures > 0
    })
    .await;
    assert_eq!(
        recorded(&w, "device.destroy_failed").await,
        ["another_issuer"]
    );
    let doomed = &w.doc(&theirs).await.doomed[0];
    assert_eq!(doomed.issuer.as_deref(), Some(VAULT));
    // It is kept, and told of, until it has lived its time.
    w.later(Duration::from_secs(13 * 3600));
    w.until("it is over", async |w| {
        w.doc(&theirs).await.doomed.is_empty()
    })
    .await;
    assert_eq!(recorded(&w, "device.destroy_overtaken").await, ["expired"]);
    assert_eq!(recorded(&w, "device.already_gone").await.len(), 1, "ours");
    w.stop().await;
}

#[tokio::test]
async fn what_another_issuer_may_have_made_is_not_looked_for_in_ours() {
    let mut w = World::new();
    let (theirs, ours) = (id(1), id(2));
    issued_by(&w, &theirs, VAULT, None).await;
    issued_by(&w, &ours, "test", None).await;
    w.start();
    w.until("theirs could not be looked for", async |w| {
        w.doc(&theirs).await.unresolved[0].failures > 0
    })
    .await;
    assert_eq!(
        recorded(&w, "device.search_failed").await,
        ["another_issuer"]
    );
    w.stop().await;
}
