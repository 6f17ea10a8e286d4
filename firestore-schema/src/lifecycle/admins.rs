//! Enrolment and the TOTP state of an admin (protocol.md §6.3), and leases.

use keyturn_proto::UnixMs;

use super::draft::conflict;
use super::{Change, Verdict, by_relay};
use crate::collections::document_id;
use crate::documents::{AdminDoc, AdminGroupDoc, AuditRecord, GroupState, LeaseDoc, ProvenKey};
use crate::store::{Result, StoreError};

/// Result of offering a TOTP step for acceptance.
pub(super) enum Step {
    Accepted(AdminDoc),
    Replayed,
}

/// Accepts a step once: only one later than the last. RFC 6238 §5.2.
pub(super) fn take_step(admin: Option<&AdminDoc>, step: u64, now: UnixMs) -> Result<Step> {
    let mut admin = admin.ok_or(StoreError::NotFound { what: "admin" })?.clone();
    let totp = admin.totp.as_mut().ok_or(StoreError::NotFound {
        what: "totp enrolment",
    })?;
    if totp.locked_until.is_some_and(|until| now < until) {
        return Err(conflict("totp.locked"));
    }
    if totp.last_step.is_some_and(|last| step <= last) {
        return Ok(Step::Replayed);
    }
    totp.last_step = Some(step);
    totp.failures = 0;
    totp.locked_until = None;
    admin.updated_at = later(admin.updated_at, now);
    Ok(Step::Accepted(admin))
}

/// Counts a wrong code. The count goes on after a lock has ended, so that each further wrong code locks again; only a right one resets it.
///
/// # Errors
/// [`StoreError::NotFound`] without a TOTP enrolment.
pub fn totp_failed(
    mut admin: AdminDoc,
    max_failures: u32,
    lock_ms: u64,
    now: UnixMs,
    audit: AuditRecord,
) -> Result<Verdict<AdminDoc>> {
    let totp = admin.totp.as_mut().ok_or(StoreError::NotFound {
        what: "totp enrolment",
    })?;
    totp.failures = totp.failures.saturating_add(1);
    if totp.failures >= max_failures {
        totp.locked_until = Some(UnixMs(now.0.saturating_add(lock_ms)));
    }
    admin.updated_at = later(admin.updated_at, now);
    Ok(written(admin, audit))
}

/// The time of a change, later than that of any change before: whoever read the older document can tell that it is older.
pub(super) fn later(known: UnixMs, now: UnixMs) -> UnixMs {
    now.max(UnixMs(known.0.saturating_add(1)))
}

/// Creates or replaces an enrolment: the document bears the `updated_at` with which it was read, and is stored with the time of the record. While the seed stays the same, its accepted step and its lock stay as well: enrolling again must not
/// open a replay or lift a lock.
///
/// # Errors
/// [`StoreError::Conflict`] when the enrolment was changed since it was read, or exists.
pub fn enrol(
    known: Option<AdminDoc>,
    mut admin: AdminDoc,
    audit: AuditRecord,
) -> Result<Verdict<AdminDoc>> {
    if let Some(known) = known {
        if known.updated_at != admin.updated_at {
            return Err(conflict("admin.changed"));
        }
        admin.updated_at = later(known.updated_at, audit.at);
        admin.created_at = known.created_at;
        if let (Some(new), Some(old)) = (admin.totp.as_mut(), known.totp)
            && new.seed_ciphertext == old.seed_ciphertext
        {
            *new = old;
        }
    }
    Ok(written(admin, audit))
}

/// Most keys remembered of one admin; the one recorded first gives way. Apps that make a new key for each key package need many.
pub const MAX_KEYS: usize = 256;

/// Records a proven MLS signature key. `others` are the admins that may hold it already: one key never speaks for two.
///
/// # Errors
/// [`StoreError::Conflict`] for an inactive admin or a key of somebody else.
pub fn prove_key(
    mut admin: AdminDoc,
    others: &[AdminDoc],
    key: ProvenKey,
    audit: AuditRecord,
) -> Result<Verdict<AdminDoc>> {
    let holds = |admin: &AdminDoc| {
        admin
            .signature_keys
            .iter()
            .any(|known| known.key == key.key)
    };
    if holds(&admin) {
        return Ok(Verdict::unchanged(admin));
    }
    if !admin.active {
        return Err(conflict("admin.inactive"));
    }
    if others
        .iter()
        .any(|other| other.npub != admin.npub && holds(other))
    {
        return Err(conflict("key.other_admin"));
    }
    admin.updated_at = later(admin.updated_at, key.at);
    // Anybody enrolled can publish key packages without end, and the document is read with every request.
    let excess = (admin.signature_keys.len() + 1).saturating_sub(MAX_KEYS);
    admin.signature_keys.drain(..excess);
    admin.signature_keys.push(key);
    Ok(written(admin, audit))
}

