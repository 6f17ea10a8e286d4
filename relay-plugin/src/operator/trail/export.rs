//! The trail as JSON lines: one entry per line, chain by chain, each with `chain`, `seq`, `previous` and `hash`, so that it can be checked without the store.

use std::io::Write;

use keyturn_proto::{ClientId, UnixMs};
use keyturn_store::audit::Chain;
use keyturn_store::documents::AuditEntry;
use keyturn_store::store::{Store, Stored};

use super::{PAGE, page};
use crate::operator::OperatorError;

/// What is wanted of the trail.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    /// Only what names this client.
    pub client: Option<ClientId>,
    /// Only what happened then or later.
    pub since: Option<UnixMs>,
}

/// Writes the entries, page by page, in an order that never changes: what is appended later comes within its chain's lines, never between two that were there.
///
/// # Errors
/// [`OperatorError::Unreadable`] at the end, if something could not be read; the store's; the writer's.
pub async fn export(
    store: &dyn Store,
    scope: &Scope,
    out: &mut dyn Write,
) -> Result<(), OperatorError> {
    let mut unreadable = 0;
    let mut write = |page: Vec<Stored<AuditEntry>>| -> Result<(), OperatorError> {
        for stored in page {
            let Some(entry) = stored.doc else {
                unreadable += 1;
                continue;
            };
            if scope.since.is_some_and(|since| entry.record.at < since) {
                continue;
            }
            serde_json::to_writer(&mut *out, &entry)?;
            writeln!(out)?;
        }
        Ok(())
    };
    match &scope.client {
        Some(client) => {
            let id = Chain::Client(client.clone()).id();
            let mut after: Option<String> = None;
            loop {
                let (entries, next) = page(store, &id, after.as_deref()).await?;
                write(entries)?;
                after = next;
                if after.is_none() {
                    break;
                }
            }
        }
        None => {
            let mut after: Option<String> = None;
            loop {
                let page = store.entries(after.as_deref(), PAGE).await?;
                let Some(last) = page.last() else { break };
                after = Some(last.id.clone());
                write(page)?;
            }
        }
    }
    match unreadable {
        0 => Ok(()),
        count => Err(OperatorError::Unreadable(count)),
    }
}
