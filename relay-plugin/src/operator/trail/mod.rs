//! The audit trail in the auditor's hands: checked chain by chain, or exported to be checked elsewhere.
//!
//! What must always hold: nothing is changed; memory holds one page, however long the trail is; a running relay that appends meanwhile is no finding.

mod export;
mod noted;
mod verify;

pub use export::{Scope, export};
pub use noted::{InvalidNote, Noted};
pub use verify::{ChainReport, verify_all, verify_client, verify_file};

use keyturn_store::audit::place;
use keyturn_store::documents::AuditEntry;
use keyturn_store::store::{Store, StoreError, Stored};

/// Entries and heads read from the store at once.
const PAGE: usize = 500;

/// The entries of one chain after the one with the id `after`. Goes on from ids, never from what an entry says of itself: whatever somebody planted there
/// is passed once. With them the id to go on after, `None` at the end.
async fn page(
    store: &dyn Store,
    chain: &str,
    after: Option<&str>,
) -> Result<(Vec<Stored<AuditEntry>>, Option<String>), StoreError> {
    let mut page = match after {
        None => store.chain(chain, 0, PAGE).await?,
        Some(after) => store.entries(Some(after), PAGE).await?,
    };
    // What was planted among them counts here, and is left out below.
    let next = page.last().filter(|_| page.len() == PAGE);
    let next = next.map(|entry| entry.id.clone());
    if after.is_some() {
        page.retain(|entry| place(&entry.id).is_some_and(|(id, _)| id == chain));
    }
    Ok((page, next))
}
