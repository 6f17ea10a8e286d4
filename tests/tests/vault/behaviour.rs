//! What must hold on every server of Vault's API.

use std::time::Duration;

use keyturn::devices::issuer::vault::{VaultIssuer, VaultSettings};
use keyturn::devices::issuer::{
    Accessor, Cidr, Credential, Destroyed, Found, Intent, IssueRequest, Issued, IssuerError,
    NonceHash, Reason, RoleName, SecretIdIssuer as _,
};
use keyturn_tests::vault::Stand;
use serde_json::json;

pub const HOUR: Duration = Duration::from_secs(3600);

/// Why a call failed; panics when it did not.
pub fn failure<T>(result: Result<T, IssuerError>) -> IssuerError {
    match result {
        Ok(_) => panic!("it worked"),
        Err(error) => error,
    }
}

pub fn good<T>(result: Result<T, IssuerError>) -> T {
    result.unwrap_or_else(|error| panic!("{error:?}"))
}

/// A request that differs from the usual in what the caller changes.
pub fn request<'a>(role: &'a RoleName, nonce: &'a NonceHash) -> IssueRequest<'a> {
    IssueRequest {
        role,
        device: "pump-7",
        nonce,
        ttl: HOUR,
        num_uses: 0,
        cidrs: &[],
        wrap_ttl: None,
    }
}

/// What [`request`] is for.
pub fn intent(nonce: &NonceHash) -> Intent {
    Intent {
        device: "pump-7".to_owned(),
        nonce: nonce.clone(),
    }
}

pub fn issuer(settings: VaultSettings) -> VaultIssuer {
    VaultIssuer::start(settings).unwrap()
}

/// The secret_id that was issued in the clear.
pub fn secret_id(issued: &Issued) -> &str {
    match &issued.credential {
        Credential::SecretId(text) => text.expose(),
        Credential::Wrapped { .. } => panic!("it is wrapped"),
    }
}

pub async fn stand_for_devices(operator: &keyturn_tests::vault::Operator) -> Stand {
    operator
        .stand(json!({ "token_ttl": "20m", "secret_id_ttl": "12h" }))
        .await
}

/// Issue, log in, destroy, refused; the same again changes nothing.
pub async fn the_whole_life(stand: &Stand) {
    let issuer = issuer(stand.settings());
    good(issuer.health().await);
    let nonce = NonceHash::of("the nonce of this test");
    let issued = good(issuer.issue(request(&stand.role, &nonce)).await);
    assert_eq!(issued.ttl, HOUR);
    let known = stand.look_up(issued.accessor.as_str()).await.unwrap();
    assert_eq!(known["metadata"]["device"], "pump-7");
    assert_eq!(known["metadata"]["nonce_sha256"], nonce.as_str());
    assert!(
        stand
            .log_in(&issued.role_id, secret_id(&issued))
            .await
            .is_some()
    );
    let destroyed = good(issuer.destroy(&stand.role, &issued.accessor).await);
    assert_eq!(destroyed, Destroyed::Now);
    assert!(
        stand
            .log_in(&issued.role_id, secret_id(&issued))
            .await
            .is_none()
    );
    for _ in 0..2 {
        let again = good(issuer.destroy(&stand.role, &issued.accessor).await);
        assert_eq!(again, Destroyed::AlreadyGone);
    }
    let never: Accessor = "00000000-0000-0000-0000-000000000000".parse().unwrap();
    assert_eq!(
        good(issuer.destroy(&stand.role, &never).await),
        Destroyed::AlreadyGone
    );
    // One of the embedded issuer, which Vault does not know either.
    let embedded: Accessor = "01JM8VEZAMG2DK6T4S9N7TT1C8".parse().unwrap();
    assert_eq!(
        failure(issuer.destroy(&stand.role, &embedded).await).reason(),
        Reason::AnotherIssuer
    );
}

pub async fn lost_ones_are_found_by_nonce(stand: &Stand) {
    let issuer = issuer(stand.settings());
    let nonces: Vec<NonceHash> = ["one", "two", "three"].map(NonceHash::of).into();
    let intents: Vec<Intent> = nonces.iter().map(intent).collect();
    assert!(good(issuer.find(&stand.role, &intents, &[]).await).is_empty());
    let mut accessors = Vec::new();
    for nonce in &nonces {
        accessors.push(good(issuer.issue(request(&stand.role, nonce)).await).accessor);
    }
    // Somebody else's, without our metadata.
    let path = stand.path("role/river-iot/secret-id");
    stand.operator.say("POST", &path, json!({})).await;
    // Another device has chosen the same nonce.
    let other = IssueRequest {
        device: "pump-8",
        ..request(&stand.role, &nonces[0])
    };
    let other = good(issuer.issue(other).await).accessor;
    let theirs = Intent {
        device: "pump-8".to_owned(),
        ..intents[0].clone()
    };
    let found = good(issuer.find(&stand.role, &[theirs], &[]).await);
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].accessor, other);
    let mut found = good(issuer.find(&stand.role, &intents[..2], &[]).await);
    found.sort_by_key(|it| it.intent.nonce != nonces[0]);
    let expected: Vec<Found> = intents
        .iter()
        .zip(&accessors)
        .take(2)
        .map(|(intent, accessor)| Found {
            intent: intent.clone(),
            accessor: accessor.clone(),
        })
        .collect();
    assert_eq!(found, expected);
    let rest = good(
        issuer
            .find(&stand.role, &intents[..2], &accessors[..1])
            .await,
    );
    assert_eq!(rest, expected[1..]);
    good(issuer.destroy(&stand.role, &accessors[1]).await);
    assert!(
        good(
            issuer
                .find(&stand.role, &intents[..2], &accessors[..1])
                .await
        )
        .is_empty()
    );
}

