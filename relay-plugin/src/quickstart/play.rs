//! The story: two admins, one group, a first secret, its rotation, and what the verifier says before and after.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use keyturn_admin::clock::{Clock as _, SystemClock};
use keyturn_admin::home::{Config as HomeConfig, Home};
use keyturn_admin::{AdminSession, NewGroup, OpenedSecret, RequestSpec, SessionConfig};
use keyturn_proto::notify::{NotifyState, Outcome};
use keyturn_proto::{
    Action, ClientId, MlsGroupId, Npub, Params, PresentedSecret, RotationId, Secret, UnixMs,
    VersionId,
};
use keyturn_store::documents::ClientScope;
use keyturn_store::mac::local::LocalMacKey;
use keyturn_store::sqlite::SqliteStore;
use keyturn_store::store::Registry;
use keyturn_store::verifier::{Settings, Verified as Match, Verifier, VerifyError, Which};
use nostr::Keys;
use subtle::ConstantTimeEq as _;
use tokio::time::Instant;

use super::QuickstartError;
use super::issuer::{DevIssuer, DevSigner};
use super::leaks::Needles;
use super::report::{Narrator, Summary, Verified};
use super::setup::Layout;
use crate::admission::SeedKey;
use crate::cli::serve::Served;
use crate::config::ValidatedConfig;
use crate::operator::{self, admins, clients, groups};

const CLIENT: &str = "ext-totp-svc";
const GROUP: &str = "ops";
/// Everything here is on one machine; what takes longer will not come.
const PATIENCE: Duration = Duration::from_secs(60);
/// As in the relay's configuration: how long a commit waits for a rival.
const SETTLE: Duration = Duration::from_secs(1);

/// The two admins and the service, by key.
pub struct People {
    alice: Keys,
    bob: Keys,
    service: Npub,
}

fn at<E: std::fmt::Display>(step: &'static str) -> impl FnOnce(E) -> QuickstartError {
    move |error| QuickstartError::Step {
        step,
        cause: error.to_string(),
    }
}

fn deadline() -> Instant {
    Instant::now() + PATIENCE
}

fn now() -> UnixMs {
    SystemClock.now()
}

fn npub(keys: &Keys) -> Npub {
    Npub::from_bytes(keys.public_key().to_bytes())
}

/// What the operator does before the relay starts: enrol two admins, bind a group, add a client without a secret.
pub async fn register(
    layout: &Layout,
    config: &ValidatedConfig,
) -> Result<People, QuickstartError> {
    let secret = config.mls.nostr_secret_key.text()?;
    let service = Keys::parse(secret.expose()).map_err(at("service key"))?;
    let people = People {
        alice: keys(layout, "alice")?,
        bob: keys(layout, "bob")?,
        service: npub(&service),
    };
    let store = operator::open_store(config).map_err(at("store"))?;
    let seed_key = SeedKey::new(config.admission.totp_seed_key.key32()?.expose());
    let now = now();
    let client: ClientId = CLIENT.parse().map_err(at("client"))?;
    if store.client(&client).await.map_err(at("store"))?.is_some() {
        // A second run over the same directory.
        return Ok(people);
    }
    for keys in [&people.alice, &people.bob] {
        let enrolment = admins::Enrolment {
            npub: npub(keys),
            scope: ClientScope::All,
            keys: Vec::new(),
            new_seed: false,
            issuer: DevIssuer::ISSUER.to_owned(),
        };
        admins::enrol(&store, &seed_key, enrolment, now)
            .await
            .map_err(at("enrol"))?;
    }
    let binding = groups::Binding {
        alias: GROUP.to_owned(),
        mls_group_id: None,
        nostr_group_id: None,
        welcomers: vec![npub(&people.alice)],
    };
    groups::bind(&store, binding, now)
        .await
        .map_err(at("bind group"))?;
    clients::add(&store, client, vec![GROUP.to_owned()], now)
        .await
        .map_err(at("add client"))?;
    Ok(people)
}

/// The key of an admin whose home may exist from an earlier run.
fn keys(layout: &Layout, name: &str) -> Result<Keys, QuickstartError> {
    match Home::open(&layout.home(name)) {
        Ok(home) => home.keys().map_err(at("admin home")),
        Err(_) => Ok(Keys::generate()),
    }
}

