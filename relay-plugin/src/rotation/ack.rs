//! Step 6: an admin confirms that the secret has arrived, and proves it (protocol.md §5).
//!
//! What must always hold: an ack counts only for the leaf that MLS says sent it, from an enrolled npub with this very key proven, a reader of
//! this rotation; a proof is verified against the key stored at prepare, for this npub and this group, so that nobody can pass on another's.

use keyturn_proto::ack::{AckStatement, RotateAck};
use keyturn_proto::encoding::from_b64url_array;
use keyturn_proto::notify::NotifyState;
use keyturn_proto::{ErrorClass, ServiceNotify};
use keyturn_store::documents::{AckEntry, RotationDoc, RotationState, VersionDoc};
use keyturn_store::store::RecordAck;

use super::audit::Entry;
use super::engine::Engine;
use super::failure::Failure;
use super::machine::{self, Effect, Event};
use super::promote::{counted, promoted};
use crate::admission::Opened;
use crate::{crash, metrics as names};

/// An ack that was judged and may be recorded.
struct Acknowledged {
    rotation: RotationDoc,
    entry: AckEntry,
}

impl Engine {
    /// Judges and records an ack, and promotes with it if it completes the quorum. Returns what the group is told.
    ///
    /// # Errors
    /// [`Failure`]; a refusal is to be audited by the caller.
    pub async fn acknowledge(&self, opened: &Opened) -> Result<ServiceNotify, Failure> {
        let ack: RotateAck = serde_json::from_str(&opened.json)
            .map_err(|_| Failure::refused(ErrorClass::PolicyViolation, "ack.malformed"))?;
        let fence = self.fenced()?;
        let judged = self.judge(opened, &ack).await?;
        let after = match machine::step(&judged.rotation, Event::Acked, self.now()) {
            Some(Effect::RecordAck) => self.record(opened, judged, fence).await?,
            Some(Effect::NoteLateAck) => self.note_late(opened, judged).await?,
            Some(Effect::RefuseAck(reason)) => {
                return Err(Failure::refused(ErrorClass::Conflict, reason));
            }
            _ => return Err(Failure::Again("ack.unexpected_state")),
        };
        let (rotation, proven) = after;
        Ok(ServiceNotify {
            action_id: Some(rotation.rotation_id.clone()),
            client_id: Some(rotation.client_id.clone()),
            in_reply_to: Some(opened.event_id.clone()),
            at: self.now(),
            body: NotifyState::Acked {
                proven,
                acks: counted(&rotation),
                required: rotation.quorum.required,
            },
        })
    }

    async fn judge(&self, opened: &Opened, ack: &RotateAck) -> Result<Acknowledged, Failure> {
        let unauthorised = |reason| Failure::refused(ErrorClass::UnauthorizedRequest, reason);
        if ack.ack_by != opened.sender {
            return Err(unauthorised("ack.not_the_sender"));
        }
        let admin = self.store().admin(&opened.sender).await?;
        let key = hex::encode(&opened.leaf_signature_key);
        match admin {
            None => return Err(unauthorised("admin.not_enrolled")),
            Some(admin) if !admin.active => return Err(unauthorised("admin.revoked")),
            Some(admin) if !admin.signature_keys.iter().any(|proven| proven.key == key) => {
                return Err(unauthorised("admin.key_not_proven"));
            }
            Some(_) => {}
        }
        let rotation = self
            .store()
            .rotation(&ack.rotation_id)
            .await?
            .ok_or(unauthorised("rotation.unknown"))?;
        let client = self.store().client(&rotation.client_id).await?;
        let of_group = client.is_some_and(|c| c.admin_groups.contains(&opened.group.alias));
        if rotation.client_id != ack.client_id || !of_group {
            return Err(unauthorised("rotation.of_another_client"));
        }
        if rotation.new_version != Some(ack.version_id) {
            return Err(Failure::refused(ErrorClass::Conflict, "ack.other_version"));
        }
        if !rotation.readers.contains(&opened.sender) {
            return Err(unauthorised("ack.not_a_reader"));
        }
        let proven = match &ack.proof {
            None => false,
            Some(proof) => {
                let version = self.version(&rotation, ack).await?;
                prove(opened, ack, &version, proof)?;
                true
            }
        };
        Ok(Acknowledged {
            rotation,
            entry: AckEntry {
                npub: opened.sender,
                proven,
                group: Some(opened.group.alias.clone()),
                at: self.now(),
            },
        })
    }

