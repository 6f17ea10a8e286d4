//! Taking up a rotation from what the store holds: at start, after an answer was lost, when a roster changed under our hands, and, since it
//! is the same work, right after a reservation.
//!
//! What must always hold: before anything is prepared under a rotation that another attempt may still write to, the attempt is bumped;
//! membership, enrolment and policy are judged again each time; each round reads the store anew and carries out one effect.

use std::collections::BTreeSet;
use std::time::Duration;

use keyturn_proto::notify::Outcome;
use keyturn_proto::{ErrorClass, RotationId};
use keyturn_store::documents::{ActiveRotation, ClientDoc, OutboxDoc, RotationDoc, RotationState};
use keyturn_store::lifecycle::due;
use keyturn_store::store::StoreError;

use super::audit::Entry;
use super::engine::{Claim, Engine};
use super::failure::Failure;
pub use super::machine::Doubt;
use super::machine::{self, Ciphertext, Delivery, Effect, Event, Standing};
use super::ports::{Audience, AudienceError};
use super::prepare::Prepared;
use super::reserve::Reserved;

/// Rounds after which a rotation is left to the sweep: take over, prepare, publish, and as many again because rosters changed.
const ROUNDS: usize = 12;
/// Outbox events looked at in one go.
const PAGE: usize = 500;
/// How long a request waits for an epoch to settle before it leaves the rotation to the driver, which holds nobody up.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

impl Engine {
    /// Takes up every rotation that is not over. Runs before the first request; what cannot be finished now is left to the driver.
    ///
    /// # Errors
    /// [`Failure`] if the store cannot say what is active.
    pub async fn recover(&self) -> Result<(), Failure> {
        let mut ids = self.half_done().await?;
        ids.extend(self.left_open().await?);
        for id in ids {
            let Some(claim) = self.claim(&id) else {
                continue;
            };
            match self.take_up(&claim).await {
                Ok(()) => tracing::info!(rotation = %id, "taken up after a restart"),
                Err(failure) => {
                    tracing::warn!(rotation = %id, reason = failure.reason(), "left to the sweep");
                }
            }
        }
        Ok(())
    }

    /// Rotations under way on which there may be work beside waiting: reserved but not prepared, prepared but not known to be out.
    pub(super) async fn half_done(&self) -> Result<BTreeSet<RotationId>, StoreError> {
        let active = self.store().active_rotations().await?;
        let mut delivered = self.delivered();
        delivered.retain(|id, _| active.iter().any(|rotation| rotation.rotation_id == *id));
        let open = active.into_iter().filter(|rotation| {
            rotation.state == RotationState::Reserved
                || delivered.get(&rotation.rotation_id) != Some(&rotation.attempt)
        });
        Ok(open.map(|rotation| rotation.rotation_id).collect())
    }

    /// Rotations with an event that this instance's relay does not hold. Beside those under way these may be promoted ones: a process that
    /// dies between the quorum of one group and the event of another leaves that other group without its secret. Who lives remembers.
    async fn left_open(&self) -> Result<BTreeSet<RotationId>, Failure> {
        let mut open = BTreeSet::new();
        let mut after: Option<String> = None;
        loop {
            let page = self.store().outbox_page(after.as_deref(), PAGE).await?;
            let last = page.len() < PAGE;
            after = page.last().map(|event| event.event_id.clone());
            for event in page {
                let known = open.contains(&event.rotation_id) || !due::kept(&event, self.now());
                if !known && !self.distributor().is_published(&event.event_id).await? {
                    open.insert(event.rotation_id);
                }
            }
            if last {
                return Ok(open);
            }
        }
    }

