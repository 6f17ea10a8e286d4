//! What the operator does with a client: register, suspend, revoke, lift a suspension, change groups and policy.

use keyturn_proto::UnixMs;

use super::draft::{Draft, conflict};
use super::prepare::check_hash;
use super::revoke::revoke_versions;
use super::table::{ClientEvent, RotationEvent, VersionEvent};
use super::{Change, Family, Verdict, consequence};
use crate::documents::{
    AuditRecord, ClientDoc, ClientStatus, PolicyOverrides, RotationDoc, VersionDoc,
};
use crate::store::Result;

/// What to change; `None` leaves it.
#[derive(Clone, Debug, Default)]
pub struct ClientUpdate {
    /// Status.
    pub status: Option<ClientStatus>,
    /// Group aliases.
    pub admin_groups: Option<Vec<String>>,
    /// Policy overrides.
    pub policy: Option<PolicyOverrides>,
}

/// Registers a client, with its first version or without any.
///
/// # Errors
/// [`crate::store::StoreError::Conflict`] if it exists, or the documents do not belong together.
pub fn create_client(
    known: Option<&ClientDoc>,
    client: ClientDoc,
    first: Option<VersionDoc>,
    audit: AuditRecord,
) -> Result<Change> {
    if known.is_some() {
        return Err(conflict("client.exists"));
    }
    if client.status != ClientStatus::Active || client.active_rotation.is_some() {
        return Err(conflict("client.mismatch"));
    }
    let now = client.updated_at;
    let mut draft = Draft::of(Family {
        client: ClientDoc {
            snapshot: Vec::new(),
            ..client
        },
        living: Vec::new(),
    })?;
    if let Some(first) = first {
        check_hash(&first)?;
        draft.create(first, VersionEvent::Create)?;
    }
    let (_, mut change) = draft.finish(now);
    change.audit.push(audit);
    Ok(change)
}

/// `active` is the rotation under way; `ever_current` whether any version was ever valid.
///
/// A suspension withdraws the rotation under way: promoting it would lift the suspension behind the operator's back.
///
/// # Errors
/// [`crate::store::StoreError::Conflict`] when the client is revoked for good, or would be active without a current version.
pub fn update_client(
    family: Family,
    active: Option<RotationDoc>,
    ever_current: bool,
    update: ClientUpdate,
    now: UnixMs,
    audit: AuditRecord,
) -> Result<Verdict<ClientDoc>> {
    let mut draft = Draft::of(family)?;
    let mut consequences = Change::default();
    match update.status {
        None => {}
        Some(ClientStatus::Active) => {
            if ever_current && draft.client.current_version.is_none() {
                return Err(conflict("client.no_current_version"));
            }
            draft.status(ClientEvent::Activate)?;
            draft.client.policy.held = false;
        }
        Some(ClientStatus::Suspended) => {
            draft.status(ClientEvent::Suspend)?;
            draft.client.policy.held = true;
            if let Some(mut rotation) = active {
                if let Some(version) = rotation.new_version {
                    draft.step(version, VersionEvent::Cancel, now)?;
                }
                draft.rotation(&mut rotation, RotationEvent::Cancel, now)?;
                consequences.end(&rotation, now);
                consequences.audit.push(consequence(
                    &audit,
                    "rotation.canceled",
                    Some(&rotation.rotation_id),
                    rotation.new_version,
                ));
            }
        }
        Some(ClientStatus::Revoked) => {
            if draft.client.status != ClientStatus::Revoked {
                revoke_versions(
                    &mut draft,
                    active,
                    None,
                    now,
                    now,
                    &audit,
                    &mut consequences,
                )?;
            }
            draft.status(ClientEvent::Revoke)?;
        }
    }
    if let Some(groups) = update.admin_groups {
        draft.client.admin_groups = groups;
    }
    if let Some(policy) = update.policy {
        draft.client.policy = PolicyOverrides {
            held: draft.client.policy.held,
            ..policy
        };
    }
    let (client, mut change) = draft.finish(now);
    change.rotations = consequences.rotations;
    change.actions = consequences.actions;
    change.expire_outbox = consequences.expire_outbox;
    change.audit.push(audit);
    change.audit.extend(consequences.audit);
    Ok(Verdict {
        answer: client,
        change,
    })
}
