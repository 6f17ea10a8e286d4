//! No error and no log line holds a piece of a credential, ours or a device's, nor what a server said.

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use keyturn::devices::issuer::{IssueRequest, NonceHash, SecretIdIssuer as _};
use keyturn_tests::vault::{Api, Fault};
use serde_json::json;
use tracing_subscriber::layer::SubscriberExt as _;

use super::behaviour::{failure, good, issuer, request, secret_id, stand_for_devices};

const ISSUE: &str = "river-iot/secret-id";
/// What a server could say.
const TELLTALE: &str = "telltale-0f3b";

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

/// Everything at TRACE, the HTTP client's own words included. One thread, so that the subscriber sees it all.
#[tokio::test(flavor = "current_thread")]
async fn nothing_of_a_credential_is_logged_or_said() {
    let log = Log::default();
    let writer = log.clone();
    let layer = tracing_subscriber::fmt::layer().with_writer(move || writer.clone());
    let subscriber = tracing_subscriber::registry().with(layer);
    let _guard = tracing::subscriber::set_default(subscriber);
    tracing::trace!("the log is looked at");

    let api = Api::start().await;
    let stand = stand_for_devices(&api.operator()).await;
    stand.least_privileged_policy().await;
    let policy = format!("{}-issuer", stand.mount);
    let auth = stand
        .own_login(json!({ "token_ttl": "1h", "token_policies": [policy] }))
        .await;
    let own = match &auth {
        keyturn::devices::issuer::vault::VaultAuth::AppRole { secret_id, .. } => {
            std::fs::read_to_string(secret_id.path().unwrap()).unwrap()
        }
        keyturn::devices::issuer::vault::VaultAuth::Token(_) => unreachable!(),
    };
    let mut settings = stand.settings_as(auth);
    settings.timeout = Duration::from_secs(5);
    let issuer = issuer(settings);
    let nonce = NonceHash::of("leaks");
    let mut secrets = vec![own, TELLTALE.to_owned()];

    let issued = good(issuer.issue(request(&stand.role, &nonce)).await);
    secrets.push(secret_id(&issued).to_owned());
    let wrapping = IssueRequest {
        wrap_ttl: Some(Duration::from_secs(60)),
        ..request(&stand.role, &nonce)
    };
    let wrapped = good(issuer.issue(wrapping).await);
    secrets.push(wrapped.credential.text().expose().to_owned());

    let mut said = String::new();
    for fault in [
        Fault::status(ISSUE, 400, r#"{"errors":["telltale-0f3b"]}"#),
        Fault::status(ISSUE, 500, r#"{"errors":["telltale-0f3b"]}"#),
        Fault::garbage(ISSUE, r#"{"data":{"secret_id":["telltale-0f3b"]}}"#),
        Fault::garbage(
            ISSUE,
            r#"{"data":{"secret_id":"telltale-0f3b","secret_id_accessor":""}}"#,
        ),
        Fault::garbage(
            ISSUE,
            r#"{"data":{"secret_id":"telltale-0f3b","secret_id_accessor":"a","secret_id_ttl":"x"}}"#,
        ),
        Fault::garbage(ISSUE, "telltale-0f3b"),
        Fault::hang(ISSUE),
        Fault::reset(ISSUE),
    ] {
        api.fault(fault);
        let error = failure(issuer.issue(request(&stand.role, &nonce)).await);
        said.push_str(&format!("{error} {error:?}\n"));
    }
    secrets.extend(
        api.tokens()
            .into_iter()
            .filter(|token| !token.contains("root")),
    );
    let log = log.text();
    assert!(log.contains("the log is looked at"));
    assert!(log.contains("a call to the issuer failed"), "{log}");
    for secret in secrets {
        assert!(secret.len() > 8);
        assert!(!said.contains(&secret), "{said}");
        assert!(!log.contains(&secret), "in the log: {secret}");
    }
}
