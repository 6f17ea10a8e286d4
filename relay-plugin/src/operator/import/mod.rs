//! Bringing in a client together with the secret that it has today, so that a running system can move over without a new secret on day one.
//!
//! What must always hold:
//! - the secret, or its bcrypt hash, is hashed under the MAC key and forgotten: it reaches no store, log, error or report;
//! - nothing is derived from it that only generated secrets have (protocol.md §5, §7): no prefilter, no ack key;
//! - repeating an import changes nothing. What is there already with the same content is fine; anything else is a refusal that says what differs;
//! - an import never touches a client that exists.

pub mod lines;
mod material;

pub use material::{Material, MaterialError};

use keyturn_proto::{ClientId, UnixMs, VersionId};
use keyturn_store::documents::{
    ClientDoc, ClientStatus, Origin, PolicyOverrides, VersionDoc, VersionState,
};
use keyturn_store::mac::{MacError, MacKey, SecretHash};
use keyturn_store::store::{Store, StoreError};
use tokio::sync::OnceCell;

use super::{about_client, audit};

/// One client to bring in.
pub struct Entry {
    /// Its id.
    pub client_id: ClientId,
    /// Aliases of the groups that may rotate it and will read its secrets.
    pub groups: Vec<String>,
    /// What it has today.
    pub material: Material,
}

/// What became of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Imported {
    /// It is registered now.
    Now(VersionId),
    /// It was imported before, with the same groups and the same secret.
    Already(VersionId),
    /// It would be, had this not been a dry run.
    Would,
}

/// Why an entry was not imported. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Nobody could rotate it.
    #[error("no admin group is named")]
    NoGroup,
    /// An alias that is not bound.
    #[error("there is no group `{0}`")]
    UnknownGroup(String),
    /// Registered by hand, or rotated since its first day.
    #[error("the client exists, and was not imported")]
    NotImported,
    /// Imported, and not with this.
    #[error("the client was imported with another secret")]
    OtherSecret,
    /// Imported, once as plaintext and once as a hash, or from two different hashes.
    #[error("the client was imported from something else: plaintext, or another bcrypt hash")]
    OtherKind,
    /// Imported, for others.
    #[error("the client exists with other admin groups")]
    OtherGroups,
    /// A hash that does not verify would lock the client out.
    #[error("the MAC key does not verify what it has just signed")]
    DoesNotVerify,
    /// The MAC key.
    #[error(transparent)]
    Mac(#[from] MacError),
    /// The store.
    #[error("the store did not take it: {0}")]
    Store(#[from] StoreError),
    /// The operating system's generator.
    #[error("the random generator failed")]
    Generator,
}

impl Refused {
    /// A conflict with what is there, as the audit trail names it; other failures are no decision.
    const fn audited(&self) -> Option<&'static str> {
        match self {
            Self::NotImported => Some("import.not_imported"),
            Self::OtherSecret => Some("import.other_secret"),
            Self::OtherKind => Some("import.other_kind"),
            Self::OtherGroups => Some("import.other_groups"),
            Self::NoGroup
            | Self::UnknownGroup(_)
            | Self::DoesNotVerify
            | Self::Mac(_)
            | Self::Store(_)
            | Self::Generator => None,
        }
    }
}

/// Where entries go.
pub struct Importer<'a> {
    store: &'a dyn Store,
    mac: &'a dyn MacKey,
    now: UnixMs,
    dry_run: bool,
    /// Aliases that are bound, read once for all entries.
    groups: OnceCell<Vec<String>>,
}

impl<'a> Importer<'a> {
    /// `mac` hashes; a `dry_run` looks and compares, and writes nothing.
    #[must_use]
    pub const fn new(
        store: &'a dyn Store,
        mac: &'a dyn MacKey,
        now: UnixMs,
        dry_run: bool,
    ) -> Self {
        Self {
            store,
            mac,
            now,
            dry_run,
            groups: OnceCell::const_new(),
        }
    }

    /// Brings in one client.
    ///
    /// # Errors
    /// [`Refused`]; a conflict with what is there is in the audit trail as well, unless this is a dry run.
    pub async fn import(&self, entry: &Entry) -> Result<Imported, Refused> {
        let result = self.attempt(entry).await;
        if let (Err(refused), false) = (&result, self.dry_run)
            && let Some(reason) = refused.audited()
        {
            let record = audit("client.import_refused", reason, self.now);
            self.store
                .append(about_client(record, &entry.client_id))
                .await?;
        }
        result
    }

