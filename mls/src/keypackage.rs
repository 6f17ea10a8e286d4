//! Our key packages: made, published as two events, deleted when a Welcome uses them.

use nostr::{Event, EventBuilder, EventId, Timestamp};
use openmls::prelude::{Extension, Extensions, KeyPackage, LastResortExtension, Lifetime};
use openmls_traits::OpenMlsProvider as _;
use rusqlite::{Connection, OptionalExtension, params};

use crate::error::{MlsError, PublishError, StoreError};
use crate::ids::UnixMs;
use crate::member::Member;
use crate::storage::{self, rows::event_id};
use crate::wire::key_package_event as wire;
use crate::wire::{
    CIPHERSUITE, KIND_KEY_PACKAGE, KIND_KEY_PACKAGE_LEGACY, LIFETIME_AFTER, LIFETIME_BEFORE,
    capabilities,
};

/// The two events to publish for one key package.
#[derive(Clone, Debug)]
pub struct KeyPackageEvents {
    /// Kind 30443; replaces the one before it under the same `d`.
    pub addressable: Event,
    /// Kind 443, for apps that look there.
    pub legacy: Event,
}

pub(crate) fn lifetime(now: UnixMs) -> Lifetime {
    let now = now.as_secs();
    Lifetime::init(
        now.saturating_sub(LIFETIME_BEFORE),
        now.saturating_add(LIFETIME_AFTER - LIFETIME_BEFORE),
    )
}

impl Member {
    /// Makes a key package, keeps its secrets, and signs the events to publish. Each call makes another;
    /// all stay usable until a Welcome used them or their lifetime ended.
    pub fn publish_key_package(
        &mut self,
        relays: &[String],
        now: UnixMs,
    ) -> Result<KeyPackageEvents, PublishError> {
        if relays.is_empty() {
            return Err(PublishError::NoRelay);
        }
        self.transact(|work| {
            let (d, created_at) = address(work.db, now)?;
            delete_expired(work.db, now)?;
            let extensions = Extensions::single(Extension::LastResort(LastResortExtension::new()))
                .map_err(MlsError::at("key package extensions"))?;
            let bundle = KeyPackage::builder()
                .key_package_extensions(extensions)
                .key_package_lifetime(lifetime(now))
                .leaf_node_capabilities(capabilities())
                .build(
                    CIPHERSUITE,
                    &work.provider,
                    &work.me.signer,
                    work.me.credential(),
                )
                .map_err(MlsError::at("key package"))?;
            let reference = wire::reference(bundle.key_package(), work.provider.crypto())?;
            let stored_as = bundle
                .key_package()
                .hash_ref(work.provider.crypto())
                .map_err(MlsError::at("key package reference"))?;
            let (content, addressable_tags, legacy_tags) =
                wire::build(bundle.key_package(), &reference, relays, &d)?;
            let sign = |kind, content: &str, tags| {
                EventBuilder::new(kind, content)
                    .tags(tags)
                    .custom_created_at(Timestamp::from_secs(created_at))
                    .sign_with_keys(&work.me.keys)
            };
            let addressable = sign(KIND_KEY_PACKAGE, &content, addressable_tags)?;
            let legacy = sign(KIND_KEY_PACKAGE_LEGACY, &content, legacy_tags)?;
            work.db
                .execute(
                    "INSERT INTO key_packages \
                     (reference, stored_as, addressable_event, legacy_event, not_after) \
                     VALUES (?1, ?2, ?3, ?4, ?5)",
                    params![
                        reference,
                        storage::key(&stored_as)?,
                        addressable.id.as_bytes(),
                        legacy.id.as_bytes(),
                        bundle.key_package().life_time().not_after(),
                    ],
                )
                .map_err(StoreError::from)?;
            Ok(KeyPackageEvents {
                addressable,
                legacy,
            })
        })
    }
}

/// Nobody may use an expired key package any more; its secrets go.
fn delete_expired(db: &Connection, now: UnixMs) -> Result<(), StoreError> {
    db.execute(
        "DELETE FROM openmls_key_packages WHERE key_package_ref IN \
         (SELECT stored_as FROM key_packages WHERE not_after <= ?1)",
        params![now.as_secs()],
    )?;
    db.execute(
        "DELETE FROM key_packages WHERE not_after <= ?1",
        params![now.as_secs()],
    )?;
    Ok(())
}

/// The `d` under which this member's key packages replace one another (random, then kept), and the `created_at` of the next: later than that of
/// the one before even within one second, because of two equally old ones a relay keeps the lower id (NIP-01), not the newer.
fn address(db: &Connection, now: UnixMs) -> Result<(String, u64), PublishError> {
    let (kept, newest): (Option<String>, u64) = db
        .query_row(
            "SELECT key_package_d, key_package_at FROM member",
            [],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )
        .map_err(StoreError::from)?;
    let d = match kept {
        Some(d) => d,
        None => {
            let mut bytes = [0_u8; 32];
            getrandom::fill(&mut bytes)?;
            hex::encode(bytes)
        }
    };
    let created_at = now.as_secs().max(newest.saturating_add(1));
    db.execute(
        "UPDATE member SET key_package_d = ?1, key_package_at = ?2",
        params![d, created_at],
    )
    .map_err(StoreError::from)?;
    Ok((d, created_at))
}

/// The events that published this key package; the row goes with the key package.
pub(crate) fn take_events(db: &Connection, reference: &[u8]) -> Result<Vec<EventId>, StoreError> {
    let row: Option<(Vec<u8>, Vec<u8>)> = db
        .query_row(
            "DELETE FROM key_packages WHERE reference = ?1 \
             RETURNING addressable_event, legacy_event",
            params![reference],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )
        .optional()?;
    match row {
        Some((addressable, legacy)) => Ok(vec![event_id(&addressable)?, event_id(&legacy)?]),
        None => Ok(Vec::new()),
    }
}
