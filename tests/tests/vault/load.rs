//! Many calls at once: never more under way than configured, served in order, and told so when they wait too long.

use std::sync::Arc;
use std::time::Duration;

use keyturn::devices::issuer::{NonceHash, Reason, SecretIdIssuer as _};
use keyturn_tests::eventually;
use keyturn_tests::vault::{Api, Fault};

use super::behaviour::{failure, good, issuer, request, stand_for_devices};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_calls_are_under_way_than_configured() {
    let api = Api::start().await;
    let stand = stand_for_devices(&api.operator()).await;
    api.fault(Fault::slow("secret-id", Duration::from_millis(5)).times(usize::MAX));
    let mut settings = stand.settings();
    settings.max_in_flight = 3;
    settings.max_wait = Duration::from_secs(60);
    let issuer = Arc::new(issuer(settings));
    let calls: Vec<_> = (0..100)
        .map(|number| {
            let (issuer, role) = (Arc::clone(&issuer), stand.role.clone());
            tokio::spawn(async move {
                let nonce = NonceHash::of(&number.to_string());
                good(issuer.issue(request(&role, &nonce)).await).accessor
            })
        })
        .collect();
    let mut accessors = std::collections::HashSet::new();
    for call in calls {
        assert!(accessors.insert(call.await.unwrap()));
    }
    assert_eq!(api.most_at_once(), 3);
    assert_eq!(stand.accessors().await.len(), 100);
    // One look at the role for all of them.
    let looks = api
        .seen()
        .iter()
        .filter(|it| it.path.ends_with("/role-id"))
        .count();
    assert_eq!(looks, 1);
}

#[tokio::test]
async fn whoever_waits_too_long_is_told_to_come_back() {
    let api = Api::start().await;
    let stand = stand_for_devices(&api.operator()).await;
    let mut settings = stand.settings();
    settings.max_in_flight = 1;
    settings.max_wait = Duration::from_millis(200);
    // What hangs, hangs until the test is over.
    settings.timeout = Duration::from_secs(600);
    let issuer = issuer(settings);
    let nonce = NonceHash::of("busy");
    good(issuer.issue(request(&stand.role, &nonce)).await);
    api.fault(Fault::hang("secret-id"));
    let before = api.seen().len();
    let late = async {
        eventually("the first call has arrived", async || {
            (api.seen().len() > before).then_some(())
        })
        .await;
        issuer.issue(request(&stand.role, &nonce)).await
    };
    let error = tokio::select! {
        _ = issuer.issue(request(&stand.role, &nonce)) => panic!("it does not hang"),
        late = late => failure(late),
    };
    assert_eq!((error.reason(), error.in_doubt()), (Reason::Busy, false));
    // Nothing was asked of the server for it.
    assert_eq!(api.seen().len(), before + 1);
}

/// A caller that goes away gives its place back. Vault is blamed for it as for a timeout: whoever waits less long than we do must not keep a server that hangs
/// from being left alone.
#[tokio::test]
async fn a_call_that_is_given_up_gives_its_place_back() {
    let api = Api::start().await;
    let stand = stand_for_devices(&api.operator()).await;
    let mut settings = stand.settings();
    settings.max_in_flight = 1;
    let issuer = issuer(settings);
    let nonce = NonceHash::of("given up");
    good(issuer.issue(request(&stand.role, &nonce)).await);
    let give_up = async |times: usize| {
        for _ in 0..times {
            api.fault(Fault::hang("secret-id"));
            let before = api.seen().len();
            let arrived = eventually("the call has arrived", async || {
                (api.seen().len() > before).then_some(())
            });
            tokio::select! {
                _ = issuer.issue(request(&stand.role, &nonce)) => panic!("it does not hang"),
                () = arrived => {}
            }
        }
    };
    give_up(4).await;
    good(issuer.issue(request(&stand.role, &nonce)).await);
    give_up(5).await;
    let error = failure(issuer.issue(request(&stand.role, &nonce)).await);
    assert_eq!(error.reason(), Reason::CircuitOpen);
    eventually("it is tried again", async || {
        issuer.issue(request(&stand.role, &nonce)).await.ok()
    })
    .await;
}