    async fn attempt(&self, entry: &Entry) -> Result<Imported, Refused> {
        self.check_groups(&entry.groups).await?;
        if let Some(client) = self.store.client(&entry.client_id).await? {
            return self.compare(entry, &client).await;
        }
        if self.dry_run {
            return Ok(Imported::Would);
        }
        let version = self.version(entry).await?;
        let version_id = version.version_id;
        let record = audit("client.imported", &entry.material.described(), self.now);
        let mut record = about_client(record, &entry.client_id);
        record.version_id = Some(version_id);
        let created = self
            .store
            .create_client(client(entry, self.now), Some(version), record)
            .await;
        match created {
            Ok(()) => Ok(Imported::Now(version_id)),
            // Somebody else was faster; perhaps the same import, started twice.
            Err(StoreError::Conflict {
                why: "client.exists",
            }) => match self.store.client(&entry.client_id).await? {
                Some(client) => self.compare(entry, &client).await,
                None => Err(StoreError::NotFound { what: "client" }.into()),
            },
            Err(error) => Err(error.into()),
        }
    }

    async fn check_groups(&self, groups: &[String]) -> Result<(), Refused> {
        if groups.is_empty() {
            return Err(Refused::NoGroup);
        }
        let read = async || {
            let bound = self.store.groups().await?;
            Ok::<_, StoreError>(bound.into_iter().map(|group| group.alias).collect())
        };
        let bound: &Vec<String> = self.groups.get_or_try_init(read).await?;
        let unbound = |alias: &&String| !bound.contains(alias);
        match groups.iter().find(unbound) {
            Some(alias) => Err(Refused::UnknownGroup(alias.clone())),
            None => Ok(()),
        }
    }

    /// Hashes, and checks the hash: a key service that signs with one key and verifies with another would lock the client out.
    async fn version(&self, entry: &Entry) -> Result<VersionDoc, Refused> {
        let version_id = VersionId::generate(self.now).map_err(|_| Refused::Generator)?;
        let (client_id, input) = (&entry.client_id, entry.material.mac_input());
        let made = self.mac.sign(client_id, &version_id, input).await?;
        let verifies = self
            .mac
            .verify(&made.key_ref, client_id, &version_id, input, &made.hash)
            .await?;
        if !verifies {
            return Err(Refused::DoesNotVerify);
        }
        Ok(VersionDoc {
            client_id: client_id.clone(),
            version_id,
            secret_hash: made.hash.as_str().to_owned(),
            algo: "HMAC-SHA-256".to_owned(),
            mac_key_ref: made.key_ref,
            created_at: self.now,
            not_before: self.now,
            not_after: None,
            state: VersionState::Current,
            rotated_by: None,
            rotation_reason: "imported".to_owned(),
            rotation_id: None,
            origin: Origin::Imported,
            prefilter: None,
            prehash: entry.material.prehash().map(str::to_owned),
            ack_public_key: None,
        })
    }

    /// Whether what is there came from the same import, whatever has been rotated since.
    async fn compare(&self, entry: &Entry, client: &ClientDoc) -> Result<Imported, Refused> {
        let versions = self.store.versions(&entry.client_id).await?;
        let found = versions
            .iter()
            .find(|version| version.origin == Origin::Imported)
            .ok_or(Refused::NotImported)?;
        if found.prehash.as_deref() != entry.material.prehash() {
            return Err(Refused::OtherKind);
        }
        let hash = SecretHash::parse(&found.secret_hash)?;
        let (version, input) = (&found.version_id, entry.material.mac_input());
        let same = self
            .mac
            .verify(&found.mac_key_ref, &entry.client_id, version, input, &hash)
            .await?;
        if !same {
            return Err(Refused::OtherSecret);
        }
        if sorted(&client.admin_groups) != sorted(&entry.groups) {
            return Err(Refused::OtherGroups);
        }
        Ok(Imported::Already(*version))
    }
}

fn sorted(groups: &[String]) -> Vec<&String> {
    let mut groups: Vec<_> = groups.iter().collect();
    groups.sort();
    groups.dedup();
    groups
}

fn client(entry: &Entry, now: UnixMs) -> ClientDoc {
    ClientDoc {
        client_id: entry.client_id.clone(),
        current_version: None,
        previous_version: None,
        status: ClientStatus::Active,
        admin_groups: entry.groups.clone(),
        updated_at: now,
        last_rotation_at: None,
        policy: PolicyOverrides::default(),
        active_rotation: None,
        fence: 0,
        snapshot: Vec::new(),
    }
}

#[cfg(test)]
mod tests;
