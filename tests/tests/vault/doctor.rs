//! What `keyturn doctor` finds out about Vault.

use keyturn::devices::issuer::Reason;
use keyturn::devices::issuer::vault::examine;
use keyturn_tests::vault::{Api, Rvault};
use serde_json::json;

use super::behaviour::stand_for_devices;

#[tokio::test]
async fn a_token_under_the_policy_that_ships_is_in_order() {
    let api = Api::start().await;
    let stand = stand_for_devices(&api.operator()).await;
    let token = stand.least_privileged_token(json!({ "ttl": "1h" })).await;
    let roles = [stand.role.clone()];
    let report = examine(stand.settings_with(&token), &roles).await.unwrap();
    assert_eq!(report.server, Ok(()));
    let own = report.token.unwrap();
    assert!(own.renewable && !own.root && own.ttl.is_some());
    assert_eq!(report.roles, [(stand.role.clone(), Ok(()))]);
    assert_eq!(report.missing, Ok(Vec::new()));
    assert_eq!(report.excess, Vec::new());
}

#[tokio::test]
async fn too_little_and_too_much_are_named() {
    let api = Api::start().await;
    let stand = stand_for_devices(&api.operator()).await;
    let token = stand.least_privileged_token(json!({})).await;
    let mount = &stand.mount;
    let sloppy = format!(
        "path \"auth/{mount}/role/*\" {{ capabilities = [\"create\", \"read\", \"update\"] }}\npath \"auth/token/lookup-self\" {{ capabilities = [\"read\"] }}\n\
         path \"sys/capabilities-self\" {{ capabilities = [\"update\"] }}\npath \"auth/token/create\" {{ capabilities = [\"update\"] }}"
    );
    let path = format!("sys/policies/acl/{mount}-issuer");
    stand
        .operator
        .say("PUT", &path, json!({ "policy": sloppy }))
        .await;
    let roles = [stand.role.clone()];
    let report = examine(stand.settings_with(&token), &roles).await.unwrap();
    let role = format!("auth/{mount}/role/river-iot");
    assert_eq!(
        report.missing,
        Ok(vec![(format!("{role}/secret-id"), "list")])
    );
    let excess: Vec<&str> = report
        .excess
        .iter()
        .map(|(path, _)| path.as_str())
        .collect();
    let other = format!("auth/{mount}/role/keyturn-doctor-no-such-role/secret-id");
    let (custom, policies) = (
        format!("{role}/custom-secret-id"),
        format!("{role}/policies"),
    );
    assert_eq!(
        excess,
        [&role, &custom, &policies, &other, "auth/token/create"]
    );
}

#[tokio::test]
async fn a_root_token_an_unknown_role_and_a_sealed_server_are_named() {
    let api = Api::start().await;
    let stand = stand_for_devices(&api.operator()).await;
    let roles = ["no-such-role".parse().unwrap()];
    let report = examine(stand.settings(), &roles).await.unwrap();
    let own = report.token.unwrap();
    assert!(own.root && own.ttl.is_none());
    assert_eq!(report.roles[0].1, Err(Reason::UnknownRole));
    assert!(!report.excess.is_empty());
    api.seal(true);
    let report = examine(stand.settings(), &roles).await.unwrap();
    assert_eq!(report.server, Err(Reason::Sealed));
    assert_eq!(report.token.unwrap_err(), Reason::Sealed);
    let stranger = examine(stand.settings_with("hvs.nobody"), &roles)
        .await
        .unwrap();
    assert!(stranger.token.is_err());
}

/// A server without `sys/capabilities-self` cannot say what is allowed, and that is what the report says.
#[tokio::test]
async fn a_server_that_cannot_tell_is_not_taken_for_good() {
    let server = Rvault::start().await;
    let stand = stand_for_devices(&server.operator()).await;
    let roles = [stand.role.clone()];
    let report = examine(stand.settings(), &roles).await.unwrap();
    assert_eq!(report.server, Ok(()));
    assert_eq!(report.roles[0].1, Ok(()));
    assert!(report.missing.is_err());
}
