//! Our own token: renewed in time, replaced when renewing ends, when it is revoked, and when its file changes.

use std::time::Duration;

use keyturn::devices::issuer::vault::VaultAuth;
use keyturn::devices::issuer::{IssuerError, NonceHash, Reason, SecretIdIssuer as _};
use keyturn_tests::vault::{Api, Fault, Stand};
use keyturn_tests::{PATIENCE, eventually};
use serde_json::json;

use super::behaviour::{failure, good, issuer, request, stand_for_devices};

async fn world() -> (Api, Stand) {
    let api = Api::start().await;
    let stand = stand_for_devices(&api.operator()).await;
    stand.least_privileged_policy().await;
    (api, stand)
}

fn count(api: &Api, path: &str) -> usize {
    api.seen()
        .iter()
        .filter(|it| it.path.ends_with(path))
        .count()
}

#[tokio::test]
async fn a_token_is_renewed_before_it_ends() {
    let (api, stand) = world().await;
    // To the server no more time passes than it is told, however late we are.
    api.stop_clock();
    let token = stand.least_privileged_token(json!({ "ttl": "9s" })).await;
    let issuer = issuer(stand.settings_with(&token));
    let nonce = NonceHash::of("renewed");
    good(issuer.issue(request(&stand.role, &nonce)).await);
    api.advance(Duration::from_secs(5));
    let before = count(&api, "renew-self");
    eventually("a renewal", async || {
        (count(&api, "renew-self") > before).then_some(())
    })
    .await;
    // Past the token's first end, and short of its second.
    api.advance(Duration::from_secs(5));
    good(issuer.issue(request(&stand.role, &nonce)).await);
    assert_eq!(stand.accessors().await.len(), 2);
}

#[tokio::test]
async fn a_login_is_repeated_when_renewing_ends() {
    let (api, stand) = world().await;
    let policy = format!("{}-issuer", stand.mount);
    let role = json!({ "token_ttl": "6s", "token_max_ttl": "8s", "token_policies": [policy] });
    let auth = stand.own_login(role).await;
    // To the server no more time passes than it is told, however late we are.
    api.stop_clock();
    let issuer = issuer(stand.settings_as(auth));
    let nonce = NonceHash::of("login again");
    good(issuer.issue(request(&stand.role, &nonce)).await);
    eventually("a renewal", async || {
        (count(&api, "renew-self") >= 1).then_some(())
    })
    .await;
    // A second is left of the time in which renewing helps.
    api.advance(Duration::from_secs(7));
    eventually("a second login", async || {
        (count(&api, "/login") >= 2).then_some(())
    })
    .await;
    // Past the last end of the first token.
    api.advance(Duration::from_secs(2));
    good(issuer.issue(request(&stand.role, &nonce)).await);
}

#[tokio::test]
async fn a_revoked_token_is_replaced_under_a_call() {
    let (api, stand) = world().await;
    let policy = format!("{}-issuer", stand.mount);
    let auth = stand
        .own_login(json!({ "token_ttl": "1h", "token_policies": [policy] }))
        .await;
    let issuer = issuer(stand.settings_as(auth));
    let nonce = NonceHash::of("revoked");
    good(issuer.issue(request(&stand.role, &nonce)).await);
    revoke_all(&api, &stand).await;
    // The caller notices nothing.
    good(issuer.issue(request(&stand.role, &nonce)).await);
    assert_eq!(count(&api, "/login"), 2);
    assert_eq!(stand.accessors().await.len(), 2);
}

#[tokio::test]
async fn a_storm_of_refused_calls_logs_in_once() {
    let (api, stand) = world().await;
    let policy = format!("{}-issuer", stand.mount);
    let auth = stand
        .own_login(json!({ "token_ttl": "1h", "token_policies": [policy] }))
        .await;
    let issuer = issuer(stand.settings_as(auth));
    let nonce = NonceHash::of("storm");
    good(issuer.issue(request(&stand.role, &nonce)).await);
    revoke_all(&api, &stand).await;
    let calls = (0..50).map(|_| issuer.issue(request(&stand.role, &nonce)));
    for result in futures::future::join_all(calls).await {
        good(result);
    }
    assert_eq!(count(&api, "/login"), 2);
}