/// "Not found" is also what is said of a role, or a mount, that is not there: then nothing was looked for, and nothing is known to be gone.
pub async fn what_cannot_be_looked_for_is_not_called_gone(stand: &Stand) {
    let nonce = NonceHash::of("not there");
    let good_one = issuer(stand.settings());
    let issued = good(good_one.issue(request(&stand.role, &nonce)).await);
    let nowhere = || {
        let mut settings = stand.settings();
        settings.mount = format!("{}-elsewhere", stand.mount).parse().unwrap();
        settings
    };
    let no_role: RoleName = "no-such-role".parse().unwrap();
    for (settings, role) in [(stand.settings(), &no_role), (nowhere(), &stand.role)] {
        let shown = format!("{} {role}", settings.mount);
        let issuer = issuer(settings);
        let found = issuer.find(role, &[intent(&nonce)], &[]).await;
        assert!(found.is_err(), "{shown}: {found:?}");
        let destroyed = issuer.destroy(role, &issued.accessor).await;
        assert!(destroyed.is_err(), "{shown}: {destroyed:?}");
    }
    assert_eq!(stand.accessors().await, [issued.accessor.to_string()]);
    good(good_one.destroy(&stand.role, &issued.accessor).await);
    // Of a role that is there and has none, it says that there is none.
    let found = good_one.find(&stand.role, &[intent(&nonce)], &[]).await;
    assert_eq!(good(found), []);
}

pub async fn uses_are_limited(stand: &Stand) {
    let issuer = issuer(stand.settings());
    let nonce = NonceHash::of("limited");
    let once = IssueRequest {
        num_uses: 1,
        ..request(&stand.role, &nonce)
    };
    let issued = good(issuer.issue(once).await);
    let log_in = || stand.log_in(&issued.role_id, secret_id(&issued));
    assert!(log_in().await.is_some());
    assert!(log_in().await.is_none());
}

/// The server knows the networks. Whether it judges by them is its own affair: `rvault` 0.2.1 compares them with an address that has its port attached, and
/// refuses everybody.
pub async fn networks_are_passed_on(stand: &Stand, judged: bool) {
    let issuer = issuer(stand.settings());
    let nonce = NonceHash::of("networks");
    let anywhere: [Cidr; 2] = ["0.0.0.0/0", "::/0"].map(|it| it.parse().unwrap());
    let elsewhere: [Cidr; 1] = ["192.0.2.0/24".parse().unwrap()];
    for (cidrs, works) in [(&anywhere[..], true), (&elsewhere[..], false)] {
        let bound = IssueRequest {
            cidrs,
            ..request(&stand.role, &nonce)
        };
        let issued = good(issuer.issue(bound).await);
        let known = stand.look_up(issued.accessor.as_str()).await.unwrap();
        let listed: Vec<Cidr> = serde_json::from_value(known["cidr_list"].clone()).unwrap();
        assert_eq!(listed, cidrs);
        let token = stand.log_in(&issued.role_id, secret_id(&issued)).await;
        assert_eq!(token.is_some(), works && judged);
    }
}

pub async fn refusals_say_what_is_wrong(stand: &Stand) {
    let nonce = NonceHash::of("refused");
    let unknown: RoleName = "no-such-role".parse().unwrap();
    let issuer_ = issuer(stand.settings());
    let error = failure(issuer_.issue(request(&unknown, &nonce)).await);
    assert_eq!(
        error,
        IssuerError::Permanent {
            why: Reason::UnknownRole
        }
    );
    let stranger = issuer(stand.settings_with("hvs.not-a-token-of-this-server"));
    let error = failure(stranger.issue(request(&stand.role, &nonce)).await);
    assert_eq!(
        error,
        IssuerError::Permanent {
            why: Reason::Unauthenticated
        }
    );
    assert_eq!(
        failure(stranger.health().await).reason(),
        Reason::Unauthenticated
    );
    assert!(stand.accessors().await.is_empty());
}

/// The service's own credential is an AppRole login.
pub async fn it_logs_in_by_itself(stand: &Stand, policies: serde_json::Value) {
    let auth = stand.own_login(policies).await;
    let issuer = issuer(stand.settings_as(auth));
    let nonce = NonceHash::of("own login");
    let issued = good(issuer.issue(request(&stand.role, &nonce)).await);
    assert!(
        stand
            .log_in(&issued.role_id, secret_id(&issued))
            .await
            .is_some()
    );
    good(issuer.destroy(&stand.role, &issued.accessor).await);
}

pub async fn the_device_unwraps_once(stand: &Stand) {
    let issuer = issuer(stand.settings());
    let nonce = NonceHash::of("wrapped");
    let wrapping = IssueRequest {
        wrap_ttl: Some(Duration::from_secs(60)),
        ..request(&stand.role, &nonce)
    };
    let issued = good(issuer.issue(wrapping).await);
    let Credential::Wrapped { token, ttl } = &issued.credential else {
        panic!("it is not wrapped");
    };
    assert_eq!(*ttl, Duration::from_secs(60));
    let unwrap = || {
        stand
            .operator
            .ask_as(token.expose(), "POST", "sys/wrapping/unwrap", json!({}))
    };
    let (status, content) = unwrap().await;
    assert!(status.is_success(), "{status} {content}");
    assert_eq!(
        content["data"]["secret_id_accessor"],
        issued.accessor.as_str()
    );
    let secret_id = content["data"]["secret_id"].as_str().unwrap();
    assert!(stand.log_in(&issued.role_id, secret_id).await.is_some());
    assert!(!unwrap().await.0.is_success());
    good(issuer.destroy(&stand.role, &issued.accessor).await);
    assert!(stand.log_in(&issued.role_id, secret_id).await.is_none());
}
