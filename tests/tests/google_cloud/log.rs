//! Every log at TRACE, both client libraries told to talk, calls to both that go wrong in many ways: no secret, hash, payload, proof or text of a server is
//! in the log, in the metrics, or in a file.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use keyturn::quickstart::issuer::DevSigner;
use keyturn_admin::session::{Reply, RequestError};
use keyturn_admin::{AdminSession, OpenedSecret, ProofError, ProofSource, RequestSpec};
use keyturn_proto::canonical::mac_input;
use keyturn_proto::proof::ProofRequest;
use keyturn_proto::request::Bearer;
use keyturn_proto::{Action, MlsGroupId, RotationId, VersionId};
use keyturn_store::fake_kms::{Failure, FakeKms, Method};
use keyturn_tests::hunt::{Place, Wanted, hunt};
use keyturn_tests::world::{CLIENT, deadline, now, open_and_ack, reason};
use keyturn_tests::{World, eventually};
use serde_json::Value;
use tokio::time::Instant;

use super::proxy::Fault;

const PROGRAM: &str = env!("CARGO_BIN_EXE_keyturn-under-test");
/// More faults than there are calls before they are taken back.
const ALL: usize = 10_000;
/// Somebody who asks while the store is away may never be answered.
const UNANSWERED: Duration = Duration::from_secs(12);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_google_was_sent_is_in_a_log() {
    let server = FakeKms::start().await.unwrap();
    let wrapped = tempfile::tempdir().unwrap();
    let (mut world, proxy) = super::world(&talkative(wrapped.path()), &server, |config| {
        let level = "trace,firestore=trace,gcloud_sdk=trace,google_cloud_kms_v1=trace,h2=trace";
        config["log"]["level"] = level.into();
    })
    .await;
    let (relay, mut alice, mut bob, group) = world.with_group().await;
    let given = Given::default();
    let mut wanted = vec![payload_to_kms()];
    let mut rotations = Vec::new();

    // All is well.
    let asked = ask(&world, &mut alice, &group, &given, deadline()).await;
    let (id, opened) = finish(asked.unwrap(), &mut alice, &mut bob).await;
    wanted.extend(of_secret("first", &opened));
    rotations.push(id);

    // Cloud KMS refuses, repeats what it was sent, talks nonsense, or is gone: no rotation.
    let denied = Failure::Status {
        http: 403,
        code: "PERMISSION_DENIED",
        retry_after: None,
    };
    for failure in [
        Failure::Echo,
        Failure::Garbage,
        Failure::Truncated,
        Failure::CorruptMac,
        denied,
        Failure::Reset,
    ] {
        mac_is_ready(&relay.web).await;
        let before = server.calls(Method::Sign);
        server.fail(failure.clone());
        let until = deadline();
        // While the breaker is open the key service is not asked.
        while server.calls(Method::Sign) == before {
            assert!(Instant::now() < until, "{failure:?} is not met");
            let asked = ask(&world, &mut alice, &group, &given, deadline()).await;
            assert!(ended_badly(&asked), "{failure:?}");
        }
        server.heal();
    }
    mac_is_ready(&relay.web).await;

    // Firestore answers late, wrongly, or not, and the rotation goes its way.
    proxy.next_commits([Fault::AnswerLost, Fault::Status(14), Fault::CallLost]);
    proxy.next_reads([Fault::Status(14)]);
    let asked = ask(&world, &mut alice, &group, &given, deadline()).await;
    let (id, opened) = finish(asked.unwrap(), &mut alice, &mut bob).await;
    wanted.extend(of_secret("second", &opened));
    rotations.push(id);

    // Firestore refuses everything, then is gone.
    for fault in [Fault::Status(7), Fault::Status(3), Fault::CallLost] {
        let before = proxy.commits();
        proxy.next_commits([fault; ALL]);
        let until = Instant::now() + UNANSWERED;
        let asked = ask(&world, &mut alice, &group, &given, until).await;
        assert!(ended_badly(&asked), "{fault:?}");
        assert!(proxy.commits() > before, "{fault:?} was met");
        proxy.next_reads([fault; ALL]);
        let commits = proxy.commits();
        eventually("the lease was asked for in vain", async || {
            (proxy.commits() > commits || !ready(&relay.web).await?).then_some(())
        })
        .await;
        proxy.heal();
        eventually("it is back", async || {
            ready(&relay.web).await?.then_some(())
        })
        .await;
        // What could be neither granted nor refused on record was kept, and is carried out now.
        if let Err(RequestError::NoAnswer(id)) = asked {
            let (id, opened) = carried_out(id, &mut alice, &mut bob).await;
            wanted.extend(of_secret("kept", &opened));
            rotations.push(id);
        }
    }

    // And all is well again.
    let asked = ask(&world, &mut alice, &group, &given, deadline()).await;
    let (id, opened) = finish(asked.unwrap(), &mut alice, &mut bob).await;
    wanted.extend(of_secret("third", &opened));
    rotations.push(id);

    wanted.extend(stored(&world, &rotations).await);
    wanted.extend(given.wanted());
    let metrics = reqwest::get(format!("{}/metrics", relay.web)).await;
    let metrics = metrics.unwrap().bytes().await.unwrap();
    alice.close().await;
    bob.close().await;
    tokio::task::spawn_blocking(move || relay.terminate())
        .await
        .unwrap();

    let log = world.log();
    assert!(
        !log.contains("CANARY-STATUS"),
        "what a server said is in the log"
    );
    let ids: Vec<String> = rotations.iter().map(ToString::to_string).collect();
    let mut known: Vec<&str> = ids.iter().map(String::as_str).collect();
    // The level was raised: it is "info" when nobody asks for more.
    known.extend(["DEBUG", "firestore: refused", "integrity", "denied"]);
    let mut places = vec![
        Place::new("log", log, &known),
        Place::new("metrics", metrics, &["keyturn_firestore_commits_total"]),
    ];
    files(world.dir.path(), &mut places);
    hunt(&wanted, &places, |_, _| false);
}

