//! A Vault that is there and does not serve: whatever ails it, the device hears that it has to come back, and when it is over there is one secret_id and no more.

use keyturn_tests::iot::{House, Mqtt};
use keyturn_tests::vault::{Api, Fault, Operator, Stand};
use serde_json::json;

use super::{ID, PROGRAM, connect, never_given_twice, settled};

/// Where issuing happens.
const ISSUE: &str = "role/river-iot/secret-id";

#[derive(Clone, Copy, Debug)]
enum Trouble {
    Sealed,
    /// The token's policy has lost what it allowed.
    Denied,
    /// It does what it is asked, and answers later than anybody waits.
    Slow,
}

impl Trouble {
    async fn begin(self, api: &Api, stand: &Stand) {
        match self {
            Self::Sealed => api.seal(true),
            Self::Denied => {
                let own = "path \"auth/token/lookup-self\" { capabilities = [\"read\"] }";
                policy(&api.operator(), stand, own).await;
            }
            Self::Slow => api.fault(Fault::hang(ISSUE).after_doing_it()),
        }
    }

    async fn end(self, api: &Api, stand: &Stand) {
        match self {
            Self::Sealed => api.seal(false),
            Self::Denied => stand.least_privileged_policy().await,
            Self::Slow => api.behave(),
        }
    }

    /// What the audit trail calls it.
    fn reason(self) -> &'static str {
        match self {
            Self::Sealed => "sealed",
            Self::Denied => "denied",
            Self::Slow => "timeout",
        }
    }
}

async fn policy(operator: &Operator, stand: &Stand, policy: &str) {
    let path = format!("sys/policies/acl/{}-issuer", stand.mount);
    operator
        .say("PUT", &path, json!({ "policy": policy }))
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_ails_the_vault_the_device_is_told_to_come_back() {
    let api = Api::start().await;
    let stand = api
        .operator()
        .stand(json!({ "token_ttl": "20m", "secret_id_ttl": "12h" }))
        .await;
    let token = stand.least_privileged_token(json!({ "ttl": "12h" })).await;
    let house = House::new(PROGRAM, Mqtt::V5, |config| {
        super::vault(config, &stand);
        stand.secret("relay-token", &token);
        let issuer = config["devices"]["issuer"].as_table_mut().unwrap();
        issuer.insert("timeout".to_owned(), "20s".into());
    })
    .await;
    let _relay = house.relay().await;
    house.allow(ID, &[]).await;
    let mut device = connect(&house).await;
    let first = device.renew().await;
    device.confirm(&first).await;
    settled(&house).await;
    let mut held = first;
    for trouble in [Trouble::Sealed, Trouble::Denied, Trouble::Slow] {
        trouble.begin(&api, &stand).await;
        let nonce = device.ask().await;
        let told = device.answer(&nonce).await.unwrap_err();
        assert_eq!(told["error"], "unavailable", "{trouble:?}: {told}");
        let pause = told["retry_after_sec"].as_u64();
        assert!(pause.is_some_and(|it| it > 0), "{trouble:?}: {told}");
        let trail = house.trail(ID).await.into_iter().rev();
        let mut failed = trail.filter(|record| record.event == "device.issue_failed");
        let reason = failed.next().unwrap().reason;
        assert_eq!(reason, trouble.reason(), "{trouble:?}");
        trouble.end(&api, &stand).await;
        // What it holds is as good as before.
        let credential = &held.credential;
        let old = (&*credential.role_id, &*credential.secret_id);
        assert!(stand.log_in(old.0, old.1).await.is_some(), "{trouble:?}");

        let new = device.renew().await;
        device.confirm(&new).await;
        settled(&house).await;
        assert_eq!(stand.accessors().await.len(), 1, "{trouble:?}");
        assert!(stand.log_in(old.0, old.1).await.is_none(), "{trouble:?}");
        held = new;
        let new = &held.credential;
        let token = stand.log_in(&new.role_id, &new.secret_id).await;
        assert!(token.is_some(), "{trouble:?}");
    }
    never_given_twice(&device);
}
