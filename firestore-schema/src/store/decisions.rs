//! What is recorded once, and found again: uses of nonces, refusals of events.

use keyturn_proto::{ErrorClass, RotationId, UnixMs};

use crate::documents::{AuditRecord, NonceDoc, RefusalDoc};
use crate::lifecycle::Known;

/// Most decisions that are recorded at a time. Each is an entry and perhaps a refusal: far below the 500 writes of one Firestore commit.
pub const MAX_DECISIONS: usize = 100;

/// One use of a proof's nonce.
#[derive(Clone, Debug)]
pub struct BurnNonce {
    /// SHA-256 of the nonce, hex.
    pub nonce_hash: String,
    /// The Nostr event that carries it. The same event may come again after a crash and finds its own nonce.
    pub owner_event: String,
    /// When the record may be forgotten.
    pub expires_at: UnixMs,
    /// Now.
    pub now: UnixMs,
    /// Written with it, the first time; a use by another event is refused, and recorded as the refusal that it is.
    pub audit: AuditRecord,
}

/// Result of burning a nonce.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Burned {
    /// Ours now (or already, from before a crash).
    Fresh,
    /// Used by another event.
    Reused,
}

/// The refusal of an event, which stands whoever looks at the event again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refuse {
    /// The Nostr event, hex.
    pub event_id: String,
    /// What its sender is told.
    pub class: ErrorClass,
    /// The reason, as the trail has it.
    pub reason: String,
    /// When nobody can come with the event any more.
    pub expires_at: UnixMs,
}

impl Refuse {
    /// The document that remembers it.
    #[must_use]
    pub fn document(&self) -> NonceDoc {
        NonceDoc {
            nonce_hash: NonceDoc::refusal_id(&self.event_id),
            owner_event: self.event_id.clone(),
            expires_at: self.expires_at,
            refused: Some(RefusalDoc {
                class: self.class,
                reason: self.reason.clone(),
            }),
        }
    }
}

/// A decision that changes nothing else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// What the trail remembers of it.
    pub audit: AuditRecord,
    /// The event that it refuses. An event is refused once: what is recorded already is not recorded again.
    pub refuses: Option<Refuse>,
}

/// A question after what was decided before, by whichever instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// The Nostr event, hex.
    pub event_id: String,
    /// The operation that it is about, if it names one.
    pub operation: Option<RotationId>,
}

/// The answer to an [`Asked`].
#[derive(Clone, Debug, Default)]
pub struct Decided {
    /// How the event was refused.
    pub refused: Option<RefusalDoc>,
    /// What is recorded under the operation's id.
    pub known: Known,
}
