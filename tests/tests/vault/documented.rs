//! Against a server that does what the documentation says: the behaviours that hold everywhere, and what only such a server can show.

use std::time::Duration;

use keyturn::devices::issuer::vault::examine;
use keyturn::devices::issuer::{IssueRequest, IssuerError, NonceHash, Reason, SecretIdIssuer as _};
use keyturn_tests::vault::{Api, Fault};
use serde_json::json;

use super::behaviour::{
    self, HOUR, failure, good, intent, issuer, request, secret_id, stand_for_devices,
};

#[tokio::test]
async fn what_holds_everywhere_holds_here() {
    let api = Api::start().await;
    let operator = api.operator();
    behaviour::the_whole_life(&stand_for_devices(&operator).await).await;
    behaviour::what_cannot_be_looked_for_is_not_called_gone(&stand_for_devices(&operator).await)
        .await;
    behaviour::lost_ones_are_found_by_nonce(&stand_for_devices(&operator).await).await;
    behaviour::uses_are_limited(&stand_for_devices(&operator).await).await;
    behaviour::networks_are_passed_on(&stand_for_devices(&operator).await, true).await;
    behaviour::refusals_say_what_is_wrong(&stand_for_devices(&operator).await).await;
    behaviour::the_device_unwraps_once(&stand_for_devices(&operator).await).await;
    let stand = stand_for_devices(&operator).await;
    stand.least_privileged_policy().await;
    let role = json!({ "token_ttl": "20m", "token_policies": [format!("{}-issuer", stand.mount)] });
    behaviour::it_logs_in_by_itself(&stand, role).await;
}

#[tokio::test]
async fn the_policy_that_ships_is_enough() {
    let api = Api::start().await;
    let stand = stand_for_devices(&api.operator()).await;
    let token = stand.least_privileged_token(json!({})).await;
    let issuer = issuer(stand.settings_with(&token));
    let nonce = NonceHash::of("least privilege");
    good(issuer.health().await);
    let issued = good(issuer.issue(request(&stand.role, &nonce)).await);
    let found = good(issuer.find(&stand.role, &[intent(&nonce)], &[]).await);
    assert_eq!(found[0].accessor, issued.accessor);
    good(issuer.destroy(&stand.role, &issued.accessor).await);
    good(issuer.destroy(&stand.role, &issued.accessor).await);
}

/// Every line of the policy is needed: without it, its call is denied, and the token is not blamed.
#[tokio::test]
async fn the_policy_that_ships_has_nothing_to_spare() {
    let api = Api::start().await;
    let operator = api.operator();
    for (without, mended) in [
        (
            "role-id\" {\n  capabilities = [\"read\"]",
            "role-id\" {\n  capabilities = [\"deny\"]",
        ),
        ("[\"update\", \"list\"]", "[\"list\"]"),
        ("[\"update\", \"list\"]", "[\"update\"]"),
        ("secret-id-accessor/lookup", "secret-id-accessor/other"),
        ("secret-id-accessor/destroy", "secret-id-accessor/other"),
    ] {
        let stand = stand_for_devices(&operator).await;
        let token = stand.least_privileged_token(json!({})).await;
        let path = format!("sys/policies/acl/{}-issuer", stand.mount);
        let whole = keyturn_tests::vault::hcl(&stand.mount);
        let cut = whole.replace(without, mended);
        assert_ne!(whole, cut, "{without}");
        operator.say("PUT", &path, json!({ "policy": cut })).await;
        let issuer = issuer(stand.settings_with(&token));
        let nonce = NonceHash::of("cut");
        let denied = IssuerError::Permanent {
            why: Reason::Denied,
        };
        let (role, intents) = (&stand.role, [intent(&nonce)]);
        let worked = async {
            let issued = issuer.issue(request(role, &nonce)).await?;
            issuer.find(role, &intents, &[]).await?;
            issuer.destroy(role, &issued.accessor).await?;
            Ok::<_, IssuerError>(())
        };
        assert_eq!(worked.await, Err(denied), "{mended}");
    }
}