async fn admin(
    layout: &Layout,
    name: &str,
    served: &Served,
    keys: Keys,
    people: &People,
) -> Result<AdminSession, QuickstartError> {
    let dir = layout.home(name);
    let relay = nostr::RelayUrl::parse(&served.relay_url()).map_err(at("relay url"))?;
    let program = std::env::current_exe()?;
    let config = HomeConfig {
        service_url: Some(served.web_url()),
        services: vec![people.service],
        welcomers: vec![npub(&people.alice)],
        proof_command: Some(format!(
            "{} dev-proof {}",
            program.display(),
            layout.issuer_key().display()
        )),
        ..HomeConfig::new(relay)
    };
    let home = match Home::open(&dir) {
        Ok(home) => home,
        Err(_) => {
            Home::create(&dir, &config, Some(keys))
                .map_err(at("admin home"))?
                .0
        }
    };
    let session = SessionConfig {
        settle: SETTLE,
        ..SessionConfig::from_home(&home, config).map_err(at("admin home"))?
    };
    AdminSession::open(session, deadline())
        .await
        .map_err(at("admin session"))
}

/// The rotation itself.
pub async fn rotate(
    layout: &Layout,
    config: &ValidatedConfig,
    served: &Served,
    issuer: &DevIssuer,
    people: People,
    narrator: &Narrator,
) -> Result<Summary, QuickstartError> {
    let mut elapsed = BTreeMap::new();
    let mut clock = Instant::now();
    let mut lap = |name: Option<&'static str>, what: &str| {
        let took = clock.elapsed();
        clock = Instant::now();
        narrator.step(took, what);
        if let Some(name) = name {
            elapsed.insert(name, u64::try_from(took.as_millis()).unwrap_or(u64::MAX));
        }
    };

    let mut alice = admin(layout, "alice", served, people.alice.clone(), &people).await?;
    let mut bob = admin(layout, "bob", served, people.bob.clone(), &people).await?;
    lap(
        None,
        &format!("relay at {}, two admins connected", served.relay_url()),
    );

    let group = match alice.find_group(Some(GROUP)) {
        Ok(group) => group,
        Err(_) => {
            for session in [&mut alice, &mut bob] {
                session
                    .publish_key_package(deadline())
                    .await
                    .map_err(at("key package"))?;
            }
            let new = NewGroup {
                name: GROUP.to_owned(),
                admins: vec![bob.npub()],
                members: vec![people.service],
            };
            alice
                .create_group(new, deadline())
                .await
                .map_err(at("create group"))?
                .id
        }
    };
    bob.sync(deadline()).await.map_err(at("join group"))?;
    served_group(&mut alice, &mut bob, &group).await?;
    lap(
        Some("group"),
        "MLS group made: alice, bob, and the service, whose own leaf is renewed and settled",
    );

    let client: ClientId = CLIENT.parse().map_err(at("client"))?;
    let first = one_rotation(
        &mut alice,
        &mut bob,
        &client,
        &group,
        issuer.signer(),
        "first secret",
    )
    .await?;
    lap(
        Some("first_secret"),
        &format!("{CLIENT} has its first secret, version {}", first.version),
    );

    let second = one_rotation(
        &mut alice,
        &mut bob,
        &client,
        &group,
        issuer.signer(),
        "quickstart",
    )
    .await?;
    lap(
        None,
        &format!(
            "rotated: version {} is current, {} is in grace",
            second.version, first.version
        ),
    );
    for (name, took) in &second.elapsed {
        narrator.line(&format!("              {took:>5} ms  {name}"));
    }

    let verified = judge(config, layout, &client, &first, &second).await?;
    lap(
        Some("verify"),
        &format!(
            "verifier: new secret {}, old secret {}, wrong secret {}",
            word(verified.current),
            word(verified.previous),
            word(verified.wrong)
        ),
    );

    alice.close().await;
    bob.close().await;
    let leaks = search(
        layout.root(),
        served,
        &[&first.secret, &second.secret],
        narrator,
    )
    .await?;
    lap(
        Some("search"),
        &format!("plaintext found outside MLS in {leaks} places"),
    );

    elapsed.extend(second.elapsed);
    let summary = Summary {
        rotation_id: second.rotation,
        client_id: client,
        old_version: first.version,
        new_version: second.version,
        outcome: second.outcome,
        verified,
        elapsed_ms: elapsed,
        plaintext_leaks: leaks,
    };
    narrator.line(if summary.holds() {
        "everything held"
    } else {
        "NOT everything held"
    });
    Ok(summary)
}

