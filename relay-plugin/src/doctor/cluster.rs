//! `[cluster]`: that the peers' relays answer, and that each sibling has signed a key package that can be found there.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use keyturn_admin::clock::SystemClock;
use keyturn_admin::transport::{Connection, RelayError};
use keyturn_mls::verify_key_package;
use keyturn_proto::{Npub, UnixMs, kinds};
use nostr::{Event, Filter, Keys, Kind, PublicKey, RelayUrl};
use tokio::time::Instant;

use super::{Report, Subject};

const CHECK: &str = "cluster";
/// How long a peer may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

pub(super) async fn check(subject: Subject<'_>, report: &mut Report) {
    let cluster = &subject.config.cluster;
    if cluster.siblings.is_empty() {
        return;
    }
    let nsec = subject.config.mls.nostr_secret_key.text().ok();
    let Some(keys) = nsec.and_then(|text| Keys::parse(text.expose()).ok()) else {
        return report.warn(
            CHECK,
            "the peers were not asked, because our own key cannot be had",
            "see the findings about secrets",
        );
    };
    if cluster
        .siblings
        .contains(&Npub::from_bytes(keys.public_key().to_bytes()))
    {
        report.fail(
            CHECK,
            "cluster.siblings names this very instance",
            "list the others",
        );
    }
    let mut proven = HashSet::new();
    for url in &cluster.peers {
        match packages(url, &keys, &cluster.siblings).await {
            Ok(events) => {
                report.ok(CHECK, format!("{url} answers"));
                proven.extend(signers(&events, subject.now));
            }
            Err(error) => report.fail(
                CHECK,
                format!("{url}: {error}"),
                "check cluster.peers, that this relay runs, and that it lets its siblings read",
            ),
        }
    }
    for sibling in &cluster.siblings {
        if proven.contains(sibling) {
            report.ok(CHECK, format!("{sibling} has signed its key"));
        } else {
            report.warn(
                CHECK,
                format!("no key package signed by sibling {sibling} was found at the peers"),
                "start that instance, and compare the npub with the one that its doctor names",
            );
        }
    }
}

async fn packages(url: &str, keys: &Keys, of: &[Npub]) -> Result<Vec<Event>, RelayError> {
    let address = RelayUrl::parse(url).map_err(|error| RelayError::Client(error.to_string()))?;
    let connection = Connection::open(&address, keys, PATIENCE, Arc::new(SystemClock)).await?;
    let authors = of
        .iter()
        .filter_map(|npub| PublicKey::from_slice(npub.as_bytes()).ok());
    let wanted = Filter::new()
        .kinds([kinds::KEY_PACKAGE, kinds::KEY_PACKAGE_LEGACY].map(Kind::from_u16))
        .authors(authors);
    let found = connection
        .fetch_all(&wanted, Instant::now() + PATIENCE)
        .await;
    connection.close().await;
    found
}

/// Who has signed one that is valid.
fn signers(events: &[Event], now: UnixMs) -> HashSet<Npub> {
    events
        .iter()
        .filter(|event| verify_key_package(event, now).is_ok())
        .map(|event| Npub::from_bytes(event.pubkey.to_bytes()))
        .collect()
}
