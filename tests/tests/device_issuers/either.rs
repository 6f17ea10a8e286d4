//! Rotations and devices do not wait for each other: either works while everything that only the other one needs is away.

use std::num::NonZeroU64;

use keyturn::quickstart::issuer::DevSigner;
use keyturn_admin::RequestSpec;
use keyturn_proto::Action;
use keyturn_store::fake_kms::{Failure, FakeKms};
use keyturn_tests::iot::{House, Mqtt};
use keyturn_tests::kms;
use keyturn_tests::vault::{Api, Rvault};
use keyturn_tests::world::{CLIENT, deadline, eventually, reason, set};
use serde_json::{Value, json};

use super::{ID, Issuer, PROGRAM, connect, settled};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_rotate_while_broker_and_vault_are_away_and_devices_are_served_when_they_are_back()
{
    let mut server = Rvault::start().await;
    let stand = server
        .operator()
        .stand(json!({ "token_ttl": "20m", "secret_id_ttl": "12h" }))
        .await;
    let mut house = House::new(PROGRAM, Mqtt::V5, |config| super::vault(config, &stand)).await;
    house.broker.kill().await;
    server.kill();
    // The relay starts without both.
    let (_relay, mut alice, mut bob, group) = house.world.with_group().await;
    house.world.rotate(&mut alice, &mut bob, &group).await;
    house.world.rotate(&mut alice, &mut bob, &group).await;
    let log = house.world.log();
    assert!(
        !log.contains("connected to the broker"),
        "the broker was there"
    );

    house.allow(ID, &[]).await;
    house.broker.restart().await;
    house.until_subscribed(0).await;
    let mut device = connect(&house).await;
    // Vault is still away: the device is told to come back, and that is all.
    let nonce = device.ask().await;
    let told = device.answer(&nonce).await.unwrap_err();
    assert_eq!(told["error"], "unavailable", "{told}");
    assert!(
        told["retry_after_sec"]
            .as_u64()
            .is_some_and(|seconds| seconds > 0),
        "{told}"
    );
    house.world.rotate(&mut alice, &mut bob, &group).await;
    server.restart().await;
    let given = device.renew().await;
    device.confirm(&given).await;
    settled(&house).await;
    let Credentials { role_id, secret_id } = credentials(&given.command);
    assert!(stand.log_in(&role_id, &secret_id).await.is_some());
    assert_eq!(stand.accessors().await.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_rotate_while_the_vault_is_sealed_and_devices_are_served_when_it_is_not() {
    let server = Rvault::start().await;
    let stand = server
        .operator()
        .stand(json!({ "token_ttl": "20m", "secret_id_ttl": "12h" }))
        .await;
    let mut house = House::new(PROGRAM, Mqtt::V5, |config| super::vault(config, &stand)).await;
    let (_relay, mut alice, mut bob, group) = house.world.with_group().await;
    house.until_subscribed(0).await;
    house.allow(ID, &[]).await;
    let mut device = connect(&house).await;
    let old = device.renew().await;
    device.confirm(&old).await;
    settled(&house).await;
    let before = stand.accessors().await;

    server.seal().await;
    let nonce = device.ask().await;
    let told = device.answer(&nonce).await.unwrap_err();
    assert_eq!(told["error"], "unavailable", "{told}");
    house.world.rotate(&mut alice, &mut bob, &group).await;
    server.unseal().await;
    // Nothing was made, and nothing destroyed.
    assert_eq!(stand.accessors().await, before);

    let new = device.renew().await;
    device.confirm(&new).await;
    settled(&house).await;
    assert_eq!(stand.accessors().await.len(), 1);
    for (given, works) in [(&old, false), (&new, true)] {
        let Credentials { role_id, secret_id } = credentials(&given.command);
        let token = stand.log_in(&role_id, &secret_id).await;
        assert_eq!(token.is_some(), works);
    }
}

struct Credentials {
    role_id: String,
    secret_id: String,
}

fn credentials(command: &Value) -> Credentials {
    let text = |name: &str| command[name].as_str().unwrap().to_owned();
    Credentials {
        role_id: text("role_id"),
        secret_id: text("secret_id"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn devices_are_served_while_the_key_service_is_away() {
    let keys = FakeKms::start().await.unwrap();
    keys.fail(Failure::Reset);
    let issuer = Issuer::vault().await;
    let house = House::new(PROGRAM, Mqtt::V5, |config| {
        kms::configure(config, &keys, NonZeroU64::MIN);
        issuer.configure(config);
    })
    .await;
    let relay = house.relay().await;
    house.allow(ID, &[]).await;
    let mut device = connect(&house).await;
    for _ in 0..2 {
        let given = device.renew().await;
        device.confirm(&given).await;
        settled(&house).await;
        assert!(issuer.logs_in(&house, &relay, &given.credential).await);
    }
    assert_eq!(issuer.living(&house).await.len(), 1);
    let url = format!("{}/readyz", relay.web);
    eventually("the relay says that it has no key", async || {
        let body: Value = reqwest::get(&url).await.ok()?.json().await.ok()?;
        (body["checks"]["mac"]["state"] == "not_ready").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn devices_are_served_while_nobody_is_listened_to_about_rotations() {
    let api = Api::start().await;
    let stand = api
        .operator()
        .stand(json!({ "token_ttl": "20m", "secret_id_ttl": "12h" }))
        .await;
    let mut house = House::new(PROGRAM, Mqtt::V5, |config| {
        super::vault(config, &stand);
        set(config, "policy", "breaker_refusals", 1);
        set(config, "policy", "breaker_pause", "1h");
    })
    .await;
    let (_relay, mut alice, _bob, group) = house.world.with_group().await;
    house.until_subscribed(0).await;
    let spec = || RequestSpec {
        action: Action::Rotation,
        client: CLIENT.parse().unwrap(),
        params: reason("test"),
        action_id: None,
        group: group.clone(),
        totp: None,
    };
    // A proof that somebody else has signed: refused, and then she is not listened to.
    let forger = DevSigner::generate().unwrap();
    let refused = alice.request(spec(), &forger, deadline()).await;
    assert!(refused.is_err(), "a forged proof was taken");
    let refused = alice
        .request(spec(), house.world.issuer.signer(), deadline())
        .await;
    assert!(refused.is_err(), "the breaker is not open");
    let store = house.world.operator().await;
    eventually("the breaker is open", async || {
        let trail = store.read(None, usize::MAX).await.unwrap();
        trail
            .iter()
            .any(|record| record.reason == "limits.breaker_open")
            .then_some(())
    })
    .await;

    house.allow(ID, &[]).await;
    let mut device = connect(&house).await;
    let given = device.renew().await;
    device.confirm(&given).await;
    settled(&house).await;
    let Credentials { role_id, secret_id } = credentials(&given.command);
    assert!(stand.log_in(&role_id, &secret_id).await.is_some());
}
