//! Step 8: the end of grace.

use keyturn_proto::{UnixMs, VersionId};

use super::draft::{Draft, conflict};
use super::table::VersionEvent;
use super::{Family, Verdict};
use crate::documents::{AuditRecord, ClientDoc, VersionState};
use crate::store::{Result, StoreError};

/// `state` is the version's own state: a repeat finds it retired already.
///
/// # Errors
/// [`StoreError::Conflict`] before `not_after`, or for a version that is not in grace; [`StoreError::Fenced`].
pub fn retire(
    family: Family,
    version: VersionId,
    state: VersionState,
    fence: u64,
    now: UnixMs,
    audit: AuditRecord,
) -> Result<Verdict<ClientDoc>> {
    if state == VersionState::Retired {
        return Ok(Verdict::unchanged(family.client));
    }
    let mut draft = Draft::under(fence, family)?;
    let grace = draft
        .in_state(VersionState::Grace)
        .filter(|doc| doc.version_id == version)
        .ok_or(conflict("retire.not_in_grace"))?;
    let end = grace
        .not_after
        .ok_or(StoreError::Damaged { what: "version" })?;
    if now < end {
        return Err(conflict("retire.too_early"));
    }
    draft.step(version, VersionEvent::Retire, now)?;
    let (client, mut change) = draft.finish(now);
    change.audit.push(audit);
    Ok(Verdict {
        answer: client,
        change,
    })
}