/// Takes or renews a lease. The holder renews under the same fence; any other hand, also the same owner after a lapse, gets a higher one.
///
/// A change of hands comes with a record of it.
///
/// # Errors
/// [`StoreError::Conflict`] while somebody else holds it.
pub fn lease(
    known: Option<&LeaseDoc>,
    name: &str,
    owner: &str,
    ttl_ms: u64,
    now: UnixMs,
) -> Result<(LeaseDoc, Option<AuditRecord>)> {
    let until = UnixMs(now.0.saturating_add(ttl_ms));
    let fence = match known {
        None => 1,
        Some(held) if now < held.until && held.owner == owner => held.fence,
        Some(held) if now < held.until => return Err(conflict("lease.held")),
        Some(lapsed) => lapsed
            .fence
            .checked_add(1)
            .ok_or(conflict("lease.exhausted"))?,
    };
    let changed_hands = known.is_none_or(|held| held.fence != fence);
    let record = changed_hands.then(|| {
        by_relay(
            now,
            "lease.taken",
            format!("{name} by {owner} under {fence}"),
        )
    });
    let lease = LeaseDoc {
        name: name.to_owned(),
        owner: owner.to_owned(),
        fence,
        until,
    };
    Ok((lease, record))
}

fn written(admin: AdminDoc, audit: AuditRecord) -> Verdict<AdminDoc> {
    Verdict {
        change: Change {
            admin: Some(admin.clone()),
            audit: vec![audit],
            ..Change::default()
        },
        answer: admin,
    }
}

/// Creates or replaces the binding of an alias, as it is to be stored: it bears the `updated_at` with which it was read, and gets the time of the change.
/// One MLS group has one alias: two aliases would be two rosters and two approvals for the same members.
///
/// # Errors
/// [`StoreError::Conflict`] when another alias holds one of the ids, or the binding was changed since it was read, or exists; [`StoreError::InvalidId`]
/// for an alias that no document can have as its id.
pub fn bind_group(
    mut group: AdminGroupDoc,
    known: &[AdminGroupDoc],
    now: UnixMs,
) -> Result<AdminGroupDoc> {
    document_id("admin group", &group.alias)?;
    let taken = known.iter().any(|other| {
        other.alias != group.alias
            && ((other.mls_group_id.is_some() && other.mls_group_id == group.mls_group_id)
                || (other.nostr_group_id.is_some() && other.nostr_group_id == group.nostr_group_id))
    });
    if taken {
        return Err(conflict("group.id_taken"));
    }
    if let Some(known) = known.iter().find(|known| known.alias == group.alias) {
        if known.updated_at != group.updated_at {
            return Err(conflict("group.changed"));
        }
        group.updated_at = later(known.updated_at, now);
    }
    Ok(group)
}

/// A group that is served no more, or again; `None` if it is so already.
#[must_use]
pub fn set_group_state(
    group: &AdminGroupDoc,
    state: GroupState,
    now: UnixMs,
) -> Option<AdminGroupDoc> {
    (group.status != state).then(|| AdminGroupDoc {
        status: state,
        updated_at: later(group.updated_at, now),
        ..group.clone()
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use keyturn_proto::Npub;

    use super::*;
    use crate::documents::{Actor, ClientScope};

    fn key(number: usize) -> ProvenKey {
        ProvenKey {
            key: format!("{number:064x}"),
            proof_event: "00".repeat(32),
            at: UnixMs(1),
        }
    }

    #[test]
    fn an_admin_who_proves_keys_without_end_fills_no_document() {
        let mut admin = AdminDoc {
            npub: Npub::from_bytes([1; 32]),
            active: true,
            scope: ClientScope::All,
            signature_keys: Vec::new(),
            totp: None,
            created_at: UnixMs(0),
            updated_at: UnixMs(0),
        };
        for number in 0..MAX_KEYS + 3 {
            let audit = AuditRecord {
                at: UnixMs(1),
                actor: Actor::Relay,
                event: "admin.key_proven".to_owned(),
                reason: String::new(),
                client_id: None,
                rotation_id: None,
                version_id: None,
                group: None,
                nostr_event: None,
                device: None,
            };
            admin = prove_key(admin, &[], key(number), audit).unwrap().answer;
        }
        assert_eq!(admin.signature_keys.len(), MAX_KEYS);
        assert_eq!(admin.signature_keys.first(), Some(&key(3)));
        assert_eq!(admin.signature_keys.last(), Some(&key(MAX_KEYS + 2)));
    }
}
