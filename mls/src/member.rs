//! The member: one identity, one database, all the groups it is in.
//!
//! What must hold: no method reads a clock; every method that changes something is one transaction, or
//! several that each leave a state the next start understands.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

use nostr::{EventId, Keys, PublicKey};
use openmls::group::MlsGroup;
use openmls::prelude::{BasicCredential, CredentialWithKey};
use openmls_basic_credential::SignatureKeyPair;
use openmls_rust_crypto::RustCrypto;
use openmls_traits::OpenMlsProvider as _;
use rusqlite::{Connection, OptionalExtension, params};

use crate::backlog::Backlog;
use crate::error::{MlsError, OpenError, StoreError};
use crate::ids::{Leaf, MlsGroupId, NostrGroupId, RosterHash, SignatureKey, UnixMs, roster_hash};
use crate::key::StorageKey;
use crate::storage::events::{self, HeldLimits, InboxRow};
use crate::storage::outbox::{self, PendingWelcome};
use crate::storage::rows::{self, Freeze};
use crate::storage::work::{Cache, Work, lazily, transact};
use crate::storage::{self, Provider};
use crate::wire::group_data::GroupData;
use crate::wire::{CIPHERSUITE, Profile};

/// What a member is opened with.
pub struct MemberConfig {
    /// The database file; made if missing, mode 0600. A `.lock` and SQLite's `-wal` lie beside it.
    pub path: PathBuf,
    /// What it is encrypted under.
    pub storage_key: StorageKey,
    /// Our Nostr identity.
    pub keys: Keys,
    /// How long a commit may still lose against a better one, counted from its receipt. See
    /// [`crate::settle`].
    pub settle: Duration,
    /// The greatest distance between a commit's `created_at` (whole seconds) and its receipt.
    pub freshness: Duration,
    /// How many events per group are kept that cannot be opened yet, and how many that were deferred. The
    /// oldest give way.
    pub max_held: u32,
    /// How many bytes each of these may take: anybody can send what nobody can open.
    pub max_held_bytes: u64,
    /// What has been received and is not taken in yet: nothing settles past it. Empty for a caller that receives and takes in at once.
    pub backlog: Backlog,
    /// The encoding to speak.
    pub profile: Profile,
}

impl MemberConfig {
    /// The defaults: ten seconds for both times, 256 events of 16 MiB together, Marmot.
    pub fn new(path: impl Into<PathBuf>, storage_key: StorageKey, keys: Keys) -> Self {
        Self {
            path: path.into(),
            storage_key,
            keys,
            settle: Duration::from_secs(10),
            freshness: Duration::from_secs(10),
            max_held: 256,
            max_held_bytes: 16 * 1024 * 1024,
            backlog: Backlog::default(),
            profile: Profile::default(),
        }
    }
}

/// Who we are; unchanging while the member is open.
pub(crate) struct Identity {
    pub(crate) keys: Keys,
    pub(crate) signer: SignatureKeyPair,
    pub(crate) signature_key: SignatureKey,
    pub(crate) settle: Duration,
    pub(crate) freshness: Duration,
    pub(crate) held: HeldLimits,
    pub(crate) backlog: Backlog,
}

impl Identity {
    pub(crate) fn credential(&self) -> CredentialWithKey {
        CredentialWithKey {
            credential: BasicCredential::new(self.keys.public_key().to_bytes().to_vec()).into(),
            signature_key: self.signer.public().into(),
        }
    }
}

/// One MLS member. See the crate's documentation for a walk through its methods.
pub struct Member {
    pub(crate) db: Connection,
    pub(crate) crypto: RustCrypto,
    pub(crate) me: Identity,
    pub(crate) cache: Cache,
    /// Groups in which kept events may have become openable since they were last tried.
    pub(crate) moved: BTreeSet<MlsGroupId>,
    /// Held for its advisory lock: one process per database.
    _lock: File,
}

/// What is known of a group in its current epoch.
#[derive(Clone, Debug)]
pub struct GroupInfo {
    /// The id inside MLS.
    pub id: MlsGroupId,
    /// The `h` tag that was joined or approved. `data.nostr_group_id` is what the group says now.
    pub nostr_group_id: NostrGroupId,
    /// Current epoch.
    pub epoch: u64,
    /// Names, admins, relays.
    pub data: GroupData,
    /// How many members.
    pub members: usize,
    /// Who welcomed us; `None` in a group of our own making.
    pub welcomer: Option<PublicKey>,
    /// When we joined or made it.
    pub joined_at: UnixMs,
    /// We were removed; nothing can be sent or opened any more.
    pub evicted: bool,
    /// Nothing is sealed or committed until somebody looked.
    pub frozen: Option<Freeze>,
}