    async fn version(
        &self,
        rotation: &RotationDoc,
        ack: &RotateAck,
    ) -> Result<VersionDoc, Failure> {
        let versions = self.store().versions(&rotation.client_id).await?;
        let found = versions
            .into_iter()
            .rev()
            .find(|v| v.version_id == ack.version_id);
        found.ok_or(Failure::refused(ErrorClass::Conflict, "ack.other_version"))
    }

    async fn record(
        &self,
        opened: &Opened,
        judged: Acknowledged,
        fence: u64,
    ) -> Result<(RotationDoc, bool), Failure> {
        let Acknowledged { rotation, entry } = judged;
        let Some(version_id) = rotation.new_version else {
            return Err(Failure::refused(ErrorClass::Conflict, "ack.not_prepared"));
        };
        let (proven, before) = (entry.proven, rotation.state);
        let now = self.now();
        let result = self
            .store()
            .record_ack(RecordAck {
                audit: acked(opened, &rotation, "ack.recorded", proven, now),
                rotation_id: rotation.rotation_id,
                version_id,
                ack: entry,
                retention_ms: self.settings().retention_ms(),
                fence,
                now,
            })
            .await?;
        crash::point(crash::Point::AfterAck).await;
        if result.counted {
            let word = if proven { "proven" } else { "unproven" };
            metrics::counter!(names::ACKS, "result" => word).increment(1);
        }
        if before == RotationState::Prepared && result.rotation.state != before {
            metrics::histogram!(names::QUORUM_SECONDS)
                .record(now.since(result.rotation.created_at).as_secs_f64());
        }
        if result.promoted {
            promoted();
            crash::point(crash::Point::AfterPromote).await;
        } else if let Some(outcome) = result.rotation.outcome.filter(|_| !result.counted) {
            tracing::warn!(
                rotation = %result.rotation.rotation_id, client = %result.rotation.client_id,
                "canceled at an ack: somebody who can read the pending secret was revoked"
            );
            super::cancel::counted(outcome);
        }
        // Promoted or not, there may be a new deadline.
        self.wake();
        Ok((result.rotation, proven))
    }

    async fn note_late(
        &self,
        opened: &Opened,
        judged: Acknowledged,
    ) -> Result<(RotationDoc, bool), Failure> {
        let Acknowledged { rotation, entry } = judged;
        let now = self.now();
        let audit = acked(opened, &rotation, "ack.late", entry.proven, now);
        self.store().append(audit).await?;
        metrics::counter!(names::ACKS, "result" => "late").increment(1);
        Ok((rotation, entry.proven))
    }
}

fn acked(
    opened: &Opened,
    rotation: &RotationDoc,
    event: &str,
    proven: bool,
    now: keyturn_proto::UnixMs,
) -> keyturn_store::documents::AuditRecord {
    let reason = if proven { "proven" } else { "unproven" };
    let entry = Entry::of_opened(now, opened, event, reason)
        .client(&rotation.client_id)
        .rotation(&rotation.rotation_id);
    match rotation.new_version {
        Some(version) => entry.version(version),
        None => entry,
    }
    .done()
}

/// The proof is by a holder of the very secret, made for this sender in this group.
fn prove(
    opened: &Opened,
    ack: &RotateAck,
    version: &VersionDoc,
    proof: &str,
) -> Result<(), Failure> {
    let not_proven = |reason| Failure::refused(ErrorClass::UnauthorizedRequest, reason);
    let Some(public_key) = &version.ack_public_key else {
        return Err(not_proven("ack.no_proof_possible"));
    };
    let public_key = from_b64url_array::<32>("ack_public_key", public_key)
        .map_err(|_| Failure::refused(ErrorClass::InternalError, "store.damaged"))?;
    AckStatement {
        rotation: &ack.rotation_id,
        client: &ack.client_id,
        version: &ack.version_id,
        secret_hash: &version.secret_hash,
        npub: &opened.sender,
        group: &opened.group.mls_group_id,
    }
    .verify(&public_key, proof)
    .map_err(|_| not_proven("ack.proof_wrong"))
}