/// Waits until the service has joined and both admins have followed its self-update, so that nothing is asked of a group that is not served yet.
async fn served_group(
    alice: &mut AdminSession,
    bob: &mut AdminSession,
    group: &MlsGroupId,
) -> Result<(), QuickstartError> {
    let until = deadline();
    loop {
        let epochs = [&*alice, &*bob].map(|session| {
            session
                .groups()
                .ok()?
                .into_iter()
                .find(|g| g.id == *group)
                .map(|g| g.epoch)
        });
        // Epoch 1 is the creation; bob's and the service's self-updates follow.
        if let [Some(a), Some(b)] = epochs
            && a == b
            && a >= 3
        {
            break;
        }
        if Instant::now() >= until {
            return Err(QuickstartError::Step {
                step: "group",
                cause: "the service did not join in time".to_owned(),
            });
        }
        for session in [&mut *alice, &mut *bob] {
            session
                .next_update(until.min(Instant::now() + Duration::from_millis(100)))
                .await
                .map_err(at("group"))?;
        }
    }
    alice.ready(group, until).await.map_err(at("group"))?;
    bob.ready(group, until).await.map_err(at("group"))
}

/// What one rotation left behind.
struct Rotated {
    rotation: RotationId,
    version: VersionId,
    secret: Secret,
    outcome: Outcome,
    elapsed: BTreeMap<&'static str, u64>,
}

async fn one_rotation(
    alice: &mut AdminSession,
    bob: &mut AdminSession,
    client: &ClientId,
    group: &MlsGroupId,
    signer: &DevSigner,
    reason: &str,
) -> Result<Rotated, QuickstartError> {
    let begun = Instant::now();
    let mut elapsed = BTreeMap::new();
    let mut lap = |name| {
        elapsed.insert(
            name,
            u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
        );
    };
    let spec = RequestSpec {
        action: Action::Rotation,
        client: client.clone(),
        params: Params {
            rotation_reason: reason.to_owned(),
            ..Params::default()
        },
        action_id: None,
        group: group.clone(),
        totp: None,
    };
    let reply = alice
        .request(spec, signer, deadline())
        .await
        .map_err(at("request"))?;
    lap("1 accepted");
    let mut opened: Vec<OpenedSecret> = Vec::with_capacity(2);
    for session in [&mut *alice, &mut *bob] {
        let waiting = session
            .await_secret(&reply.action_id, deadline())
            .await
            .map_err(at("delivery"))?;
        opened.push(session.open_secret(&waiting).map_err(at("open"))?);
    }
    lap("2 opened by both");
    let (Some(of_bob), Some(of_alice)) = (opened.pop(), opened.pop()) else {
        return Err(QuickstartError::Step {
            step: "open",
            cause: "nothing was delivered".to_owned(),
        });
    };
    let [a, b] = [&of_alice, &of_bob].map(|opened| opened.notify.secret.expose().as_bytes());
    if !bool::from(a.ct_eq(b)) {
        return Err(QuickstartError::Step {
            step: "open",
            cause: "the admins hold different secrets".to_owned(),
        });
    }
    alice.ack(&of_alice, deadline()).await.map_err(at("ack"))?;
    bob.ack(&of_bob, deadline()).await.map_err(at("ack"))?;
    lap("3 acked by both");
    let done = alice
        .await_done(&reply.action_id, deadline())
        .await
        .map_err(at("promotion"))?;
    lap("4 promoted");
    let NotifyState::Done { outcome, .. } = done.body else {
        return Err(QuickstartError::Step {
            step: "promotion",
            cause: "the service did not say how it ended".to_owned(),
        });
    };
    let notify = of_bob.notify;
    Ok(Rotated {
        rotation: reply.action_id,
        version: notify.header.version_id,
        secret: notify.secret,
        outcome,
        elapsed,
    })
}

