//! The product's own core, put together from a configuration, in a real relay.
#![allow(clippy::unwrap_used)]

mod world;

use std::{fs, os::unix::fs::PermissionsExt, path::Path, sync::Arc};

use keyturn::{
    assembly::Assembly, extension::RotationExtension, host::Host, running::Keyturn,
    service::StartError,
};
use keyturn_store::mac::LocalMacKey;
use nostr::{Keys, ToBech32};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};
use world::{Client, ORDERLY, PATIENCE, config};

/// Everything an operator has to put in place before the first start.
fn prepare(dir: &Path) -> Keys {
    let identity = Keys::generate();
    let secret = |name: &str, text: &str| {
        let path = dir.join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    };
    secret("mls.key", &"07".repeat(32));
    secret("challenge.key", &"08".repeat(32));
    secret("totp.key", &"09".repeat(32));
    secret("nostr.nsec", &identity.secret_key().to_bech32().unwrap());
    LocalMacKey::create(&dir.join("mac.key")).unwrap();
    // The public key of RFC 8037, appendix A.
    let key = json!({ "kty": "OKP", "crv": "Ed25519", "kid": "k1", "alg": "EdDSA", "use": "sig",
        "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo" });
    fs::write(dir.join("jwks.json"), json!({ "keys": [key] }).to_string()).unwrap();
    identity
}

async fn start(dir: &Path) -> Result<(Keyturn, Host), Arc<StartError>> {
    let config = Arc::new(config(dir, &[]));
    let keyturn = Keyturn::start(Arc::clone(&config), Box::new(Assembly)).unwrap();
    let extension = RotationExtension::of(&keyturn);
    let host = Host::start(&config.relay, move |app| {
        extension.attach(&app)?;
        Ok(app.add_extension(extension))
    });
    let host = host.await.unwrap();
    timeout(PATIENCE, keyturn.started()).await.unwrap()?;
    Ok((keyturn, host))
}

async fn stop(keyturn: Keyturn, host: Host) {
    let deadline = Instant::now() + ORDERLY;
    tokio::task::spawn_blocking(move || keyturn.shutdown(deadline))
        .await
        .unwrap();
    host.shutdown(deadline).await;
    assert!(
        Instant::now() < deadline,
        "shutting down took longer than {ORDERLY:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn it_becomes_ready_issues_challenges_and_starts_again() {
    let dir = tempfile::tempdir().unwrap();
    let identity = prepare(dir.path());
    for _ in 0..2 {
        let (keyturn, host) = start(dir.path()).await.unwrap();
        let url = |path: &str| format!("http://{}{path}", keyturn.web_address());
        let ready: Value = timeout(PATIENCE, async {
            loop {
                let body: Value = reqwest::get(url("/readyz"))
                    .await
                    .unwrap()
                    .json()
                    .await
                    .unwrap();
                if body["ready"] == true {
                    return body;
                }
            }
        })
        .await
        .unwrap();
        for part in ["store", "mac", "mls", "jwks", "relay", "service"] {
            assert_eq!(ready["checks"][part]["state"], "ready", "{part}");
        }
        let challenges = [url("/kr/v1/challenge"), url("/kr/v1/challenge")];
        let [first, second] = challenges.map(async |url| {
            reqwest::get(url)
                .await
                .unwrap()
                .json::<Value>()
                .await
                .unwrap()
        });
        let (first, second) = (first.await, second.await);
        assert!(first["challenge"].is_string() && first["challenge"] != second["challenge"]);

        // Admins find the service member by its key packages.
        let mut client = Client::connect(&format!("ws://{}", host.address())).await;
        let author = identity.public_key().to_hex();
        client
            .send(json!(["REQ", "kp", { "kinds": [443, 30443], "authors": [author] }]))
            .await;
        assert_eq!(client.next("EVENT").await[2]["pubkey"], author);
        drop(client);
        stop(keyturn, host).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_missing_is_named() {
    for (file, part) in [
        ("mac.key", "mac"),
        ("mls.key", "mls"),
        ("nostr.nsec", "mls"),
        ("challenge.key", "admission"),
        ("totp.key", "admission"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        prepare(dir.path());
        fs::remove_file(dir.path().join(file)).unwrap();
        let keyturn =
            Keyturn::start(Arc::new(config(dir.path(), &[])), Box::new(Assembly)).unwrap();
        let error = timeout(PATIENCE, keyturn.started())
            .await
            .unwrap()
            .unwrap_err();
        assert_eq!(error.part, part, "{error}");
        assert!(error.reason.contains(file), "{error}");
    }
}
