//! Response wrapping with the published device: the relay never sees a secret_id, the device exchanges its token once, and a token that somebody else was
//! quicker with is noticed, reported, recorded, and of no use to the thief for long.

use keyturn_tests::eventually;
use keyturn_tests::iot::{Device, House, Mqtt};
use keyturn_tests::relay::Relay;
use keyturn_tests::vault::{Api, Fault, Stand};
use serde_json::{Value, json};

use super::{ID, PROGRAM};

const LOOKUP: &str = "sys/wrapping/lookup";
const UNWRAP: &str = "sys/wrapping/unwrap";
/// How long the device waits for an answer, and after a failure before it asks again.
const PATIENCE: [&str; 3] = ["--once", "--patience", "20"];

struct Scene {
    api: Api,
    stand: Stand,
    house: House,
    device: Device,
    /// Lives as long as the test.
    _relay: Relay,
}

impl Scene {
    /// A Vault, a relay that has its answers wrapped, and a device that signs and takes sealed commands only.
    async fn set(wrap_ttl: &str) -> Self {
        let api = Api::start().await;
        let stand = api
            .operator()
            .stand(json!({ "token_ttl": "20m", "secret_id_ttl": "12h" }))
            .await;
        let house = House::new(PROGRAM, Mqtt::V5, |config| {
            super::vault(config, &stand);
            let issuer = config["devices"]["issuer"].as_table_mut().unwrap();
            issuer.insert("wrap_ttl".to_owned(), wrap_ttl.into());
        })
        .await;
        let relay = house.relay().await;
        let mut device = house.device(ID, &relay);
        device.login = format!("{}/v1/{}", api.address(), stand.path("login"));
        let keys = device.make_keys();
        house.allow(ID, &keys).await;
        api.forget_seen();
        Self {
            api,
            stand,
            house,
            device,
            _relay: relay,
        }
    }

    fn asked(&self, path: &str) -> usize {
        let seen = self.api.seen();
        seen.iter().filter(|it| it.path == path).count()
    }

    /// What the device holds in the end works, and the relay has the proof of it; the reasons of what failed before.
    async fn ends_well(&self) -> Vec<String> {
        let doc = self.house.settled(ID).await;
        assert!(doc.current.unwrap().proven);
        let held = self.device.credential().unwrap();
        let token = self.stand.log_in(&held.role_id, &held.secret_id).await;
        assert!(token.is_some());
        let state = self.device.state();
        assert_eq!(state["candidate"], Value::Null, "a token was kept");
        // Nothing but what the device holds is alive.
        assert_eq!(self.stand.accessors().await.len(), 1);
        let trail = self.house.trail(ID).await.into_iter();
        trail
            .filter(|record| record.event == "device.failed")
            .map(|record| record.reason)
            .collect()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_published_device_exchanges_its_token_once() {
    let scene = Scene::set("5m").await;
    let said = scene.device.start(Mqtt::V5, &PATIENCE).done().await;
    assert!(
        said.iter()
            .any(|it| it["event"] == "tried" && it["works"] == true),
        "{said:?}"
    );
    assert_eq!(scene.ends_well().await, [""; 0]);
    assert_eq!((scene.asked(LOOKUP), scene.asked(UNWRAP)), (1, 1));
    let issue = scene.stand.path("role/river-iot/secret-id");
    let wrapped = scene.api.seen();
    let wrapped = wrapped.iter().find(|it| it.path == issue).unwrap();
    assert_eq!(wrapped.wrap_ttl, 300);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_somebody_else_has_used_is_reported_and_recorded() {
    let scene = Scene::set("5m").await;
    // The device cannot get through; a thief can.
    scene
        .api
        .fault(Fault::status(LOOKUP, 503, "").times(usize::MAX));
    let mut device = scene.device.start(Mqtt::V5, &PATIENCE);
    let token = eventually("a token is on its way", async || {
        (scene.asked(LOOKUP) > 0)
            .then(|| scene.api.wrapped())?
            .pop()
    })
    .await;
    let thief = scene.api.operator();
    let (status, stolen) = thief.ask_as(&token, "POST", UNWRAP, json!({})).await;
    assert!(status.is_success(), "{status} {stolen}");
    let stolen = stolen["data"]["secret_id"].as_str().unwrap().to_owned();
    scene.api.behave();

    let noticed = device.event("not_unwrapped").await;
    assert_eq!(noticed["why"], "wrapping_token_used");
    // It asks again, and is served.
    device.done().await;
    assert_eq!(scene.ends_well().await, ["wrapping_token_used"]);
    let role_id = scene.device.credential().unwrap().role_id;
    let token = scene.stand.log_in(&role_id, &stolen).await;
    assert!(token.is_none(), "the thief's secret_id lives");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_does_not_come_from_the_issuer_is_not_exchanged() {
    let scene = Scene::set("5m").await;
    scene.api.fault(Fault::garbage(
        LOOKUP,
        r#"{"data":{"creation_path":"sys/wrapping/wrap","creation_ttl":300}}"#,
    ));
    let mut device = scene.device.start(Mqtt::V5, &PATIENCE);
    let noticed = device.event("not_unwrapped").await;
    assert_eq!(noticed["why"], "wrapping_token_forged");
    assert_eq!(scene.asked(UNWRAP), 0);
    device.done().await;
    assert_eq!(scene.ends_well().await, ["wrapping_token_forged"]);
}

/// The power goes while the token is exchanged: the secret_id is lost, and nobody is suspected.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exchange_that_is_cut_off_is_told_from_theft() {
    let scene = Scene::set("5m").await;
    scene.api.fault(Fault::hang(UNWRAP).after_doing_it());
    let device = scene.device.start(Mqtt::V5, &PATIENCE);
    eventually("it is exchanging", async || {
        (scene.asked(UNWRAP) > 0).then_some(())
    })
    .await;
    device.kill().await;
    scene.api.behave();
    let mut device = scene.device.start(Mqtt::V5, &PATIENCE);
    let noticed = device.event("not_unwrapped").await;
    assert_eq!(noticed["why"], "unwrap_interrupted");
    device.done().await;
    assert_eq!(scene.ends_well().await, ["unwrap_interrupted"]);
}

/// A token that nobody has used in its time: the device was late, and suspects nobody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_came_to_its_end_is_told_from_theft() {
    let scene = Scene::set("10s").await;
    scene
        .api
        .fault(Fault::status(LOOKUP, 503, "").times(usize::MAX));
    let mut device = scene.device.start(Mqtt::V5, &PATIENCE);
    eventually("a token has come to its end", async || {
        (scene.asked(LOOKUP) > 0 && scene.api.wrapped().is_empty()).then_some(())
    })
    .await;
    scene.api.behave();
    let noticed = device.event("not_unwrapped").await;
    assert_eq!(noticed["why"], "wrapping_token_expired");
    device.done().await;
    // A slow machine may be late more than once.
    let failed = scene.ends_well().await;
    assert!(!failed.is_empty());
    assert!(
        failed.iter().all(|why| why == "wrapping_token_expired"),
        "{failed:?}"
    );
}
