//! `keyturn serve` with devices and the embedded issuer on Cloud Firestore: nothing of either on the relay's own disk.

use keyturn_store::collections::{APPROLE_ROLES, APPROLE_SECRET_IDS, AUDIT, DEVICES};
use keyturn_store::emulator::Emulator;
use keyturn_tests::iot::{Credential, House, Mqtt};
use keyturn_tests::relay::Relay;
use keyturn_tests::world::set;
use reqwest::StatusCode;
use serde_json::json;

use super::{ID, PROGRAM, connect, never_given_twice, settled};

/// Every document of a collection, as text.
async fn documents(root: &str, collection: &str) -> String {
    let answer = reqwest::Client::new()
        .get(format!("{root}/{collection}?pageSize=300"))
        .bearer_auth("owner")
        .send()
        .await
        .unwrap();
    answer.error_for_status().unwrap().text().await.unwrap()
}

/// How many of 20 logins at once are allowed, and how many are after that.
async fn logins(relay: &Relay, credential: &Credential) -> (usize, usize) {
    let http = reqwest::Client::new();
    let login = json!({ "role_id": credential.role_id, "secret_id": credential.secret_id });
    let once = async || {
        let url = format!("{}/kr/v1/approle/login", relay.web);
        let answer = http.post(url).json(&login).send().await.unwrap();
        match answer.status() {
            StatusCode::OK => true,
            StatusCode::BAD_REQUEST => false,
            other => panic!("{other}: {}", answer.text().await.unwrap()),
        }
    };
    let together = futures::future::join_all((0..20).map(|_| once())).await;
    let allowed = together.into_iter().filter(|allowed| *allowed).count();
    (allowed, usize::from(once().await))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_is_served_from_firestore_across_a_kill() {
    let emulator = Emulator::shared().await;
    let (project, endpoint) = (emulator.fresh_project(), emulator.endpoint());
    let root = format!("{endpoint}/v1/projects/{project}/databases/keyturn/documents");
    let house = House::new(PROGRAM, Mqtt::V5, |config| {
        config["store"] = toml::Table::new().into();
        set(config, "store", "kind", "firestore");
        set(config, "store", "project", project);
        set(config, "store", "endpoint", endpoint);
    })
    .await;
    let relay = house.relay().await;
    house.allow(ID, &[]).await;
    let mut device = connect(&house).await;
    let first = device.renew().await;
    device.confirm(&first).await;
    settled(&house).await;
    assert!(house.logs_in(&relay, &first.credential).await);

    tokio::task::spawn_blocking(move || relay.kill())
        .await
        .unwrap();
    let relay = house.relay().await;
    assert!(house.logs_in(&relay, &first.credential).await);
    let second = device.renew().await;
    device.confirm(&second).await;
    let doc = settled(&house).await;
    assert_eq!(first.credential.role_id, second.credential.role_id);
    assert!(!house.logs_in(&relay, &first.credential).await);
    assert!(house.logs_in(&relay, &second.credential).await);
    never_given_twice(&device);
    assert!(
        !house.world.layout.store().exists(),
        "a store on the relay's disk"
    );

    let accessor = doc.current.unwrap().accessor;
    for (collection, known) in [
        (DEVICES, ID),
        (APPROLE_ROLES, &second.credential.role_id),
        (APPROLE_SECRET_IDS, &accessor),
        (AUDIT, "approle.login"),
    ] {
        let text = documents(&root, collection).await;
        assert!(text.contains(known), "{collection}");
        for given in [&first, &second] {
            let (_, secret) = given.credential.secret_id.split_once('.').unwrap();
            assert!(!text.contains(secret), "a secret_id in {collection}");
        }
    }
    let log = house.world.log();
    for given in [&first, &second] {
        let (_, secret) = given.credential.secret_id.split_once('.').unwrap();
        assert!(!log.contains(secret));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_either_store_exactly_the_uses_that_were_given_are_allowed() {
    const USES: usize = 5;
    for firestore in [false, true] {
        let emulator = Emulator::shared().await;
        let house = House::new(PROGRAM, Mqtt::V5, |config| {
            let uses = toml::Value::from(i64::try_from(USES).unwrap());
            let issuer = config["devices"]["issuer"].as_table_mut().unwrap();
            issuer.insert("num_uses".to_owned(), uses);
            if firestore {
                config["store"] = toml::Table::new().into();
                set(config, "store", "kind", "firestore");
                set(config, "store", "project", emulator.fresh_project());
                set(config, "store", "endpoint", emulator.endpoint());
            }
        })
        .await;
        let relay = house.relay().await;
        house.allow(ID, &[]).await;
        let mut device = connect(&house).await;
        let given = device.renew().await;
        let counted = logins(&relay, &given.credential).await;
        assert_eq!(counted, (USES, 0), "firestore: {firestore}");
    }
}