/// The program with every variable set that makes libraries talk.
fn talkative(dir: &Path) -> String {
    let path = dir.join("talkative");
    let script = format!(
        "#!/bin/sh\nexport RUST_LOG=trace RUST_BACKTRACE=full GOOGLE_CLOUD_RUST_LOGGING=true\nexec '{PROGRAM}' \"$@\"\n"
    );
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
    path.to_str().unwrap().to_owned()
}

async fn ask(
    world: &World,
    who: &mut AdminSession,
    group: &MlsGroupId,
    given: &Given,
    until: Instant,
) -> Result<Reply, RequestError> {
    let spec = RequestSpec {
        action: Action::Rotation,
        client: CLIENT.parse().unwrap(),
        params: reason("nothing of it in a log"),
        action_id: None,
        group: group.clone(),
        totp: None,
    };
    let issuer = Recording(world.issuer.signer(), given);
    who.request(spec, &issuer, until).await
}

/// Both open and ack; over.
async fn finish(
    reply: Reply,
    alice: &mut AdminSession,
    bob: &mut AdminSession,
) -> (RotationId, OpenedSecret) {
    carried_out(reply.action_id, alice, bob).await
}

async fn carried_out(
    id: RotationId,
    alice: &mut AdminSession,
    bob: &mut AdminSession,
) -> (RotationId, OpenedSecret) {
    let opened = open_and_ack(alice, &id).await;
    open_and_ack(bob, &id).await;
    alice.await_done(&id, deadline()).await.unwrap();
    (id, opened)
}

/// Refused, not answered, or ended without a secret; of two messages in one batch either may come first.
fn ended_badly(asked: &Result<Reply, RequestError>) -> bool {
    use keyturn_proto::notify::{NotifyState, Outcome};
    asked.as_ref().map_or(true, |reply| {
        matches!(
            reply.answer.body,
            NotifyState::Done {
                outcome: Outcome::Canceled,
                ..
            }
        )
    })
}

async fn checks(web: &str) -> Option<Value> {
    reqwest::get(format!("{web}/readyz"))
        .await
        .ok()?
        .json()
        .await
        .ok()
}

async fn ready(web: &str) -> Option<bool> {
    checks(web).await?["ready"].as_bool()
}

async fn mac_is_ready(web: &str) {
    eventually("the key is ready", async || {
        (checks(web).await?["checks"]["mac"]["state"] == "ready").then_some(())
    })
    .await;
}

/// What every payload to Cloud KMS for this client begins with, as it goes over the wire: also those of secrets that nobody ever saw.
fn payload_to_kms() -> Wanted {
    let version = VersionId::generate(now()).unwrap();
    let payload = mac_input(&CLIENT.parse().unwrap(), &version, "");
    let name = version.to_string();
    let at = payload
        .windows(name.len())
        .position(|window| window == name.as_bytes())
        .unwrap();
    // In whole groups of three, so that what follows changes nothing.
    Wanted::text("payload to KMS", &STANDARD.encode(&payload[..at / 3 * 3]))
}

fn of_secret(which: &str, opened: &OpenedSecret) -> [Wanted; 2] {
    let notify = &opened.notify;
    [
        Wanted::text(&format!("the {which} secret"), notify.secret.expose()),
        Wanted::text(
            &format!("hash of the {which}"),
            &notify.header.secret_hash.to_string(),
        ),
    ]
}

/// What lies in Firestore and is nobody's business: hashes, and the keys that acks are proven with.
async fn stored(world: &World, rotations: &[RotationId]) -> Vec<Wanted> {
    let store = world.operator().await;
    let mut wanted = Vec::new();
    let mut hashes = BTreeSet::new();
    for version in store.versions(&CLIENT.parse().unwrap()).await.unwrap() {
        wanted.push(Wanted::text("a stored hash", &version.secret_hash));
        let key = version.ack_public_key.unwrap();
        wanted.push(Wanted::text("an ack key", &key));
        hashes.insert(version.secret_hash);
    }
    assert!(hashes.len() >= rotations.len(), "{} hashes", hashes.len());
    wanted
}

/// The proofs that were given.
#[derive(Default)]
struct Given(Mutex<Vec<Bearer>>);

impl Given {
    /// The parts of each that are not the same in all.
    fn wanted(&self) -> Vec<Wanted> {
        let given = self.0.lock().unwrap();
        assert!(given.len() > 9, "{} proofs", given.len());
        given
            .iter()
            .flat_map(|proof| proof.expose().split('.').skip(1).collect::<Vec<_>>())
            .map(|part| Wanted::text("part of a proof", part))
            .collect()
    }
}

/// An issuer that remembers.
struct Recording<'a>(&'a DevSigner, &'a Given);

#[async_trait]
impl ProofSource for Recording<'_> {
    async fn prove(&self, request: &ProofRequest) -> Result<Bearer, ProofError> {
        let proof = self.0.prove(request).await?;
        self.1.0.lock().unwrap().push(proof.clone());
        Ok(proof)
    }
}

/// Every file of the world, as it is.
fn files(path: &Path, places: &mut Vec<Place>) {
    if path.is_dir() {
        for entry in std::fs::read_dir(path).unwrap() {
            files(&entry.unwrap().path(), places);
        }
        return;
    }
    places.push(Place::new(
        path.display().to_string(),
        std::fs::read(path).unwrap(),
        &[],
    ));
}
