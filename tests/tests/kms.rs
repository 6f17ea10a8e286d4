//! Secrets hashed by a key in Cloud KMS, through a real relay process: a rotation, a new pepper, and the key service away.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use axum::routing::post;
use axum::{Json, Router};
use keyturn_admin::AdminSession;
use keyturn_admin::session::{Reply, RequestError, Update};
use keyturn_proto::notify::{NotifyState, Outcome};
use keyturn_proto::{Action, ErrorClass, VersionId};
use keyturn_store::fake_kms::{Failure, FakeKms, Method};
use keyturn_store::store::Registry as _;
use keyturn_store::verifier::Which;
use keyturn_tests::steady::{Wish, carry_through};
use keyturn_tests::trail::Trail;
use keyturn_tests::verdict::{Held, Judge};
use keyturn_tests::wire::Wire;
use keyturn_tests::world::{CLIENT, deadline, reason, set};
use keyturn_tests::{World, eventually, kms};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;
use tokio::process::Command;

const PROGRAM: &str = env!("CARGO_BIN_EXE_keyturn-under-test");
const FIRST: NonZeroU64 = NonZeroU64::MIN;

/// A relay that hashes with version 1 of the server's key and logs all that it may.
async fn world(server: &FakeKms) -> World {
    World::new(PROGRAM, |config| {
        kms::configure(config, server, FIRST);
        set(config, "log", "level", "trace");
        for limit in [
            "client_requests_per_hour",
            "admin_requests_per_hour",
            "breaker_refusals",
        ] {
            set(config, "policy", limit, 100_000);
        }
    })
    .await
}

async fn key_ref(world: &World, version: VersionId) -> String {
    let client = CLIENT.parse().unwrap();
    let mut versions = world.store().versions(&client).await.unwrap();
    versions.retain(|known| known.version_id == version);
    versions.remove(0).mac_key_ref
}

async fn mac_state(web: &str) -> Option<String> {
    let answer = reqwest::get(format!("{web}/readyz")).await.ok()?;
    let body: Value = answer.json().await.ok()?;
    Some(body["checks"]["mac"]["state"].as_str()?.to_owned())
}

/// None of the secrets, in the log of a relay that logs all that it may.
fn log_is_clean(world: &World, held: &[&str]) {
    let log = world.log();
    assert!(log.contains("keyturn"), "it does log");
    for secret in held {
        assert!(!log.contains(secret), "a secret is in the log");
    }
}

