//! Who takes part: two admins with homes of their own, registered by the operator before the relay starts, and the service.

use std::time::Duration;

use keyturn_admin::clock::{Clock as _, SystemClock};
use keyturn_admin::home::{Config as HomeConfig, Home};
use keyturn_admin::{AdminSession, SessionConfig};
use keyturn_proto::{ClientId, Npub, UnixMs};
use keyturn_store::documents::ClientScope;
use nostr::Keys;
use tokio::time::Instant;

use super::QuickstartError;
use super::issuer::DevIssuer;
use super::setup::Layout;
use crate::admission::SeedKey;
use crate::cli::serve::Served;
use crate::config::ValidatedConfig;
use crate::operator::{self, admins, clients, groups};

pub(super) const CLIENT: &str = "ext-totp-svc";
pub(super) const GROUP: &str = "ops";
/// Everything here is on one machine; what takes longer will not come.
const PATIENCE: Duration = Duration::from_secs(60);
/// As in the relay's configuration: how long a commit waits for a rival.
const SETTLE: Duration = Duration::from_secs(2);

/// The two admins and the service, by key.
pub struct People {
    pub(super) alice: Keys,
    pub(super) bob: Keys,
    pub(super) service: Npub,
}

pub(super) fn at<E: std::fmt::Display>(step: &'static str) -> impl FnOnce(E) -> QuickstartError {
    move |error| QuickstartError::Step {
        step,
        cause: error.to_string(),
    }
}

pub(super) fn deadline() -> Instant {
    Instant::now() + PATIENCE
}

pub(super) fn now() -> UnixMs {
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
    let store = operator::open_store(config).await.map_err(at("store"))?;
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
        admins::enrol(store.as_ref(), &seed_key, enrolment, now)
            .await
            .map_err(at("enrol"))?;
    }
    let binding = groups::Binding {
        alias: GROUP.to_owned(),
        mls_group_id: None,
        nostr_group_id: None,
        welcomers: vec![npub(&people.alice)],
    };
    groups::bind(store.as_ref(), binding, now)
        .await
        .map_err(at("bind group"))?;
    clients::add(store.as_ref(), client, vec![GROUP.to_owned()], now)
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

pub(super) async fn admin(
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
        service_urls: vec![served.web_url()],
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
