//! Step 2: the client is reserved for one rotation, in one transaction with the idempotency key, the TOTP step and the audit record.
//!
//! Nothing is reserved that could not be delivered: the leaves of every admin group are checked first, and that enough of them can ack.

use std::time::Duration;

use keyturn_proto::{Action, ErrorClass, Npub, UnixMs};
use keyturn_store::documents::{ActiveRotation, Quorum, RotationDoc, RotationState};
use keyturn_store::store::{Reserve, Reserved as StoreReserved};

use super::audit::Entry;
use super::engine::Engine;
use super::failure::Failure;
use super::request::Authorised;
use crate::admission::{Permit, Refusal};
use crate::crash;

/// What a reservation has at least to be prepared.
const TO_PREPARE: Duration = Duration::from_secs(60);

/// What a reservation came to.
pub enum Reservation {
    /// The client is ours.
    New,
    /// The very same request was reserved before; this is how far it has come.
    Repeat(Box<RotationDoc>),
}

/// A reserved rotation whose requester, groups and policy were judged under its present attempt. Made by [`super::recover`] from what the
/// store holds, whether the reservation is a millisecond or a restart old.
pub struct Reserved {
    pub(super) rotation: RotationDoc,
    pub(super) active: ActiveRotation,
    pub(super) audience: super::ports::Audience,
}

impl Authorised {
    /// Reserves.
    ///
    /// # Errors
    /// [`Failure`]; nothing was changed.
    pub async fn reserve(self, engine: &Engine) -> Result<Reservation, Failure> {
        let permit = self.permit();
        let now = engine.now();
        let fence = self.fence();

        let emergency = permit.action() == Action::Emergency;
        let quorum = quorum(engine, permit);
        // An emergency revokes first and asks for readers later: nobody in the group may keep a leaked secret alive by unsettling the group or
        // bringing a stranger in (protocol.md §3: revoke waits for no MLS).
        if !emergency {
            let audience = engine.distributor().audience(permit.client()).await?;
            if !reachable(&quorum, permit.requester(), &audience.readers()) {
                let class = ErrorClass::PolicyViolation;
                return Err(Failure::refused(class, "policy.quorum_unreachable"));
            }
        }
        let event = if emergency {
            "emergency.reserved"
        } else {
            "rotation.reserved"
        };
        let reserved = engine
            .store()
            .reserve(Reserve {
                rotation: document(engine, permit, quorum, fence, now),
                totp_step: permit.totp_step(),
                min_interval_ms: if emergency {
                    0
                } else {
                    permit.min_interval_ms()
                },
                revoke_living: emergency,
                now,
                audit: Entry::of_permit(now, permit, event).done(),
            })
            .await?;
        let refused = |class, reason| Err(Failure::refused(class, reason));
        match reserved {
            StoreReserved::New(_) => {
                crash::point(crash::Point::AfterReserve).await;
                Ok(Reservation::New)
            }
            StoreReserved::Repeat(rotation) => Ok(Reservation::Repeat(rotation)),
            StoreReserved::IdReused => refused(ErrorClass::Conflict, "request.id_reused"),
            StoreReserved::Busy(_) => refused(ErrorClass::Conflict, "rotation.active"),
            StoreReserved::TooSoon(at) => Err(Failure::Refused(Refusal {
                class: ErrorClass::PolicyViolation,
                reason: "policy.min_interval",
                retry_after_ms: Some(at.0.saturating_sub(now.0)),
            })),
            StoreReserved::TotpReplayed => {
                refused(ErrorClass::UnauthorizedRequest, "totp.replayed")
            }
            StoreReserved::NotRotatable(_) => {
                refused(ErrorClass::PolicyViolation, "client.not_rotatable")
            }
        }
    }
}

/// The rotation as it will be recorded.
fn document(
    engine: &Engine,
    permit: &Permit,
    quorum: Quorum,
    fence: u64,
    now: UnixMs,
) -> RotationDoc {
    let emergency = permit.action() == Action::Emergency;
    // Emergency: no delay and no grace (protocol.md §3); what lived is retired by the same transaction.
    let (not_before, grace_ms) = if emergency {
        (now, 0)
    } else {
        (permit.not_before(), permit.grace_ms())
    };
    let old_version = permit.client().current_version.filter(|_| !emergency);
    RotationDoc {
        rotation_id: permit.action_id().clone(),
        client_id: permit.client_id().clone(),
        action: permit.action(),
        requested_by: permit.requester(),
        reason: permit.params().rotation_reason.clone(),
        mls_group: permit.group().alias.clone(),
        request_digest: permit.request_digest().to_owned(),
        new_version: None,
        old_version,
        not_before,
        grace_duration_ms: grace_ms,
        grace_until: old_version.map(|_| UnixMs(not_before.0.saturating_add(grace_ms))),
        distribution_message_id: None,
        readers: Vec::new(),
        quorum,
        state: RotationState::Reserved,
        outcome: None,
        attempt: 1,
        fence,
        created_at: now,
        // A request that waited for the store may come with a proof that has expired since: it is prepared all the same.
        proof_expires_at: permit.proof_expires_at().max(now.plus(TO_PREPARE)),
        ack_deadline: now.max(not_before).plus(engine.settings().ack_deadline),
        completed_at: None,
        announced_at: None,
    }
}

fn quorum(engine: &Engine, permit: &Permit) -> Quorum {
    let settings = engine.settings();
    Quorum {
        required: permit.client().policy.quorum.unwrap_or(settings.quorum),
        require_proven: settings.require_proven,
        requester_counts: settings.requester_counts,
        acks: Vec::new(),
    }
}

/// Whether the readers could ever complete the quorum; a rotation that cannot be promoted only blocks its client until it expires.
fn reachable(quorum: &Quorum, requester: Npub, readers: &[Npub]) -> bool {
    let counting = readers
        .iter()
        .filter(|reader| quorum.requester_counts || **reader != requester)
        .count();
    counting >= usize::try_from(quorum.required.max(1)).unwrap_or(usize::MAX)
}