impl Member {
    /// Opens the member's database, or makes it.
    pub fn open(config: MemberConfig) -> Result<Self, OpenError> {
        let MemberConfig {
            path,
            storage_key,
            keys,
            settle,
            freshness,
            max_held,
            max_held_bytes,
            backlog,
            profile: Profile::Marmot,
        } = config;
        let (mut db, lock) = storage::open(&path, &storage_key)?;
        let crypto = RustCrypto::default();
        let (signer, signature_key) = signer(&mut db, &crypto, &keys)?;
        let moved = rows::groups(&db)?.into_iter().map(|row| row.id).collect();
        Ok(Self {
            db,
            crypto,
            me: Identity {
                keys,
                signer,
                signature_key,
                settle,
                freshness,
                held: HeldLimits {
                    events: max_held,
                    bytes: max_held_bytes,
                },
                backlog,
            },
            cache: Cache::new(),
            moved,
            _lock: lock,
        })
    }

    /// Our Nostr identity.
    pub fn npub(&self) -> PublicKey {
        self.me.keys.public_key()
    }

    /// The key that signs for our leaf, the same in every group and key package of this database.
    pub fn signature_key(&self) -> SignatureKey {
        self.me.signature_key
    }

    /// Every group in the database, also those we were removed from.
    pub fn groups(&self) -> Result<Vec<GroupInfo>, StoreError> {
        rows::groups(&self.db)?
            .into_iter()
            .map(|row| self.info(row))
            .collect()
    }

    /// One group; `None` if we are not in it.
    pub fn group_info(&self, group: &MlsGroupId) -> Result<Option<GroupInfo>, StoreError> {
        rows::group(&self.db, group)?
            .map(|row| self.info(row))
            .transpose()
    }

    /// The group whose events carry this `h` tag.
    pub fn group_by_address(
        &self,
        address: &NostrGroupId,
    ) -> Result<Option<MlsGroupId>, StoreError> {
        rows::by_address(&self.db, address)
    }

    fn info(&self, row: rows::GroupRow) -> Result<GroupInfo, StoreError> {
        let data = rows::group_data(&self.db, &row)?;
        let members = rows::roster(&self.db, &row.id, row.epoch)?.map_or(0, |leaves| leaves.len());
        let rows::GroupRow {
            id,
            nostr_group_id,
            epoch,
            evicted,
            frozen,
            welcomer,
            self_update_epoch: _,
            rival_epoch: _,
            joined_at,
        } = row;
        Ok(GroupInfo {
            id,
            nostr_group_id,
            epoch,
            data,
            members,
            welcomer,
            joined_at,
            evicted,
            frozen,
        })
    }

    /// The leaves of the current epoch, by index; empty for a group we are not in.
    pub fn members(&self, group: &MlsGroupId) -> Result<Vec<Leaf>, StoreError> {
        let Some(row) = rows::group(&self.db, group)? else {
            return Ok(Vec::new());
        };
        Ok(rows::roster(&self.db, group, row.epoch)?.unwrap_or_default())
    }

    /// A digest over the sorted (npub, signature key) pairs of the current epoch: equal as long as the
    /// same keys are in the group, whatever the epoch. `None` for a group we are not in.
    pub fn roster_hash(&self, group: &MlsGroupId) -> Result<Option<RosterHash>, StoreError> {
        let Some(row) = rows::group(&self.db, group)? else {
            return Ok(None);
        };
        Ok(rows::roster(&self.db, group, row.epoch)?.map(|leaves| roster_hash(&leaves)))
    }

    /// Rows kept by [`crate::Disposition::Inbox`] and not done yet, oldest first.
    pub fn inbox(&self) -> Result<Vec<InboxRow>, StoreError> {
        events::inbox(&self.db, 0, u32::MAX)
    }

    /// As [`Self::inbox`], only rows after `id`, at most `limit`: for a caller that has laid the earlier ones out already.
    pub fn inbox_after(&self, id: i64, limit: u32) -> Result<Vec<InboxRow>, StoreError> {
        events::inbox(&self.db, id, limit)
    }

    /// Deletes an inbox row. `false` if it was gone already. After a power failure it may be there again, and is then worked off again.
    pub fn inbox_done(&mut self, id: i64) -> Result<bool, StoreError> {
        lazily(&mut self.db, |db| events::inbox_done(db, id))
    }

    /// As [`Self::inbox_done`], by the events that the rows came from.
    pub fn inbox_answered(&mut self, events: &[(MlsGroupId, EventId)]) -> Result<(), StoreError> {
        lazily(&mut self.db, |db| events::inbox_answered(db, events))
    }

    /// Deletes the oldest inbox rows of every leaf that has more than `keep`, so that none can fill the inbox. Returns the sender and event of each.
    pub fn trim_inbox(&mut self, keep: u32) -> Result<Vec<(PublicKey, EventId)>, StoreError> {
        lazily(&mut self.db, |db| events::trim_inbox(db, keep))
    }