/// The relay tells the group as well that the rotation is over, and of two messages in one write batch either may come first.
async fn refused_later(who: &mut AdminSession, reply: &Reply) -> ErrorClass {
    assert!(
        matches!(
            reply.answer.body,
            NotifyState::Done {
                outcome: Outcome::Canceled,
                ..
            }
        ),
        "{reply:?}"
    );
    loop {
        let update = who.next_update(deadline()).await.unwrap();
        let Some(update) = update else {
            panic!("nobody said why")
        };
        if let Update::Report { notify, .. } = update
            && notify.action_id.as_ref() == Some(&reply.action_id)
            && let NotifyState::Refused { error, .. } = notify.body
        {
            return error;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_pepper_hashes_what_is_new_and_the_old_one_goes_on_verifying() {
    let server = FakeKms::start().await.unwrap();
    let mut world = world(&server).await;
    let (relay, mut alice, mut bob, group) = world.with_group().await;
    let (_, first) = world.rotate(&mut alice, &mut bob, &group).await;
    let held = Held::default();
    held.note(&first);
    let old = first.notify.header.version_id;
    assert_eq!(key_ref(&world, old).await, server.key().version(FIRST));
    assert_eq!(
        first.notify.header.mac_key_ref,
        server.key().version(FIRST),
        "the admins see which key hashed it"
    );

    // The operator makes a new version, names it, and starts again.
    let second = server.add_version(server.key());
    tokio::task::spawn_blocking(|| relay.terminate())
        .await
        .unwrap();
    world.configure(|config| kms::configure(config, &server, second));
    let relay = world.relay().await;
    let before = server.asked().len();
    let wish = Wish::new(Action::Rotation, &group, reason("after the new pepper"));
    carry_through(world.issuer.signer(), &mut alice, &mut bob, &wish, &held).await;

    let judge = Judge::with(&world, CLIENT, kms::key(&server, second));
    let mut wire = Wire::connect(&relay.url).await;
    let new = judge
        .promoted(&mut wire, old, &wish.id, &held, "after the new pepper")
        .await;
    assert_eq!(key_ref(&world, new).await, server.key().version(second));
    assert_eq!(key_ref(&world, old).await, server.key().version(FIRST));
    let new_secret = held.secret(new);
    let old_secret = held.secret(old);
    assert_eq!(
        judge.verify(&old_secret).await,
        Some((old, Which::Previous)),
        "by version 1"
    );
    assert_eq!(
        judge.verify(&new_secret).await,
        Some((new, Which::Current)),
        "by version 2"
    );
    let asked = server.asked();
    let of = |number| {
        let name = server.key().version(number);
        asked[before..]
            .iter()
            .filter(|asked| **asked == name)
            .count()
    };
    assert!(of(FIRST) >= 1 && of(second) >= 3, "{asked:?}");

    // An instance that was not restarted yet verifies both as well.
    let late = Judge::with(&world, CLIENT, kms::key(&server, FIRST));
    assert_eq!(late.verify(&new_secret).await, Some((new, Which::Current)));
    log_is_clean(&world, &[&old_secret, &new_secret]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_key_service_is_away_nothing_changes_and_afterwards_all_goes_on() {
    let server = FakeKms::start().await.unwrap();
    let mut world = world(&server).await;
    let (relay, mut alice, mut bob, group) = world.with_group().await;
    let (_, first) = world.rotate(&mut alice, &mut bob, &group).await;
    let (old, secret) = (
        first.notify.header.version_id,
        first.notify.secret.expose().to_owned(),
    );
    eventually("the key is ready", async || {
        (mac_state(&relay.web).await? == "ready").then_some(())
    })
    .await;
    let trail = Trail::of(&world);
    let versions_before = versions(&trail);

    for failure in [Failure::Reset, Failure::Hang, Failure::CorruptMac] {
        let is_away = failure != Failure::CorruptMac;
        server.fail(failure);
        let before = server.calls(Method::Sign);
        // While the breaker is open the key service is not asked.
        while server.calls(Method::Sign) == before {
            let asked = world.ask(&mut alice, &group, Action::Rotation, reason("away"));
            let class = match asked.await {
                Err(RequestError::Refused { class, .. }) => class,
                Ok(reply) => refused_later(&mut alice, &reply).await,
                Err(error) => panic!("{error}"),
            };
            assert_eq!(class, ErrorClass::InternalError, "all that is said");
        }
        let word = if is_away {
            "mac.unavailable"
        } else {
            "mac.integrity"
        };
        let record = trail.wait("rotation.canceled", word).await;
        let judge = Judge::with(&world, CLIENT, kms::key(&server, FIRST));
        let client = judge.client().await;
        assert_eq!(client.current_version, Some(old));
        assert_eq!(
            (client.previous_version, client.active_rotation),
            (None, None)
        );
        assert_eq!(versions(&trail), versions_before, "no version was recorded");
        let cancelled = judge.rotation(&record.rotation_id.unwrap()).await.unwrap();
        assert_eq!(cancelled.outcome, Some(Outcome::Canceled));
        server.heal();
    }
    server.fail(Failure::Reset);
    // Another request finds out; what it is told was looked at above.
    let asked = world.ask(&mut alice, &group, Action::Rotation, reason("still away"));
    drop(asked.await);
    eventually("it is known to be away", async || {
        (mac_state(&relay.web).await? == "not_ready").then_some(())
    })
    .await;

    server.heal();
    eventually("it is known to be back", async || {
        (mac_state(&relay.web).await? == "ready").then_some(())
    })
    .await;
    let judge = Judge::with(&world, CLIENT, kms::key(&server, FIRST));
    assert_eq!(judge.verify(&secret).await, Some((old, Which::Current)));
    let (_, second) = world.rotate(&mut alice, &mut bob, &group).await;
    let new = second.notify.header.version_id;
    let new_secret = second.notify.secret.expose();
    assert_eq!(judge.verify(new_secret).await, Some((new, Which::Current)));
    assert_eq!(judge.verify(&secret).await, Some((old, Which::Previous)));
    log_is_clean(&world, &[&secret, new_secret]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_relay_starts_without_the_key_service_and_a_revoke_needs_none() {
    let server = FakeKms::start().await.unwrap();
    let mut world = world(&server).await;
    let (relay, mut alice, mut bob, group) = world.with_group().await;
    let (_, first) = world.rotate(&mut alice, &mut bob, &group).await;
    let secret = first.notify.secret.expose().to_owned();
    tokio::task::spawn_blocking(|| relay.terminate())
        .await
        .unwrap();
    server.fail(Failure::Reset);
    let relay = world.relay().await;
    eventually("it says what is missing", async || {
        (mac_state(&relay.web).await? == "not_ready").then_some(())
    })
    .await;
    let signed = server.calls(Method::Sign);
    assert!(signed > 1, "it did ask");
    let wish = Wish::new(Action::Revoke, &group, reason("leaked"));
    keyturn_tests::steady::insist(world.issuer.signer(), &mut alice, &wish).await;
    server.heal();
    let judge = Judge::with(&world, CLIENT, kms::key(&server, FIRST));
    assert_eq!(judge.verify(&secret).await, None);
}

fn versions(trail: &Trail) -> Vec<(String, String, String)> {
    let mut documents = trail.documents();
    documents.retain(|(table, _, _)| table == "version");
    documents
}

/// Answers for Google: hands out tokens, and listens where Cloud KMS is said to be, which nobody trusts.
struct Elsewhere {
    tokens: SocketAddr,
    /// How many were asked for.
    asked: Arc<AtomicU32>,
    service: SocketAddr,
    /// The first bytes of each connection.
    heard: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Elsewhere {
    async fn start() -> Self {
        let asked = Arc::new(AtomicU32::new(0));
        let counter = Arc::clone(&asked);
        let token = post(async move |body: String| {
            assert!(body.contains("token-exchange") && body.contains(SUBJECT));
            counter.fetch_add(1, Ordering::SeqCst);
            Json(json!({
                "access_token": TOKEN,
                "issued_token_type": "urn:ietf:params:oauth:token-type:access_token",
                "token_type": "Bearer",
                "expires_in": 3600,
            }))
        });
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let tokens = tcp.local_addr().unwrap();
        let router = Router::new().route("/token", token);
        tokio::spawn(async move { axum::serve(tcp, router).await.unwrap() });

        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let service = tcp.local_addr().unwrap();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let all = Arc::clone(&heard);
        tokio::spawn(async move {
            while let Ok((mut peer, _)) = tcp.accept().await {
                let mut bytes = vec![0; 4096];
                let length = peer.read(&mut bytes).await.unwrap_or_default();
                bytes.truncate(length);
                // Whoever gives up before it has said anything has said nothing in the clear.
                if length > 0 {
                    all.lock().unwrap().push(bytes);
                }
            }
        });
        Self {
            tokens,
            asked,
            service,
            heard,
        }
    }
}

const SUBJECT: &str = "who-this-machine-is";
const TOKEN: &str = "token-of-the-service-account";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_machines_own_credentials_are_used_and_nothing_travels_in_the_clear() {
    let server = FakeKms::start().await.unwrap();
    let elsewhere = Elsewhere::start().await;
    let world = World::new(PROGRAM, |config| {
        kms::configure(config, &server, FIRST);
        let endpoint = format!("https://{}", elsewhere.service);
        set(config, "mac", "endpoint", endpoint);
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    let (file, subject) = (dir.path().join("adc.json"), dir.path().join("subject"));
    std::fs::write(&subject, SUBJECT).unwrap();
    let credentials = json!({
        "type": "external_account",
        "audience": "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/q",
        "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
        "token_url": format!("http://{}/token", elsewhere.tokens),
        "credential_source": { "file": subject },
    });
    // What `keyturn doctor` says of the MAC key.
    let doctor = async |credentials: &Path| {
        let mut command = Command::new(PROGRAM);
        command
            .args(["doctor", "--json", "--config"])
            .arg(world.layout.config())
            .env("GOOGLE_APPLICATION_CREDENTIALS", credentials)
            .env("HOME", dir.path());
        let output = command.output().await.unwrap();
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let findings = report["findings"].as_array().unwrap().clone();
        let mac = findings.iter().filter(|finding| finding["check"] == "mac");
        mac.map(Value::to_string).collect::<String>()
    };

    // Without any nobody is asked.
    let said = doctor(&file).await;
    assert!(
        said.contains("credentials are missing, or not accepted"),
        "{said}"
    );
    assert!(elsewhere.heard.lock().unwrap().is_empty());

    std::fs::write(&file, credentials.to_string()).unwrap();
    let said = doctor(&file).await;
    assert!(said.contains("no connection"), "{said}");
    assert!(elsewhere.asked.load(Ordering::SeqCst) > 0);
    let heard = elsewhere.heard.lock().unwrap();
    assert!(!heard.is_empty());
    for bytes in heard.iter() {
        // A TLS handshake, and not a word of what would have followed it.
        assert!(bytes.starts_with(&[0x16, 0x03]), "{bytes:?}");
    }
}
