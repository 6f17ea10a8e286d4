//! One error type per operation. None of them carries message content or key material.

use std::io;
use std::path::PathBuf;

use nostr::{EventId, PublicKey};

use crate::ids::{MlsGroupId, UnixMs};
use crate::wire::group_data::GroupDataError;
use crate::wire::group_event::SealEventError;
use crate::wire::key_package_event::KeyPackageError;
use crate::wire::rumor::RumorError;
use crate::wire::welcome::{UnwrapError, WrapError};

/// The database failed or holds what it must not.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// SQLite or SQLCipher.
    #[error("member database: {0}")]
    Sqlite(#[from] rusqlite::Error),
    /// A row that this crate did not write, or that lost its meaning.
    #[error("member database is inconsistent: {0}")]
    Corrupt(&'static str),
}

/// OpenMLS refused a step. `source` is its error; OpenMLS errors name rules, not contents.
#[derive(Debug, thiserror::Error)]
#[error("MLS {step}: {source}")]
pub struct MlsError {
    /// What was being done.
    pub step: &'static str,
    /// Why not.
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

impl MlsError {
    pub(crate) fn at<E>(step: &'static str) -> impl FnOnce(E) -> Self
    where
        E: std::error::Error + Send + Sync + 'static,
    {
        move |source| Self {
            step,
            source: Box::new(source),
        }
    }
}

/// [`crate::Member::open`].
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has the database open.
    #[error("member database {path} is in use by another process")]
    Locked {
        /// Which database.
        path: PathBuf,
    },
    /// The storage key does not open this database (or the file is not a database).
    #[error("the storage key does not open {path}")]
    WrongKey {
        /// Which database.
        path: PathBuf,
    },
    /// The database belongs to another npub.
    #[error("member database belongs to {found}, not to {expected}")]
    OtherIdentity {
        /// The identity in the configuration.
        expected: PublicKey,
        /// The identity in the database.
        found: PublicKey,
    },
    /// The file could not be made, locked or protected.
    #[error("{path}: {source}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The schema is newer than this program.
    #[error("member database has schema {found}, this program knows {known}")]
    Schema {
        /// In the file.
        found: i64,
        /// Newest known.
        known: i64,
    },
    /// The MLS tables could not be made.
    #[error("MLS tables: {0}")]
    Migration(Box<dyn std::error::Error + Send + Sync>),
    /// No signature key could be made.
    #[error(transparent)]
    Mls(#[from] MlsError),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// [`crate::Member::publish_key_package`].
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// At least one relay is required.
    #[error("a key package names at least one relay")]
    NoRelay,
    /// No random bytes.
    #[error("no random bytes: {0}")]
    Random(#[from] getrandom::Error),
    /// The event could not be signed.
    #[error("the event could not be signed: {0}")]
    Sign(#[from] nostr::event::builder::Error),
    /// The event could not be made.
    #[error(transparent)]
    Event(#[from] KeyPackageError),
    /// OpenMLS refused.
    #[error(transparent)]
    Mls(#[from] MlsError),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// [`crate::Member::create_group`], and everything that makes a commit.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// We are not in such a group.
    #[error("not a member of group {0}")]
    UnknownGroup(MlsGroupId),
    /// We were removed from it.
    #[error("removed from group {0}")]
    Evicted(MlsGroupId),
    /// Only admins of the group commit anything but a self-update.
    #[error("not an admin of the group")]
    NotAdmin,
    /// A commit of ours waits for `commit_published` or `commit_rejected`.
    #[error("commit {0} is still pending")]
    Pending(EventId),
    /// The peers follow another branch, or the group's id changed; an operator must look.
    #[error("the group is frozen")]
    Frozen,
    /// The group would be left without an admin who is a member.
    #[error("the group would be left without an admin")]
    NoAdmin,
    /// Not a member.
    #[error("{0} is not a member")]
    NotMember(PublicKey),
    /// Already a member.
    #[error("{0} is already a member")]
    AlreadyMember(PublicKey),
    /// Nobody removes himself by a commit of his own; see [`crate::Member::leave`].
    #[error("a member leaves by SelfRemove, not by his own commit")]
    OwnLeaf,
    /// Nothing to do.
    #[error("nothing to commit")]
    Nothing,
    /// Another commit of the same epoch comes first; ours is void.
    #[error("commit {0} was overtaken by another of its epoch")]
    Overtaken(EventId),
    /// No such pending commit.
    #[error("no pending commit {0}")]
    NotPending(EventId),
    /// The group data does not encode or decode.
    #[error(transparent)]
    GroupData(#[from] GroupDataError),
    /// A Welcome could not be wrapped.
    #[error("Welcome: {0}")]
    Welcome(#[from] WrapError),
    /// The group event could not be made.
    #[error(transparent)]
    Event(#[from] SealEventError),
    /// OpenMLS refused.
    #[error(transparent)]
    Mls(#[from] MlsError),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// [`crate::Member::open_welcome`].
#[derive(Debug, thiserror::Error)]
pub enum WelcomeError {
    /// The gift wrap is not a Welcome for us.
    #[error(transparent)]
    Unwrap(#[from] UnwrapError),
    /// The content is not one MLS Welcome.
    #[error("the content is not one MLS Welcome")]
    Malformed,
    /// The group lacks valid group data, or has no admin.
    #[error(transparent)]
    GroupData(#[from] GroupDataError),
    /// The welcomer is not in the group, or not the leaf that signed.
    #[error("the welcomer {0} is not the member who signed the Welcome")]
    NotTheSigner(PublicKey),
    /// Another group already answers to this nostr_group_id.
    #[error("nostr_group_id belongs to group {0}")]
    AddressTaken(MlsGroupId),
    /// OpenMLS refused: no key package of ours, wrong signatures, …
    #[error(transparent)]
    Mls(#[from] MlsError),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// [`crate::Member::receive`]. Bad input is not an error but an [`crate::Inbound`].
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// OpenMLS failed on our own state.
    #[error(transparent)]
    Mls(#[from] MlsError),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// [`crate::Member::seal`].
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// We are not in such a group.
    #[error("not a member of group {0}")]
    UnknownGroup(MlsGroupId),
    /// We were removed from it.
    #[error("removed from group {0}")]
    Evicted(MlsGroupId),
    /// The current epoch may still be rolled back.
    #[error("the epoch settles at {settles_at:?}")]
    Unsettled {
        /// When it settles if nothing better comes.
        settles_at: UnixMs,
    },
    /// Peers follow another branch.
    #[error("the group is frozen: the peers follow another branch")]
    Forked,
    /// The nostr_group_id changed and was not approved.
    #[error("the group is frozen: its nostr_group_id changed")]
    AddressChanged,
    /// A commit of ours waits to be published.
    #[error("commit {0} is still pending")]
    PendingCommit(EventId),
    /// We joined with a key package and have not renewed our leaf yet.
    #[error("a self-update must be accepted before anything is sealed")]
    NeedsSelfUpdate,
    /// The payload cannot travel.
    #[error(transparent)]
    Rumor(#[from] RumorError),
    /// The group event could not be made.
    #[error(transparent)]
    Event(#[from] SealEventError),
    /// OpenMLS refused.
    #[error(transparent)]
    Mls(#[from] MlsError),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// [`crate::binding`].
#[derive(Debug, thiserror::Error)]
pub enum BindingError {
    /// Another kind of event.
    #[error("not a binding event")]
    Kind,
    /// Id or signature do not verify.
    #[error("event id or signature is invalid")]
    Signature,
    /// A tag is missing, doubled or malformed.
    #[error("tag {0} is missing or malformed")]
    Tag(&'static str),
    /// The leaf's own key did not sign this statement.
    #[error("the signature of the MLS key is invalid")]
    KeySignature,
    /// We are not in the group.
    #[error("not a member of group {0}")]
    UnknownGroup(MlsGroupId),
    /// The event could not be signed.
    #[error("the event could not be signed: {0}")]
    Sign(#[from] nostr::event::builder::Error),
    /// The MLS key could not sign.
    #[error("the MLS key could not sign")]
    KeySigner,
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}