/// Everything that Keyturn can ask of Vault, set against the policy: no call without its line, and no line without its call.
#[tokio::test]
async fn the_policy_that_ships_is_what_is_really_called() {
    let api = Api::start().await;
    let stand = stand_for_devices(&api.operator()).await;
    stand.least_privileged_policy().await;
    let policy = format!("{}-issuer", stand.mount);
    let role =
        json!({ "token_ttl": "3s", "token_no_default_policy": true, "token_policies": [policy] });
    let auth = stand.own_login(role).await;
    api.forget_seen();
    let issuer = issuer(stand.settings_as(auth.clone()));
    good(issuer.health().await);
    let nonce = NonceHash::of("every call");
    let issued = good(issuer.issue(request(&stand.role, &nonce)).await);
    good(issuer.find(&stand.role, &[intent(&nonce)], &[]).await);
    good(issuer.destroy(&stand.role, &issued.accessor).await);
    keyturn_tests::eventually("its token is renewed", async || {
        let seen = api.seen();
        seen.iter()
            .any(|it| it.path == "auth/token/renew-self")
            .then_some(())
    })
    .await;
    issuer.close().await;
    let roles = [stand.role.clone()];
    let report = examine(stand.settings_as(auth), &roles).await.unwrap();
    assert_eq!(report.missing, Ok(Vec::new()));

    let open = ["sys/health", &stand.path("login")];
    let mut called: Vec<(String, String)> = api
        .seen()
        .into_iter()
        .filter(|seen| !open.contains(&&*seen.path))
        .map(|seen| {
            let capability = match &*seen.method {
                "GET" => "read",
                "LIST" => "list",
                "POST" => "update",
                other => panic!("{other} {}", seen.path),
            };
            (seen.path, capability.to_owned())
        })
        .collect();
    called.sort();
    called.dedup();
    let mut granted = Vec::new();
    let hcl = keyturn_tests::vault::hcl(&stand.mount);
    for rule in hcl.split("path \"").skip(1) {
        let (path, rest) = rule.split_once('"').unwrap();
        let list = rest.split_once('[').unwrap().1.split_once(']').unwrap().0;
        for capability in list.split(',') {
            let capability = capability.trim().trim_matches('"').to_owned();
            granted.push((path.to_owned(), capability));
        }
    }
    granted.sort();
    assert_eq!(called, granted);
}

/// Vault says 404 with an empty list of errors both of an empty list and, on some versions, of what is not there at all.
#[tokio::test]
async fn a_list_that_is_not_there_is_not_an_empty_one() {
    let api = Api::start().await;
    let stand = stand_for_devices(&api.operator()).await;
    let nonce = NonceHash::of("lost");
    let list = format!("{}/role/river-iot/secret-id", stand.mount);
    let list: &'static str = list.leak();
    let intents = [intent(&nonce)];
    for body in [
        r#"{"errors":[]}"#,
        r#"{"errors":["no handler for route"]}"#,
        "404 page not found",
    ] {
        let issuer = issuer(stand.settings());
        // The role is there: then there is nothing.
        api.fault(Fault::status(list, 404, body));
        assert_eq!(good(issuer.find(&stand.role, &intents, &[]).await), []);
        // Neither is.
        api.fault(Fault::status("river-iot", 404, body).times(2));
        let error = failure(issuer.find(&stand.role, &intents, &[]).await);
        assert_eq!(error.reason(), Reason::UnknownRole, "{body}");
    }
    let mut elsewhere = stand.settings();
    elsewhere.namespace = Some("plant/south".parse().unwrap());
    let issuer = behaviour::issuer(elsewhere);
    let error = failure(issuer.find(&stand.role, &intents, &[]).await);
    assert_eq!(error.reason(), Reason::UnknownRole, "another namespace");
}

#[tokio::test]
async fn a_namespace_goes_with_every_call_but_the_health_check() {
    let api = Api::start().await;
    let operator = api.operator().in_namespace("plant/north");
    let stand = stand_for_devices(&operator).await;
    api.forget_seen();
    let issuer = issuer(stand.settings());
    good(issuer.health().await);
    let nonce = NonceHash::of("namespace");
    let issued = good(issuer.issue(request(&stand.role, &nonce)).await);
    good(issuer.destroy(&stand.role, &issued.accessor).await);
    for seen in api.seen() {
        let expected = if seen.path == "sys/health" {
            ""
        } else {
            "plant/north"
        };
        assert_eq!(seen.namespace, expected, "{}", seen.path);
    }
    let mut elsewhere = stand.settings();
    elsewhere.namespace = Some("plant/south".parse().unwrap());
    let error = failure(
        behaviour::issuer(elsewhere)
            .issue(request(&stand.role, &nonce))
            .await,
    );
    assert_eq!(
        error,
        IssuerError::Permanent {
            why: Reason::UnknownRole
        }
    );
}

