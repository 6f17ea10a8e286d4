//! Step 3c: the notify is sealed for every admin group of the client, and the plaintext ends.
//!
//! The member's database is scrubbed before the events leave [`super::ports::Distributor::seal`]: only ratchet states that cannot open the
//! result remain (architecture.md, "What the relay must not be able to decrypt afterwards").

use keyturn_proto::{Npub, UnixMs};
use keyturn_store::documents::{OutboxDoc, VersionDoc};

use super::failure::Failure;
use super::mac::Maced;
use super::ports::{Distributor, SealedEvent};
use super::reserve::Reserved;
use crate::crash;

/// Ciphertext for every group; the secret is gone.
pub struct Sealed {
    pub(super) reserved: Reserved,
    pub(super) version: VersionDoc,
    pub(super) message_id: String,
    pub(super) readers: Vec<Npub>,
    pub(super) outbox: Vec<OutboxDoc>,
}

impl Maced {
    /// Seals for exactly the leaves that were checked.
    ///
    /// # Errors
    /// [`Failure`]; a crash or an error here skips a ratchet generation and nothing else.
    pub async fn seal(self, distributor: &dyn Distributor, now: UnixMs) -> Result<Sealed, Failure> {
        let Self {
            reserved,
            version,
            notify,
        } = self;
        let message_id = notify.header.relay_msg_id.clone();
        let events = distributor.seal(&reserved.audience, notify).await?;
        crash::point(crash::Point::AfterSeal).await;
        let outbox = events
            .into_iter()
            .map(|event| document(&reserved, event, now))
            .collect();
        Ok(Sealed {
            readers: reserved.audience.readers(),
            message_id,
            version,
            outbox,
            reserved,
        })
    }
}

fn document(reserved: &Reserved, event: SealedEvent, now: UnixMs) -> OutboxDoc {
    let SealedEvent {
        alias,
        event_id,
        event_json,
        epoch,
        roster_hash,
    } = event;
    OutboxDoc {
        event_id,
        rotation_id: reserved.rotation.rotation_id.clone(),
        attempt: reserved.active.attempt,
        group: alias,
        epoch,
        roster_hash,
        event_json,
        created_at: now,
        delete_after: None,
        withdrawn_at: None,
    }
}
