//! The story: a group, a first secret, its rotation, a device's renewal, and what was asked afterwards.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use keyturn_admin::{AdminSession, NewGroup, OpenedSecret, RequestSpec};
use keyturn_proto::notify::{NotifyState, Outcome};
use keyturn_proto::{Action, ClientId, MlsGroupId, Params, RotationId, Secret, VersionId};
use subtle::ConstantTimeEq as _;
use tokio::time::Instant;

use super::QuickstartError;
use super::checks::{judge, search, word};
use super::issuer::{DevIssuer, DevSigner};
use super::people::{CLIENT, GROUP, People, admin, at, deadline};
use super::renewal::renew;
use super::report::{Narrator, Summary};
use super::setup::Layout;
use crate::cli::serve::Served;
use crate::config::ValidatedConfig;

/// Where it takes place.
#[derive(Clone, Copy)]
pub struct Site<'a> {
    pub(super) layout: &'a Layout,
    pub(super) config: &'a ValidatedConfig,
    pub(super) served: &'a Served,
    pub(super) issuer: &'a DevIssuer,
    pub(super) broker: SocketAddr,
}

/// All of it.
pub async fn tell(
    site: &Site<'_>,
    people: People,
    narrator: &Narrator,
) -> Result<Summary, QuickstartError> {
    let Site {
        layout,
        config,
        served,
        issuer,
        broker,
    } = *site;
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
    let device = renew(config, served, broker, narrator).await?;
    lap(Some("device"), "the device's renewal, all of it");

    let secrets = [
        first.secret.expose(),
        second.secret.expose(),
        device.given[0].secret(),
        device.given[1].secret(),
    ];
    let leaks = search(layout.root(), served, device.carried, &secrets, narrator).await?;
    lap(
        Some("search"),
        &format!("plaintext found outside MLS and the device in {leaks} places"),
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
        device: device.summary,
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
pub(super) struct Rotated {
    pub(super) rotation: RotationId,
    pub(super) version: VersionId,
    pub(super) secret: Secret,
    pub(super) outcome: Outcome,
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
/// What to try next.
pub fn what_next(layout: &Layout, served: &Served, narrator: &Narrator) {
    let config = layout.config();
    let (config, alice, bob) = (config.display(), layout.home("alice"), layout.home("bob"));
    let (alice, bob) = (alice.display(), bob.display());
    narrator.line(&format!(
        "\nThe relay goes on serving. In another terminal, in this folder:\n\
         \x20 cargo run --release -- client show {CLIENT} --config {config}\n\
         \x20 cargo run --release -- device list --config {config}\n\
         \x20 cargo run --release -- doctor --config {config}\n\
         \x20 cargo run --release -p keyturn-admin -- --home {bob} watch\n\
         \x20 cargo run --release -p keyturn-admin -- --home {alice} rotate {CLIENT} --reason 'my first rotation'\n\
         \x20 curl -s {}/metrics\n\
         Stop with Ctrl-C.",
        served.web_url()
    ));
}
