//! Our own issuer, for deployments without Vault: roles and secret_ids in the document store, hashed under the MAC key, checked by [`login`].
//!
//! What must always hold: the secret_id leaves this process once, in the answer to the device, and is stored as a MAC only; what has ended is refused before it is
//! purged. A secret_id is `<accessor>.<secret>`: the accessor finds its document, and is no secret.

pub mod login;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use keyturn_proto::derive::prefilter;
use keyturn_proto::{ClientId, Secret, UnixMs, VersionId};
use keyturn_store::approle::{AppRoleDoc, AppRoleStore, SecretIdDoc};
use keyturn_store::mac::{MacError, MacKey, Maced};
use keyturn_store::store::StoreError;
use tokio_util::sync::{CancellationToken, DropGuard};
use zeroize::Zeroizing;

use super::{
    Accessor, Credential, CredentialText, Destroyed, Found, Intent, IssueRequest, Issued,
    IssuerError, Reason, RoleName, SecretIdIssuer,
};
use crate::rotation::audit::Entry;
use crate::rotation::ports::Clock;

/// [`SecretIdIssuer::name`].
pub const NAME: &str = "embedded";
/// How often what has ended is removed.
const PURGE_EVERY: Duration = Duration::from_secs(60);
/// Most documents removed in one transaction.
const PURGE_AT_ONCE: usize = 500;
/// After the store or the key failed.
const RETRY: Duration = Duration::from_secs(5);

/// What the issuer stands on.
#[derive(Clone)]
pub struct Parts {
    /// Roles and secret_ids.
    pub store: Arc<dyn AppRoleStore>,
    /// Hashes them.
    pub mac: Arc<dyn MacKey>,
    /// Time.
    pub clock: Arc<dyn Clock>,
}

/// The embedded issuer. Purges what has ended until it is dropped.
pub struct EmbeddedIssuer {
    parts: Parts,
    /// Ids of roles never change.
    role_ids: Mutex<HashMap<RoleName, String>>,
    _purging: DropGuard,
}

impl EmbeddedIssuer {
    /// Needs a runtime.
    #[must_use]
    pub fn start(parts: Parts) -> Self {
        let stopping = CancellationToken::new();
        tokio::spawn(purge(parts.clone(), stopping.clone()));
        Self {
            parts,
            role_ids: Mutex::default(),
            _purging: stopping.drop_guard(),
        }
    }

    /// The role's id; the first issue under a role makes it.
    async fn role_id(&self, role: &RoleName) -> Result<String, IssuerError> {
        let known = self.known().get(role).cloned();
        if let Some(known) = known {
            return Ok(known);
        }
        let now = self.parts.clock.now();
        let mut random = [0; 16];
        getrandom::fill(&mut random).map_err(|_| random_failed())?;
        let fresh = AppRoleDoc {
            role: role.to_string(),
            role_id: hex::encode(random),
            created_at: now,
        };
        let record = Entry::by_relay(now, "approle.role_created", role.as_str()).done();
        let made = self.parts.store.ensure_role(fresh, record).await;
        // A repeat finds what a lost answer made.
        let doc = made.map_err(|error| store_failed(&error).harmless())?;
        self.known().insert(role.clone(), doc.role_id.clone());
        Ok(doc.role_id)
    }

    fn known(&self) -> std::sync::MutexGuard<'_, HashMap<RoleName, String>> {
        self.role_ids.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fresh(&self, role: &RoleName) -> Result<Fresh, IssuerError> {
        let now = self.parts.clock.now();
        Ok(Fresh {
            now,
            accessor: VersionId::generate(now).map_err(|_| random_failed())?,
            secret: Secret::generate().map_err(|_| random_failed())?,
            owner: mac_owner(role.as_str()).ok_or(IssuerError::Permanent {
                why: Reason::UnknownRole,
            })?,
        })
    }
}

/// A secret_id that nobody knows of yet.
struct Fresh {
    now: UnixMs,
    accessor: VersionId,
    secret: Secret,
    owner: ClientId,
}

impl Fresh {
    /// What the device is sent, and what is stored.
    fn finish(
        self,
        request: &IssueRequest<'_>,
        role_id: String,
        maced: Maced,
    ) -> Result<(Issued, SecretIdDoc), IssuerError> {
        let Self {
            now,
            accessor,
            secret,
            ..
        } = self;
        let doc = SecretIdDoc {
            accessor,
            role: request.role.to_string(),
            device: request.device.to_owned(),
            nonce_hash: request.nonce.to_string(),
            secret_hash: maced.hash.as_str().to_owned(),
            mac_key_ref: maced.key_ref,
            prefilter: hex::encode(prefilter(secret.expose())),
            created_at: now,
            expires_at: now.plus(request.ttl),
            uses_left: (request.num_uses > 0).then_some(request.num_uses),
            cidrs: request.cidrs.iter().map(ToString::to_string).collect(),
        };
        let issued = Issued {
            role_id,
            credential: Credential::SecretId(compose(&accessor, &secret)),
            accessor: name(&accessor)?,
            ttl: request.ttl,
        };
        Ok((issued, doc))
    }
}

#[async_trait]
impl SecretIdIssuer for EmbeddedIssuer {
    fn name(&self) -> &str {
        NAME
    }