/// Vault's agent writes a new token into the file; nobody restarts the service.
#[tokio::test]
async fn a_new_token_in_the_file_is_taken_up() {
    let (api, stand) = world().await;
    let first = stand.least_privileged_token(json!({})).await;
    let second = stand.least_privileged_token(json!({})).await;
    let auth = VaultAuth::Token(stand.secret("token", &first));
    let issuer = issuer(stand.settings_as(auth));
    let nonce = NonceHash::of("file");
    good(issuer.issue(request(&stand.role, &nonce)).await);
    stand
        .operator
        .say("POST", "auth/token/revoke", json!({ "token": first }))
        .await;
    let error = failure(issuer.issue(request(&stand.role, &nonce)).await);
    assert_eq!(
        error,
        IssuerError::Permanent {
            why: Reason::Unauthenticated
        }
    );
    // A file with a line break at its end, as people write them.
    stand.secret("token", &format!("{second}\n"));
    eventually("the new token is used", async || {
        issuer.issue(request(&stand.role, &nonce)).await.ok()
    })
    .await;
    drop(api);
}

#[tokio::test]
async fn a_missing_file_is_our_own_fault() {
    let (_api, stand) = world().await;
    let secret = stand.secret("token", "x");
    std::fs::remove_file(secret.path().unwrap()).unwrap();
    let issuer = issuer(stand.settings_as(VaultAuth::Token(secret)));
    assert_eq!(
        failure(issuer.health().await).reason(),
        Reason::Unauthenticated
    );
}

/// Without a token nothing can have been made: whatever happens to the login is no doubt about the issue.
#[tokio::test]
async fn a_login_that_fails_leaves_nothing_in_doubt() {
    let (api, stand) = world().await;
    let policy = format!("{}-issuer", stand.mount);
    let auth = stand.own_login(json!({ "token_policies": [policy] })).await;
    for fault in [
        Fault::status("/login", 500, ""),
        Fault::hang("/login"),
        Fault::garbage("/login", "{}"),
    ] {
        let shown = format!("{fault:?}");
        api.fault(fault.times(100));
        let mut settings = stand.settings_as(auth.clone());
        settings.timeout = Duration::from_secs(5);
        let issuer = issuer(settings);
        let nonce = NonceHash::of("login fails");
        let error = failure(issuer.issue(request(&stand.role, &nonce)).await);
        assert!(!error.in_doubt(), "{shown}: {error:?}");
        api.behave();
    }
    assert!(stand.accessors().await.is_empty());
}

/// What we logged in for does not outlive us; what somebody gave us is theirs.
#[tokio::test]
async fn at_the_end_only_a_token_of_our_own_login_is_revoked() {
    let (api, stand) = world().await;
    let policy = format!("{}-issuer", stand.mount);
    let given = stand.least_privileged_token(json!({ "ttl": "1h" })).await;
    let login = stand
        .own_login(json!({ "token_ttl": "1h", "token_policies": [policy] }))
        .await;
    let nonce = NonceHash::of("the end");
    for (auth, revoked) in [
        (VaultAuth::Token(stand.secret("token", &given)), false),
        (login, true),
    ] {
        let before = api.tokens().len();
        let issuer = issuer(stand.settings_as(auth));
        good(issuer.issue(request(&stand.role, &nonce)).await);
        issuer.close().await;
        assert_eq!(api.tokens().len(), before);
        assert_eq!(count(&api, "revoke-self"), usize::from(revoked));
        // Whoever calls after the end must not log in anew.
        let logins = count(&api, "/login");
        assert_eq!(
            issuer.issue(request(&stand.role, &nonce)).await.is_ok(),
            !revoked
        );
        assert_eq!(count(&api, "/login"), logins);
    }
    assert!(api.tokens().contains(&given));
}

/// A server that does not let go of the token, or of the connection, holds nobody up for longer than one exchange.
#[tokio::test]
async fn a_token_that_cannot_be_revoked_is_left_to_its_end() {
    let (api, stand) = world().await;
    let policy = format!("{}-issuer", stand.mount);
    for fault in [
        Fault::status("revoke-self", 403, ""),
        Fault::status("revoke-self", 503, ""),
        Fault::hang("revoke-self"),
    ] {
        let login = stand
            .own_login(json!({ "token_ttl": "1h", "token_policies": [&policy] }))
            .await;
        let mut settings = stand.settings_as(login);
        settings.timeout = Duration::from_secs(5);
        let issuer = issuer(settings);
        let nonce = NonceHash::of("held");
        // On a slow machine not the first time.
        eventually("it has a token", async || {
            issuer.issue(request(&stand.role, &nonce)).await.ok()
        })
        .await;
        let before = count(&api, "revoke-self");
        api.fault(fault.times(10));
        tokio::time::timeout(PATIENCE, issuer.close())
            .await
            .expect("it waited for ever");
        assert_eq!(count(&api, "revoke-self"), before + 1);
        api.behave();
    }
}

/// Revokes every token but the operator's.
async fn revoke_all(api: &Api, stand: &Stand) {
    for token in api.tokens() {
        if !token.contains("root") {
            stand
                .operator
                .say("POST", "auth/token/revoke", json!({ "token": token }))
                .await;
        }
    }
}
