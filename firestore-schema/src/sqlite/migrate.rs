//! Steps of the schema that SQL alone cannot do. Like every step they run once, and the documents they read are those of their time.

use rusqlite::Transaction;

use super::{apply, load};
use crate::audit::Instance;
use crate::documents::{AuditRecord, ClientDoc};
use crate::store::Result;

/// Puts the records of a trail without chains into chains, in their order. What names no client goes to the chain of the instance that opens the file:
/// nobody wrote down which one it was.
pub(super) fn chain_the_trail(tx: &Transaction<'_>, instance: &Instance) -> Result<()> {
    let sql = "SELECT doc FROM audit_unchained ORDER BY seq";
    for record in load::all::<AuditRecord>(tx, "audit", sql, [])? {
        apply::audit(tx, instance, vec![record], None)?;
    }
    for client in load::all::<ClientDoc>(tx, "client", "SELECT doc FROM clients", [])? {
        apply::audit(tx, instance, Vec::new(), Some(&client))?;
    }
    Ok(())
}