    async fn issue(&self, request: IssueRequest<'_>) -> Result<Issued, IssuerError> {
        if request.wrap_ttl.is_some() {
            return Err(IssuerError::Permanent {
                why: Reason::Unsupported,
            });
        }
        let role_id = self.role_id(request.role).await?;
        let fresh = self.fresh(request.role)?;
        let (owner, secret) = (&fresh.owner, fresh.secret.expose());
        let maced = self.parts.mac.sign(owner, &fresh.accessor, secret).await;
        let maced = maced.map_err(|error| mac_failed(&error))?;
        let (issued, doc) = fresh.finish(&request, role_id, maced)?;
        let added = self.parts.store.add_secret_id(doc).await;
        added.map_err(|error| store_failed(&error))?;
        Ok(issued)
    }

    fn makes_at_once(&self) -> bool {
        self.parts.mac.here().is_some()
    }

    fn make_at_once(&self, request: IssueRequest<'_>) -> Option<(Issued, SecretIdDoc)> {
        if request.wrap_ttl.is_some() {
            return None;
        }
        // The first one of a role makes it, in a commit of its own.
        let role_id = self.known().get(request.role).cloned()?;
        let fresh = self.fresh(request.role).ok()?;
        let (owner, secret) = (&fresh.owner, fresh.secret.expose());
        let maced = self
            .parts
            .mac
            .here()?
            .sign_now(owner, &fresh.accessor, secret);
        fresh.finish(&request, role_id, maced).ok()
    }

    async fn destroy(
        &self,
        role: &RoleName,
        accessor: &Accessor,
    ) -> Result<Destroyed, IssuerError> {
        let Ok(accessor) = accessor.as_str().parse::<VersionId>() else {
            return Err(IssuerError::Permanent {
                why: Reason::AnotherIssuer,
            });
        };
        let destroyed = self.parts.store.destroy_secret_id(role.as_str(), &accessor);
        match destroyed.await {
            Ok(true) => Ok(Destroyed::Now),
            Ok(false) => Ok(Destroyed::AlreadyGone),
            Err(error) => Err(store_failed(&error).harmless()),
        }
    }

    async fn find(
        &self,
        role: &RoleName,
        intents: &[Intent],
        known: &[Accessor],
    ) -> Result<Vec<Found>, IssuerError> {
        let hashes: Vec<String> = intents.iter().map(|it| it.nonce.to_string()).collect();
        let intents: HashSet<&Intent> = intents.iter().collect();
        let now = self.parts.clock.now();
        let found = self
            .parts
            .store
            .secret_ids_for(role.as_str(), &hashes, now)
            .await;
        let found = found.map_err(|error| store_failed(&error).harmless())?;
        let damaged = |_| IssuerError::Permanent { why: Reason::Store };
        let mut all = Vec::with_capacity(found.len());
        for doc in found {
            let found = Found {
                accessor: name(&doc.accessor)?,
                intent: Intent {
                    nonce: doc.nonce_hash.parse().map_err(damaged)?,
                    device: doc.device,
                },
            };
            if intents.contains(&found.intent) && !known.contains(&found.accessor) {
                all.push(found);
            }
        }
        Ok(all)
    }

    async fn health(&self) -> Result<(), IssuerError> {
        let asked = self.parts.store.role_by_id("").await;
        asked
            .map(drop)
            .map_err(|error| store_failed(&error).harmless())
    }
}

/// Removes what has ended, in small transactions, until `stopping`.
async fn purge(parts: Parts, stopping: CancellationToken) {
    loop {
        let now = parts.clock.now();
        let pause = match parts.store.purge_secret_ids(now, PURGE_AT_ONCE).await {
            // More may be waiting; others get their turn in between.
            Ok(PURGE_AT_ONCE) => Duration::from_millis(50),
            Ok(_) => PURGE_EVERY,
            Err(error) => {
                tracing::warn!(%error, "ended secret_ids could not be removed");
                PURGE_EVERY
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stopping.cancelled() => return,
        }
    }
}

/// Whose version an accessor is in the MAC; no client can be registered under a name with this prefix and mean the same MAC, for accessors are unique.
fn mac_owner(role: &str) -> Option<ClientId> {
    format!("keyturn-approle:{role}").parse().ok()
}

fn compose(accessor: &VersionId, secret: &Secret) -> CredentialText {
    let accessor = accessor.to_string();
    // Never grows, so that no copy stays behind.
    let length = accessor.len() + 1 + secret.expose().len();
    let mut text = Zeroizing::new(String::with_capacity(length));
    text.push_str(&accessor);
    text.push('.');
    text.push_str(secret.expose());
    CredentialText::new(text)
}

fn name(accessor: &VersionId) -> Result<Accessor, IssuerError> {
    let text = accessor.to_string().parse();
    text.map_err(|_| IssuerError::Permanent { why: Reason::Store })
}

fn random_failed() -> IssuerError {
    IssuerError::Permanent {
        why: Reason::Random,
    }
}

fn mac_failed(error: &MacError) -> IssuerError {
    let why = Reason::MacKey;
    match error {
        MacError::Unavailable {
            retryable: true, ..
        } => IssuerError::Retryable { why, after: RETRY },
        _ => IssuerError::Permanent { why },
    }
}

fn store_failed(error: &StoreError) -> IssuerError {
    let (why, after) = (Reason::Store, RETRY);
    match error {
        StoreError::Unavailable { .. } => IssuerError::Retryable { why, after },
        StoreError::Unknown { .. } => IssuerError::InDoubt { why, after },
        _ => IssuerError::Permanent { why },
    }
}

#[cfg(test)]
mod tests;
