//! What came out of a 445 event, and what the caller makes of it.

use nostr::{EventId, PublicKey};
use zeroize::Zeroizing;

use crate::ids::{Leaf, MlsGroupId, NostrGroupId, SignatureKey, UnixMs};
use crate::rules::{CommitFacts, CommitRefusal};
use crate::wire::group_event::GroupEventError;
use crate::wire::rumor::{RumorError, RumorInfo};

/// An application message that MLS authenticated: `sender` is what the leaf's credential says, and
/// `signature_key` signed it. Whether that key is proven to be `sender`'s is the caller's question.
pub struct AppMessage {
    /// The group it was sent in.
    pub group: MlsGroupId,
    /// The 445 event.
    pub event_id: EventId,
    /// Identity in the sender's leaf.
    pub sender: PublicKey,
    /// The key that signed it.
    pub signature_key: SignatureKey,
    /// The same identity and key are in the group's current epoch, too.
    pub still_member: bool,
    /// Epoch it was sent in; up to five behind the current one.
    pub epoch: u64,
    /// When the event was received.
    pub received_at: UnixMs,
    /// Kind, tags and time of the rumor; `None` for a bare JSON object.
    pub rumor: Option<RumorInfo>,
    /// The rumor's content, or the bare object. Zeroised when dropped.
    pub body: Zeroizing<Vec<u8>>,
}

/// What to do with an opened message. Decided inside the transaction that opens it.
#[derive(PartialEq, Eq)]
pub enum Disposition {
    /// Done with it. Its key is gone.
    Consume,
    /// Keep these bytes in the inbox, in the same transaction. Never anything that bears a secret: the
    /// inbox is encrypted at rest, but it is stored.
    Inbox(Vec<u8>),
    /// Not now: the transaction is rolled back, so that the message stays ciphertext and its key
    /// unconsumed, and the event waits for [`crate::Member::receive_deferred`]. It stays openable for five
    /// epochs and a hundred later messages of its sender. `label` is stored in clear (inside the encrypted
    /// database) to tell deferred messages apart: never a secret.
    Defer {
        /// Caller's note.
        label: String,
    },
}

/// A message that waits to be asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeferredMessage {
    /// Names it for [`crate::Member::receive_deferred`].
    pub event_id: EventId,
    /// The group.
    pub group: MlsGroupId,
    /// Who sent it.
    pub sender: PublicKey,
    /// In which epoch.
    pub epoch: u64,
    /// When it was received.
    pub received_at: UnixMs,
    /// The caller's note.
    pub label: String,
}

/// What became of one event. One call of `receive` may return several: an epoch change makes events
/// openable that were kept before.
#[derive(Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Inbound {
    /// An application message was opened and consumed, or put into the inbox.
    Message {
        /// The 445 event.
        event_id: EventId,
        /// The group.
        group: MlsGroupId,
        /// Who sent it.
        sender: PublicKey,
        /// In which epoch.
        epoch: u64,
        /// The inbox row, if one was asked for.
        inbox: Option<i64>,
    },
    /// An application message was left closed, as asked.
    Deferred(DeferredMessage),
    /// The group is in a new epoch.
    Commit(Box<CommitApplied>),
    /// A commit was not followed. Those with `peers_may_follow` are an alarm.
    CommitRefused {
        /// The 445 event.
        event_id: EventId,
        /// The group.
        group: MlsGroupId,
        /// Why.
        reason: CommitRefusal,
        /// Peers under Marmot's plain rule may follow it.
        peers_may_follow: bool,
    },
    /// A member asks to be let go; `commit_leavers` does it.
    SelfRemove {
        /// The group.
        group: MlsGroupId,
        /// Who.
        leaf: Leaf,
    },
    /// Cannot be opened yet (or ever); kept and tried again after the next epoch change.
    Kept {
        /// The 445 event.
        event_id: EventId,
        /// The group.
        group: MlsGroupId,
        /// How many older ones gave way to it.
        gave_way: usize,
    },
    /// The group froze: a refused commit seems to have been followed by peers. An alarm.
    Frozen {
        /// The group.
        group: MlsGroupId,
    },
    /// A peer proved to be on our branch; the freeze is lifted.
    Thawed {
        /// The group.
        group: MlsGroupId,
    },
    /// Seen before, or our own.
    Duplicate {
        /// The 445 event.
        event_id: EventId,
    },
    /// Not for a group we are in.
    UnknownGroup {
        /// The `h` tag.
        address: NostrGroupId,
    },
    /// Never openable: malformed, forged, replayed or too old. Not looked at again.
    Invalid {
        /// The 445 event.
        event_id: EventId,
        /// Why.
        reason: Invalid,
    },
}

/// Why an event is worth nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Invalid {
    /// The event itself.
    #[error(transparent)]
    Event(#[from] GroupEventError),
    /// The bytes inside are not one MLSMessage of this group and epoch.
    #[error("not an MLS message of this group and epoch")]
    Mls,
    /// MLS refuses the message: forged, replayed, or its key is gone.
    #[error("MLS does not authenticate the message")]
    Unauthentic,
    /// The payload is not a rumor of its sender or a JSON object. It was consumed.
    #[error(transparent)]
    Payload(#[from] RumorError),
    /// A proposal other than SelfRemove, or from an epoch that is over.
    #[error("a proposal that is not accepted")]
    Proposal,
    /// We were removed from the group.
    #[error("we were removed from the group")]
    Evicted,
}

/// A commit that was followed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CommitApplied {
    /// The 445 event.
    pub event_id: EventId,
    /// The group.
    pub group: MlsGroupId,
    /// The epoch it leads to.
    pub epoch: u64,
    /// What it does.
    pub facts: CommitFacts,
    /// It is ours.
    pub own: bool,
    /// It removed us: the group is over for us.
    pub evicted: bool,
    /// When the epoch settles; `None`: it has.
    pub settles_at: Option<UnixMs>,
    /// It came first of its epoch after all: this commit, and all that followed it, were undone.
    pub undone: Option<EventId>,
    /// Our own commit for the same epoch, staged or merged before, which thereby is void. Stage it again if
    /// it is still wanted.
    pub own_lost: Option<EventId>,
}

impl CommitApplied {
    /// The group's address changed: the group is frozen until [`crate::Member::approve`].
    pub fn address_changed(&self) -> Option<(NostrGroupId, NostrGroupId)> {
        self.facts.nostr_group_id
    }
}
