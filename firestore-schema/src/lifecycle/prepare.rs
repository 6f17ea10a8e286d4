//! Step 4: records the generated version and its ciphertext, only for the attempt that still holds the client.

use keyturn_proto::UnixMs;

use super::draft::{Draft, conflict};
use super::table::{RotationEvent, VersionEvent};
use super::{Family, Verdict};
use crate::documents::{Origin, OutboxDoc, RotationDoc, RotationState, VersionDoc};
use crate::mac::SecretHash;
use crate::mac::prehash::BcryptSetting;
use crate::store::{Prepare, Result, StoreError};

/// `exists` says whether the client has, or had, a version of that id.
///
/// # Errors
/// [`StoreError::Fenced`] when the attempt is not the client's any more; [`StoreError::Conflict`] when another version is recorded already or the
/// documents do not belong together.
pub fn prepare(
    family: Family,
    mut rotation: RotationDoc,
    exists: bool,
    command: Prepare,
) -> Result<Verdict<RotationDoc>> {
    let Prepare {
        active,
        version,
        readers,
        distribution_message_id,
        outbox,
        now,
        audit,
    } = command;

    let same_attempt = rotation.attempt == active.attempt && rotation.fence == active.fence;
    if same_attempt && rotation.new_version == Some(version.version_id) {
        // The repeat of a commit whose answer was lost.
        return Ok(Verdict::unchanged(rotation));
    }
    if family.client.active_rotation.as_ref() != Some(&active) || !same_attempt {
        return Err(StoreError::Fenced);
    }
    if rotation.state != RotationState::Reserved {
        return Err(conflict("prepare.recorded"));
    }
    if exists {
        return Err(conflict("version.exists"));
    }
    check_version(&rotation, &version)?;
    check_outbox(&rotation, &outbox)?;

    let mut draft = Draft::under(active.fence, family)?;
    let has_old = draft.client.current_version.is_some();
    rotation.new_version = Some(version.version_id);
    rotation.not_before = version.not_before;
    rotation.grace_until = (has_old && rotation.grace_duration_ms > 0).then(|| {
        UnixMs(
            version
                .not_before
                .0
                .saturating_add(rotation.grace_duration_ms),
        )
    });
    rotation.readers = readers;
    rotation.distribution_message_id = Some(distribution_message_id);
    draft.rotation(&mut rotation, RotationEvent::Prepare, now)?;
    draft.create(version, VersionEvent::Prepare)?;

    let (_, mut change) = draft.finish(now);
    change.rotations.push(rotation.clone());
    change.outbox = outbox;
    change.audit.push(audit);
    Ok(Verdict {
        answer: rotation,
        change,
    })
}

fn check_version(rotation: &RotationDoc, version: &VersionDoc) -> Result<()> {
    if version.rotation_id.as_ref() != Some(&rotation.rotation_id)
        || version.client_id != rotation.client_id
        || version.not_after.is_some()
    {
        return Err(conflict("version.mismatch"));
    }
    if version.not_before < rotation.not_before {
        return Err(conflict("version.too_early"));
    }
    check_hash(version)
}

/// protocol.md §2: one algorithm, and only canonical spellings get in. What is derived from a secret belongs to generated ones (§5, §7); what another
/// system did to a secret, to imported ones.
pub(super) fn check_hash(version: &VersionDoc) -> Result<()> {
    let prefilter_ok = version.prefilter.as_ref().is_none_or(|text| {
        text.len() == 8 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    });
    let prehash_ok = version
        .prehash
        .as_ref()
        .is_none_or(|text| BcryptSetting::parse(text).is_ok());
    let belongs = match version.origin {
        Origin::Generated => version.prehash.is_none(),
        Origin::Imported => version.prefilter.is_none() && version.ack_public_key.is_none(),
    };
    if version.algo != "HMAC-SHA-256"
        || version.mac_key_ref.is_empty()
        || SecretHash::parse(&version.secret_hash).is_err()
        || !prefilter_ok
        || !prehash_ok
        || !belongs
    {
        return Err(conflict("version.malformed"));
    }
    Ok(())
}

fn check_outbox(rotation: &RotationDoc, outbox: &[OutboxDoc]) -> Result<()> {
    let ours = |event: &OutboxDoc| {
        event.rotation_id == rotation.rotation_id && event.attempt == rotation.attempt
    };
    if outbox.iter().all(ours) {
        Ok(())
    } else {
        Err(conflict("outbox.mismatch"))
    }
}