    /// Welcomes whose commit was accepted and that were not marked as sent yet.
    pub fn released_welcomes(&self) -> Result<Vec<PendingWelcome>, StoreError> {
        outbox::released_welcomes(&self.db)
    }

    /// A Welcome's gift wrap was accepted by a relay.
    pub fn welcome_sent(&mut self, gift_wrap: EventId) -> Result<(), StoreError> {
        outbox::delete_welcome(&self.db, &gift_wrap)
    }

    /// Forgets a group and every secret of it at once, without telling anybody. To leave politely, publish
    /// [`Self::leave`] first.
    pub fn forget(&mut self, group: &MlsGroupId) -> Result<(), StoreError> {
        self.transact(|work| {
            work.forget(group);
            if let Some(mut mls) = work.take(group)? {
                mls.delete(work.provider.storage())?;
            }
            let key = storage::group_key(group)?;
            storage::snapshot::erase(work.db, &key)?;
            rows::delete_group(work.db, group)
        })?;
        self.scrub()
    }

    /// Lifts a freeze after an operator approved the group as it is now; a changed nostr_group_id becomes
    /// the approved one.
    pub fn approve(&mut self, group: &MlsGroupId) -> Result<(), StoreError> {
        self.transact(|work| {
            let Some(row) = rows::group(work.db, group)? else {
                return Ok(());
            };
            let data = rows::group_data(work.db, &row)?;
            rows::set_nostr_group_id(work.db, group, &data.nostr_group_id)?;
            rows::add_address(work.db, &data.nostr_group_id, group)?;
            rows::set_rival(work.db, group, None)?;
            rows::set_frozen(work.db, group, None)
        })
    }

    pub(crate) fn transact<T, E: From<StoreError>>(
        &mut self,
        body: impl FnOnce(&mut Work<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        transact(&mut self.db, &self.crypto, &self.me, &mut self.cache, body)
    }

    /// As [`Self::transact`], without waiting for the disk; see [`lazily`].
    pub(crate) fn transact_lazily<T, E: From<StoreError>>(
        &mut self,
        body: impl FnOnce(&mut Work<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        lazily(&mut self.db, |db| {
            transact(db, &self.crypto, &self.me, &mut self.cache, body)
        })
    }
}

/// The signature key of this database, made on first opening; refuses a database of another npub.
fn signer(
    db: &mut Connection,
    crypto: &RustCrypto,
    keys: &Keys,
) -> Result<(SignatureKeyPair, SignatureKey), OpenError> {
    let tx = db.transaction().map_err(StoreError::from)?;
    let row: Option<(Vec<u8>, Vec<u8>)> = tx
        .query_row("SELECT npub, signature_key FROM member", [], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })
        .optional()
        .map_err(StoreError::from)?;
    let provider = Provider::new(crypto, &tx);
    let scheme = CIPHERSUITE.signature_algorithm();
    let pair = match row {
        Some((npub, public)) => {
            let found = rows::npub(&npub)?;
            if found != keys.public_key() {
                return Err(OpenError::OtherIdentity {
                    expected: keys.public_key(),
                    found,
                });
            }
            SignatureKeyPair::read(provider.storage(), &public, scheme)
                .ok_or(StoreError::Corrupt("the signature key is missing"))?
        }
        None => {
            let pair = SignatureKeyPair::new(scheme).map_err(MlsError::at("signature key"))?;
            pair.store(provider.storage()).map_err(StoreError::from)?;
            tx.execute(
                "INSERT INTO member (one, npub, signature_key) VALUES (1, ?1, ?2)",
                params![keys.public_key().as_bytes(), pair.public()],
            )
            .map_err(StoreError::from)?;
            pair
        }
    };
    let public = SignatureKey::from_slice(pair.public())
        .ok_or(StoreError::Corrupt("the signature key is not Ed25519"))?;
    tx.commit().map_err(StoreError::from)?;
    Ok((pair, public))
}

/// Who is in the group, as the ratchet tree has it. A leaf without a Nostr identity cannot be there: it is
/// refused when it is added and when we join.
pub(crate) fn leaves(group: &MlsGroup) -> Result<Vec<Leaf>, StoreError> {
    group
        .members()
        .map(|member| leaf_of(&member).ok_or(StoreError::Corrupt("a leaf without an npub")))
        .collect()
}

pub(crate) fn leaf_of(member: &openmls::prelude::Member) -> Option<Leaf> {
    Some(Leaf {
        index: member.index.u32(),
        npub: crate::wire::key_package_event::identity(&member.credential)?,
        signature_key: SignatureKey::from_slice(&member.signature_key)?,
    })
}