/// Asks the verifier, over the very store and key that the relay uses, about the new, the old and a wrong secret.
async fn judge(
    config: &ValidatedConfig,
    layout: &Layout,
    client: &ClientId,
    old: &Rotated,
    new: &Rotated,
) -> Result<Verified, QuickstartError> {
    let crate::config::Store::Sqlite { path } = &config.store;
    let store: Arc<SqliteStore> = Arc::new(SqliteStore::open(path).map_err(at("store"))?);
    let mac = LocalMacKey::open(&[layout.mac_key()]).map_err(at("MAC key"))?;
    let verifier = Verifier::new(store, mac, Settings::default()).map_err(at("verifier"))?;
    let wrong = Secret::generate().map_err(at("verifier"))?;
    let mut answers = Vec::with_capacity(3);
    for secret in [new.secret.expose(), old.secret.expose(), wrong.expose()] {
        let presented = PresentedSecret::new(secret);
        let source = IpAddr::V4(Ipv4Addr::LOCALHOST);
        match verifier
            .verify(client.as_str(), &presented, source, now())
            .await
        {
            Ok(matched) => answers.push(Some(matched)),
            Err(VerifyError::Refused) => answers.push(None),
            Err(error @ VerifyError::Unavailable { .. }) => return Err(at("verifier")(error)),
        }
    }
    let is = |answer: &Option<Match>, version, which| {
        *answer
            == Some(Match {
                version_id: version,
                which,
            })
    };
    Ok(Verified {
        current: is(&answers[0], new.version, Which::Current),
        previous: is(&answers[1], old.version, Which::Previous),
        wrong: answers[2].is_some(),
    })
}

const fn word(accepted: bool) -> &'static str {
    if accepted { "accepted" } else { "refused" }
}

/// Searches every file and every page of the service. Returns in how many places plaintext was found.
async fn search(
    root: &Path,
    served: &Served,
    secrets: &[&Secret],
    narrator: &Narrator,
) -> Result<usize, QuickstartError> {
    let mut pages = Vec::new();
    for page in ["metrics", "readyz", "healthz", "kr/v1/challenge"] {
        let url = format!("{}/{page}", served.web_url());
        let body = async { reqwest::get(url).await?.bytes().await };
        pages.push((page, body.await.map_err(at("search"))?));
    }
    let mut leaks = 0;
    let (mut files, mut bytes) = (0, 0);
    for secret in secrets {
        let needles = Needles::of(secret.expose());
        let searched = needles.in_files(root)?;
        (files, bytes) = (searched.files, searched.bytes);
        for path in &searched.leaks {
            narrator.line(&format!("            LEAK in {}", path.display()));
        }
        leaks += searched.leaks.len();
        for (page, _) in pages.iter().filter(|(_, body)| needles.in_bytes(body)) {
            narrator.line(&format!("            LEAK in /{page}"));
            leaks += 1;
        }
    }
    narrator.line(&format!(
        "            searched {files} files ({} KiB): store, member database, relay events, admins' homes, log; and {} pages",
        bytes / 1024,
        pages.len()
    ));
    Ok(leaks)
}

/// What to try next.
pub fn what_next(layout: &Layout, served: &Served, narrator: &Narrator) {
    let config = layout.config();
    let (config, alice, bob) = (config.display(), layout.home("alice"), layout.home("bob"));
    let (alice, bob) = (alice.display(), bob.display());
    narrator.line(&format!(
        "\nThe relay goes on serving. In another terminal, in this folder:\n\
         \x20 cargo run --release -- client show {CLIENT} --config {config}\n\
         \x20 cargo run --release -- doctor --config {config}\n\
         \x20 cargo run --release -p keyturn-admin -- --home {bob} watch\n\
         \x20 cargo run --release -p keyturn-admin -- --home {alice} rotate {CLIENT} --reason 'my first rotation'\n\
         \x20 curl -s {}/metrics\n\
         Stop with Ctrl-C.",
        served.web_url()
    ));
}
