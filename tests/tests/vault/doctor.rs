//! What `keyturn doctor` finds out about Vault.

use keyturn::clock::SystemClock;
use keyturn::config::{Config, Environment};
use keyturn::devices::issuer::Reason;
use keyturn::devices::issuer::vault::examine;
use keyturn::doctor::{self, Finding, Level, Subject};
use keyturn::rotation::ports::Clock as _;
use keyturn_store::devices::{Change, DeviceOptions, DeviceStore as _};
use keyturn_store::sqlite::SqliteStore;
use keyturn_tests::vault::{Api, Fault, Rvault, Shape, Stand};
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
        Ok(vec![
            (format!("{role}/secret-id"), "list"),
            ("auth/token/renew-self".to_owned(), "update")
        ])
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

/// The documentation shows the paths at the top of the answer; servers also put them into its `data`, or only there.
#[tokio::test]
async fn capabilities_are_understood_wherever_they_stand() {
    let api = Api::start().await;
    let stand = stand_for_devices(&api.operator()).await;
    let token = stand.least_privileged_token(json!({})).await;
    let roles = [stand.role.clone()];
    for shape in [Shape::Both, Shape::Top, Shape::Data] {
        api.show_capabilities(shape);
        let report = examine(stand.settings_with(&token), &roles).await.unwrap();
        assert_eq!(report.missing, Ok(Vec::new()), "{shape:?}");
        assert_eq!(report.excess, Vec::new(), "{shape:?}");
    }
    // Said of other paths than those that were asked about.
    api.fault(Fault::garbage(
        "sys/capabilities-self",
        r#"{"capabilities":["update"],"data":{"capabilities":["update"]}}"#,
    ));
    let report = examine(stand.settings_with(&token), &roles).await.unwrap();
    assert_eq!(report.missing, Err(Reason::Garbled));
}

/// In a namespace, what only the root has is asked of the root; and a look leaves no login behind.
#[tokio::test]
async fn a_look_into_a_namespace_is_as_good_and_leaves_no_token() {
    let api = Api::start().await;
    let stand = stand_for_devices(&api.operator().in_namespace("plant/north")).await;
    stand.least_privileged_policy().await;
    let policy = format!("{}-issuer", stand.mount);
    let role = json!({ "token_ttl": "1h", "token_policies": [policy] });
    let auth = stand.own_login(role).await;
    let roles = [stand.role.clone()];
    let before = api.tokens();
    for health in [200, 404] {
        if health == 404 {
            // Then the seal status has to do.
            api.fault(Fault::status("sys/health", 404, r#"{"errors":[]}"#));
        }
        let report = examine(stand.settings_as(auth.clone()), &roles)
            .await
            .unwrap();
        assert_eq!(report.server, Ok(()), "{health}");
        assert_eq!(report.missing, Ok(Vec::new()), "{health}");
        assert_eq!(report.roles, [(stand.role.clone(), Ok(()))], "{health}");
        assert_eq!(api.tokens().len(), before.len(), "{health}");
    }
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

/// What `keyturn doctor` says of the issuer, for a store in which one device has the stand's role and one has another.
async fn findings(stand: &Stand, token: &str) -> Vec<Finding> {
    let folder = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(&folder.path().join("keyturn.db")).unwrap();
    for (device, role) in [("pump-7", "river-iot"), ("pump-8", "no-such-role")] {
        let allow = Change::Allow {
            role: role.to_owned(),
            options: DeviceOptions::default(),
        };
        let device = device.parse().unwrap();
        store
            .change_device(&device, allow, SystemClock.now())
            .await
            .unwrap();
    }
    let secret = stand.secret("doctor.token", token);
    let text = format!(
        "[relay]\ndata_dir = \"relay\"\n[mls]\ndatabase = \"member.db\"\nstorage_key_file = \"mls.key\"\nnostr_secret_key_file = \"nsec\"\n\
         relays = [\"wss://relay.example.org\"]\n[store]\npath = \"keyturn.db\"\n[mac]\nkey_file = \"mac.key\"\n[issuer]\njwks_file = \"jwks.json\"\n\
         [admission]\nchallenge_key_file = \"c\"\ntotp_seed_key_file = \"t\"\n[devices.issuer]\nkind = \"vault\"\naddress = \"{}\"\nmount = \"{}\"\n\
         token_file = \"{}\"\n",
        stand.settings().address,
        stand.mount,
        secret.path().unwrap().display()
    );
    let path = folder.path().join("keyturn.toml");
    let config = Config::parse(&text, &path, Environment::default()).unwrap();
    let report = doctor::examine(Subject {
        path: &path,
        config: &config,
        now: SystemClock.now(),
    })
    .await;
    let ours = report
        .findings
        .into_iter()
        .filter(|it| it.check == "devices");
    ours.collect()
}

fn texts(findings: &[Finding], level: Level) -> Vec<&str> {
    let of = findings.iter().filter(|it| it.level == level);
    of.map(|it| it.what.as_str()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_report_names_roles_and_what_the_token_lacks_or_has_too_much() {
    let api = Api::start().await;
    let stand = stand_for_devices(&api.operator()).await;
    let token = stand.least_privileged_token(json!({ "ttl": "1h" })).await;
    let found = findings(&stand, &token).await;
    let oks = texts(&found, Level::Ok);
    assert!(oks.contains(&"the role river-iot is there"), "{found:#?}");
    assert!(
        oks.iter()
            .any(|it| it.starts_with("our token is good for another")),
        "{found:#?}"
    );
    // The policy knows nothing of the second device's role.
    let fails = texts(&found, Level::Fail);
    assert!(
        fails.contains(
            &"the role no-such-role cannot be read: the issuer's policy does not allow this"
        ),
        "{found:#?}"
    );
    let missing = format!(
        "our token may not update auth/{}/role/no-such-role/secret-id",
        stand.mount
    );
    assert!(fails.contains(&missing.as_str()), "{found:#?}");
    assert!(texts(&found, Level::Warn).is_empty(), "{found:#?}");
    for finding in &found {
        assert!(!format!("{finding:?}").contains(&token), "{finding:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_report_refuses_a_root_token_and_a_sealed_server() {
    let api = Api::start().await;
    let stand = stand_for_devices(&api.operator()).await;
    let root = api.operator().token().to_owned();
    let found = findings(&stand, &root).await;
    let fails = texts(&found, Level::Fail);
    assert!(
        fails.contains(&"our token is a root token: whoever reads it owns Vault"),
        "{found:#?}"
    );
    assert!(!texts(&found, Level::Warn).is_empty(), "{found:#?}");
    let unknown = format!("there is no role no-such-role at auth/{}", stand.mount);
    assert!(fails.contains(&unknown.as_str()), "{found:#?}");
    api.seal(true);
    let found = findings(&stand, &root).await;
    let sealed = format!("{} is sealed", api.address());
    assert!(
        texts(&found, Level::Fail).contains(&sealed.as_str()),
        "{found:#?}"
    );
    assert!(
        found
            .iter()
            .all(|it| it.level == Level::Ok || it.mend.is_some()),
        "{found:#?}"
    );
}
