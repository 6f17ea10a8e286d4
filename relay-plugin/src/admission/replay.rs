//! Fourth step: a proof's challenge is used up, before any TOTP code is looked at (protocol.md §6.2).
//!
//! Create-once in the store that all instances share. The record names the Nostr event that used it, so that the same event, taken up again
//! after a crash, finds its own use and goes on; any other event is refused. What is burnt is the challenge, not the whole nonce: one
//! challenge carries one request, whatever it is bound to.

use std::time::Duration;

use keyturn_proto::UnixMs;
use keyturn_store::documents::AuditRecord;
use keyturn_store::store::{BurnNonce, Burned, Store};

use super::challenge::Checked;
use super::opened::Opened;
use super::refused::Refused;

/// How long a use is remembered after the challenge's own end. Far more than clocks can differ: an event that lay in another instance's inbox
/// through an outage is judged at the time it was received, and must still find the challenge used.
const KEPT: Duration = Duration::from_secs(24 * 3600);

/// The audit word of a use.
pub(super) const BURNT: &str = "nonce.burnt";

/// Uses up the challenge for this event.
pub(super) async fn burn(
    store: &dyn Store,
    challenge: &Checked,
    opened: &Opened,
    now: UnixMs,
    audit: AuditRecord,
) -> Result<(), Refused> {
    let burnt = store
        .burn_nonce(BurnNonce {
            nonce_hash: hex::encode(challenge.hash),
            owner_event: opened.event_id.clone(),
            expires_at: challenge.expires_at.max(now).plus(KEPT),
            now,
            audit,
        })
        .await?;
    match burnt {
        Burned::Fresh => Ok(()),
        Burned::Reused => Err(Refused::unauthorized("nonce.reused")),
    }
}