/// What was known of a role that is gone is not known of the one that comes after it.
#[tokio::test]
async fn a_role_that_is_made_anew_is_asked_for_its_id() {
    let api = Api::start().await;
    let stand = stand_for_devices(&api.operator()).await;
    let issuer = issuer(stand.settings());
    let nonce = NonceHash::of("made anew");
    let old = good(issuer.issue(request(&stand.role, &nonce)).await).role_id;
    let mount = format!("sys/auth/{}", stand.mount);
    stand.operator.say("DELETE", &mount, json!(null)).await;
    let error = failure(issuer.issue(request(&stand.role, &nonce)).await);
    assert_eq!(error.reason(), Reason::UnknownRole);
    let approle = json!({ "type": "approle" });
    stand.operator.say("POST", &mount, approle).await;
    let role = stand.path("role/river-iot");
    stand.operator.say("POST", &role, json!({})).await;
    let issued = good(issuer.issue(request(&stand.role, &nonce)).await);
    assert_ne!(issued.role_id, old);
    let token = stand.log_in(&issued.role_id, secret_id(&issued)).await;
    assert!(token.is_some());
}

/// A server before 1.9 does not name what it wrapped: then the nonce in the metadata does.
#[tokio::test]
async fn the_accessor_of_a_wrapped_secret_id_is_found_where_it_is_not_told() {
    let api = Api::start().await;
    api.hide_wrapped_accessors();
    let stand = stand_for_devices(&api.operator()).await;
    behaviour::the_device_unwraps_once(&stand).await;
}

#[tokio::test]
async fn a_role_with_narrower_limits_decides() {
    let api = Api::start().await;
    let operator = api.operator();
    let stand = operator
        .stand(json!({ "secret_id_ttl": "30m", "secret_id_num_uses": 3 }))
        .await;
    let issuer = issuer(stand.settings());
    let nonce = NonceHash::of("narrow");
    // Vault refuses what exceeds the role, and lengthens nothing by itself.
    let error = failure(issuer.issue(request(&stand.role, &nonce)).await);
    assert_eq!(
        error,
        IssuerError::Permanent {
            why: Reason::Rejected
        }
    );
    let fitting = IssueRequest {
        ttl: HOUR / 2,
        ..request(&stand.role, &nonce)
    };
    let issued = good(issuer.issue(fitting).await);
    let known = stand.look_up(issued.accessor.as_str()).await.unwrap();
    assert_eq!(known["secret_id_num_uses"], 3);
}

#[tokio::test]
async fn a_secret_id_ends_by_itself() {
    let api = Api::start().await;
    let stand = stand_for_devices(&api.operator()).await;
    let issuer = issuer(stand.settings());
    let nonce = NonceHash::of("short");
    let short = IssueRequest {
        ttl: Duration::from_secs(30),
        ..request(&stand.role, &nonce)
    };
    api.stop_clock();
    let issued = good(issuer.issue(short).await);
    let log_in = || stand.log_in(&issued.role_id, secret_id(&issued));
    api.advance(Duration::from_secs(29));
    assert!(log_in().await.is_some());
    api.advance(Duration::from_secs(1));
    assert!(log_in().await.is_none());
}

#[tokio::test]
async fn a_standby_leads_to_the_active_node() {
    let active = Api::start().await;
    let stand = stand_for_devices(&active.operator()).await;
    let standby = Api::start().await;
    standby.standby_of(&active.address());
    let mut settings = stand.settings();
    settings.address =
        keyturn::devices::issuer::vault::VaultAddress::parse(&standby.address()).unwrap();
    let issuer = issuer(settings);
    good(issuer.health().await);
    let nonce = NonceHash::of("standby");
    let issued = good(issuer.issue(request(&stand.role, &nonce)).await);
    assert!(
        stand
            .log_in(&issued.role_id, secret_id(&issued))
            .await
            .is_some()
    );
    // A standby that leads in a circle, or away from the path, is not followed for ever.
    for nowhere in [
        standby.address(),
        format!("{}/elsewhere", active.address()),
        "ftp://127.0.0.1".to_owned(),
    ] {
        standby.standby_of(&nowhere);
        let error = failure(issuer.issue(request(&stand.role, &nonce)).await);
        assert!(
            matches!(
                error,
                IssuerError::Retryable {
                    why: Reason::Standby,
                    ..
                }
            ),
            "{nowhere}: {error:?}"
        );
    }
}