    /// Goes on with a rotation that was left half done, and tells its group when it is out.
    pub(super) async fn take_up(&self, claim: &Claim) -> Result<(), Failure> {
        match self
            .resume(claim, Doubt::OlderAttempt, Duration::ZERO)
            .await?
        {
            Some(Carried {
                rotation,
                news: true,
            }) if rotation.state != RotationState::Done => {
                self.tell_once(&rotation.mls_group, &self.accepted(&rotation, None))
                    .await;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Goes on until nothing is left to do but wait. `Some` when the rotation is prepared and every notify is out.
    ///
    /// # Errors
    /// [`Failure::Refused`] after the rotation was cancelled for that reason; [`Failure::Again`] to be tried later.
    pub(super) async fn resume(
        &self,
        claim: &Claim,
        mut doubt: Doubt,
        patience: Duration,
    ) -> Result<Option<Carried>, Failure> {
        let id = claim.id();
        let carried = |rotation, news| Some(Carried { rotation, news });
        for _ in 0..ROUNDS {
            let Some(rotation) = self.store().rotation(id).await? else {
                return Ok(None);
            };
            let over = rotation.state == RotationState::Done;
            if over && rotation.outcome != Some(Outcome::Promoted) {
                return Ok(None);
            }
            let fence = self.fenced()?;
            if rotation.fence != fence {
                // Reserved under another lease: its holder may still be writing.
                doubt = Doubt::OlderAttempt;
            }
            let ciphertext = self.ciphertext(&rotation).await?;
            if over && ciphertext.sealed == 0 {
                return Ok(None);
            }
            if machine::delivery(&ciphertext, None) == Delivery::Delivered {
                self.note_delivered(&rotation);
                return Ok(carried(rotation, false));
            }

            let look = self.look(&rotation, patience).await?;
            let event = Event::Looked {
                standing: look.standing,
                delivery: machine::delivery(&ciphertext, look.sound.as_ref()),
                doubt,
            };
            match machine::step(&rotation, event, self.now()) {
                Some(Effect::TakeOver(reason)) => {
                    self.take_over(&rotation, fence, reason).await?;
                    doubt = Doubt::None;
                }
                Some(Effect::Prepare) => {
                    let Some(audience) = look.sound else {
                        return Err(Failure::Again("audience.missing"));
                    };
                    let active = active(&rotation);
                    self.prepare(Reserved {
                        rotation,
                        active,
                        audience,
                    })
                    .await?;
                }
                Some(Effect::Publish) => {
                    let rotation = self.distribute(rotation, ciphertext.open).await?;
                    self.note_delivered(&rotation);
                    return Ok(carried(rotation, true));
                }
                Some(Effect::Cancel { outcome, reason }) => {
                    self.end(&rotation, outcome, reason).await?;
                    let class = ErrorClass::PolicyViolation;
                    return Err(Failure::refused(class, reason));
                }
                // Answers to acks and to the clock; looking never yields them.
                Some(
                    Effect::RecordAck
                    | Effect::NoteLateAck
                    | Effect::RefuseAck(_)
                    | Effect::Promote
                    | Effect::Announce,
                )
                | None => return Ok(carried(rotation, false)),
            }
        }
        Err(Failure::Again("rotation.unsteady"))
    }

    /// What was sealed in the present attempt and may still go out, and how much of it this instance's relay does not hold.
    async fn ciphertext(&self, rotation: &RotationDoc) -> Result<Ciphertext, Failure> {
        if rotation.state == RotationState::Reserved {
            return Ok(Ciphertext::default());
        }
        let now = self.now();
        let mut ciphertext = Ciphertext::default();
        for event in self.store().outbox(&rotation.rotation_id).await? {
            if !due::publishable(rotation, &event, now) {
                continue;
            }
            ciphertext.sealed += 1;
            if !self.distributor().is_published(&event.event_id).await? {
                ciphertext.open.push(event);
            }
        }
        Ok(ciphertext)
    }

    fn note_delivered(&self, rotation: &RotationDoc) {
        if rotation.state != RotationState::Done {
            let id = rotation.rotation_id.clone();
            self.delivered().insert(id, rotation.attempt);
        }
    }

    /// Step 5. An event that the relay will never take ends the rotation.
    async fn distribute(
        &self,
        rotation: RotationDoc,
        outbox: Vec<OutboxDoc>,
    ) -> Result<RotationDoc, Failure> {
        let attempt = Prepared::recorded(rotation.clone(), outbox);
        match attempt.distribute(self).await {
            Ok(distributed) => Ok(distributed.rotation),
            Err(Failure::Refused(refusal)) => {
                if rotation.state != RotationState::Done {
                    self.end(&rotation, Outcome::Canceled, refusal.reason)
                        .await?;
                }
                Err(Failure::Refused(refusal))
            }
            Err(again) => Err(again),
        }
    }

    /// Steps 3 and 4. A refusal cancels the reservation; a failure that will pass leaves it.
    async fn prepare(&self, reserved: Reserved) -> Result<(), Failure> {
        let rotation = reserved.rotation.clone();
        match self.generate_to_prepare(reserved).await {
            Err(Failure::Refused(refusal)) => {
                self.end(&rotation, Outcome::Canceled, refusal.reason)
                    .await?;
                Err(Failure::Refused(refusal))
            }
            other => other,
        }
    }

    async fn generate_to_prepare(&self, reserved: Reserved) -> Result<(), Failure> {
        let started = self.now();
        reserved
            .generate(started)?
            .mac(self.mac())
            .await?
            .seal(self.distributor(), self.now())
            .await?
            .prepare(self.store(), self.now())
            .await?;
        metrics::histogram!(crate::metrics::PREPARE_SECONDS)
            .record(self.now().since(started).as_secs_f64());
        Ok(())
    }

    async fn take_over(
        &self,
        rotation: &RotationDoc,
        fence: u64,
        reason: &str,
    ) -> Result<(), Failure> {
        let now = self.now();
        let audit = Entry::of_rotation(now, rotation, "rotation.taken_over", reason).done();
        self.store()
            .take_over(&active(rotation), fence, now, audit)
            .await?;
        metrics::counter!(crate::metrics::TAKE_OVERS).increment(1);
        Ok(())
    }

    /// Who could read it now, and whether requester, group, client and policy still hold.
    async fn look(&self, rotation: &RotationDoc, patience: Duration) -> Result<Look, Failure> {
        let Some(client) = self.store().client(&rotation.client_id).await? else {
            return Ok(Look::lost("client.unknown"));
        };
        let audience = match self.audience_when_ready(&client, patience).await {
            Ok(audience) => audience,
            Err(AudienceError::Unfit { alias: _, reason }) => return Ok(Look::lost(reason)),
            Err(AudienceError::NoGroup) => return Ok(Look::lost("client.no_admin_group")),
            Err(error) => return Err(error.into()),
        };
        let leaves = audience
            .roster(&rotation.mls_group)
            .map_or(&[][..], |roster| &roster.leaves);
        match self.gate().recheck(rotation, leaves).await {
            Ok(_) => Ok(Look {
                standing: Standing::Sound,
                sound: Some(audience),
            }),
            // The judge himself failed: that says nothing about the rotation.
            Err(refusal) if refusal.class == ErrorClass::InternalError => {
                Err(Failure::Again(refusal.reason))
            }
            Err(refusal) => Ok(Look::lost(refusal.reason)),
        }
    }

    /// Waits, within reason, for what passes by itself.
    async fn audience_when_ready(
        &self,
        client: &ClientDoc,
        patience: Duration,
    ) -> Result<Audience, AudienceError> {
        let give_up = self.now().plus(patience);
        loop {
            match self.distributor().audience(client).await {
                Err(AudienceError::NotYet { retry_at, .. }) if retry_at <= give_up => {
                    let pause = self.now().plus(Duration::from_millis(20));
                    self.clock().sleep_until(retry_at.max(pause)).await;
                }
                other => return other,
            }
            if self.now() > give_up {
                return self.distributor().audience(client).await;
            }
        }
    }
}

/// A rotation that is prepared and out.
pub(super) struct Carried {
    pub(super) rotation: RotationDoc,
    /// Something of it went out just now.
    pub(super) news: bool,
}

/// What one look found. The audience is there exactly while the standing is sound.
struct Look {
    standing: Standing,
    sound: Option<Audience>,
}

impl Look {
    const fn lost(reason: &'static str) -> Self {
        Self {
            standing: Standing::Lost(reason),
            sound: None,
        }
    }
}

pub(super) fn active(rotation: &RotationDoc) -> ActiveRotation {
    ActiveRotation {
        rotation_id: rotation.rotation_id.clone(),
        attempt: rotation.attempt,
        fence: rotation.fence,
    }
}
