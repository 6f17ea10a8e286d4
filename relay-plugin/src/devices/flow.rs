//! One message from its arrival to what is stored of it.
//!
//! [`Devices::handle`] returns when the message may be acknowledged: what it caused is stored, or it was refused, or the device was told to ask again.
//! It never waits for the issuer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use keyturn_proto::device::{
    AuthRequest, DeviceError, DeviceId, DeviceNonce, IdentityKey, Status, topic,
};
use keyturn_store::devices::{Answer, Change, DeviceDoc, DeviceStore};
use keyturn_store::store::{Store, StoreError};
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;

use super::intake::{self, Incoming, Refused};
use super::issuer::SecretIdIssuer;
use super::limits::{Limits, Voice};
use super::outgoing::{self, Outlet};
use super::queue::{Job, Queue};
use super::refusals::Refusals;
use super::settings::{Settings, jittered};
use super::turns::{Turn, Turns};
use crate::crash::{self, Point};
use crate::metrics as names;
use crate::rotation::ports::Clock;

/// What a device that is not on the list is told to wait: an operator has to do something first.
const UNAUTHORIZED: Duration = Duration::from_secs(3600);
/// After a failure of ours that will pass.
pub(super) const SOON: Duration = Duration::from_secs(10);
/// Devices whose destruction is carried out at once; the rest waits for the next sweep.
const TENDED: usize = 16;
/// How often somebody looks whether refusals are to be written.
const REFUSALS: Duration = Duration::from_secs(1);
/// How often a store write of unknown outcome is repeated.
const REPEATS: u32 = 5;
/// Messages that the store is asked about at once. Their writes share commits; and by so many a device can be overtaken before it has its place in the queue.
pub const AT_ONCE: usize = 256;

/// What the flow stands on.
pub struct Parts {
    /// Devices.
    pub devices: Arc<dyn DeviceStore>,
    /// Audit trail and leases.
    pub store: Arc<dyn Store>,
    /// Makes and destroys secret_ids.
    pub issuer: Arc<dyn SecretIdIssuer>,
    /// Where answers go.
    pub outlet: Arc<dyn Outlet>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// What the operator decided.
    pub settings: Settings,
}

/// The device flow of one relay.
pub struct Devices {
    pub(super) parts: Parts,
    pub(super) queue: Queue,
    pub(super) refusals: Refusals,
    pub(super) limits: Limits,
    turns: Turns,
    pub(super) places: Semaphore,
    /// Cancelled when nothing may be waited for any more.
    pub(super) closing: CancellationToken,
    /// When this flow was made: what is older belongs to the process before.
    pub(super) began: keyturn_proto::UnixMs,
    /// Wakes the upkeep before its time.
    pub(super) due: Notify,
    pub(super) tended: Arc<Semaphore>,
}

/// What a message came to, for tests and the webhook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handled {
    /// A request was recorded and will be answered.
    Asked,
    /// A result was recorded.
    Reported,
    /// A repeat, or none of our business.
    Ignored,
    /// Refused, with this word.
    Refused(&'static str),
    /// The store did not take a result for as long as that was worth waiting for. It is lost, unless whoever brought it brings it again.
    Unrecorded,
    /// The relay stops before the store took it: it must not be acknowledged.
    Interrupted,
}

impl Devices {
    /// A flow that does nothing yet; [`Devices::run`] makes it work.
    #[must_use]
    pub fn new(parts: Parts) -> Arc<Self> {
        Arc::new(Self {
            queue: Queue::new(parts.settings.queue),
            limits: Limits::new(&parts.settings),
            began: parts.clock.now(),
            refusals: Refusals::new(Arc::clone(&parts.store)),
            turns: Turns::default(),
            places: Semaphore::new(AT_ONCE),
            closing: CancellationToken::new(),
            due: Notify::new(),
            tended: Arc::new(Semaphore::new(TENDED)),
            parts,
        })
    }

    pub(super) fn settings(&self) -> &Settings {
        &self.parts.settings
    }

    pub(super) fn now(&self) -> keyturn_proto::UnixMs {
        self.parts.clock.now()
    }

    /// A place in the line of the device that `topic` names. Places are given in the order of these calls: they belong where messages come in.
    #[must_use]
    pub fn line_up(&self, topic: &str) -> Turn {
        self.turns.take(topic::of_status(topic).ok())
    }

    /// Takes one message in.
    pub async fn handle(self: &Arc<Self>, incoming: Incoming<'_>) -> Handled {
        let turn = self.line_up(incoming.topic);
        self.handle_in(turn, incoming).await
    }

    /// Takes in the message that `turn` was taken for, when those that came before it on its topic are done with.
    pub async fn handle_in(self: &Arc<Self>, mut turn: Turn, incoming: Incoming<'_>) -> Handled {
        turn.come().await;
        let outcome = match intake::read(&incoming) {
            Ok(read) => self.look_into(&read, incoming.arrived).await,
            Err(refused) => Err((Voice::Unsigned, refused)),
        };
        let handled = match outcome {
            Ok(handled) => handled,
            Err((voice, refused)) => {
                self.refuse_as(voice, &refused, None).await;
                Handled::Refused(refused.reason)
            }
        };
        let result = match handled {
            Handled::Asked => "request",
            Handled::Reported => "result",
            Handled::Ignored => "ignored",
            Handled::Refused(_) => "refused",
            Handled::Unrecorded | Handled::Interrupted => "unrecorded",
        };
        metrics::counter!(names::DEVICE_MESSAGES, "result" => result).increment(1);
        handled
    }

    /// Nothing is waited for any more: the relay stops.
    pub fn give_way(&self) {
        self.closing.cancel();
    }

    /// Refuses somebody who could not even name a device.
    pub async fn stranger(&self, reason: &'static str) {
        let refused = Refused {
            device: None,
            claims: None,
            known: false,
            nonce: None,
            accessor: None,
            reason,
            error: DeviceError::Unauthorized,
            answered: false,
        };
        self.refuse(&refused, None).await;
    }

    /// Refuses a message for which there was no room to look at it.
    pub fn overrun(&self, incoming: &Incoming<'_>) {
        metrics::counter!(names::DEVICE_MESSAGES, "result" => "overrun").increment(1);
        let refused = match intake::read(incoming) {
            Ok(intake::Read {
                device,
                status: Status::Request(request),
            }) => {
                let refused = refusal(
                    &device,
                    &request.nonce,
                    "queue.overrun",
                    DeviceError::Unavailable,
                );
                let voice = Voice::of(&Status::Request(request.clone()));
                let (nonce, error) = (&request.nonce, DeviceError::Unavailable);
                self.tell_if_heeded(voice, &device, nonce, error, SOON);
                refused
            }
            Ok(intake::Read {
                device,
                status: Status::Result(result),
            }) => refusal(
                &device,
                &result.nonce,
                "queue.overrun",
                DeviceError::Unavailable,
            ),
            // It says nothing to us; or it would have been refused anyway.
            Ok(_) => return,
            Err(refused) => refused,
        };
        metrics::counter!(names::DEVICE_REFUSALS, "reason" => refused.reason).increment(1);
        self.refusals.sum_up(&refused, self.now());
    }

    pub(super) async fn request(
        self: &Arc<Self>,
        doc: DeviceDoc,
        request: AuthRequest,
        identity: Option<IdentityKey>,
        arrived: Instant,
    ) -> Result<Handled, Refused> {
        let device = doc.device_id;
        if identity.is_some()
            && let Some(handled) = self
                .at_once(&device, &request, identity.clone(), arrived)
                .await
        {
            return Ok(handled);
        }
        let AuthRequest { nonce, reason, .. } = request;
        let refused = |word, error| Refused {
            known: true,
            ..refusal(&device, &nonce, word, error)
        };
        if !self.queue.has_room() {
            return Err(refused("queue.full", DeviceError::Unavailable));
        }
        let ask = Change::Ask {
            nonce: nonce.clone(),
            reason,
            identity,
            owner: self.settings().owner.clone(),
            issuer: self.parts.issuer.name().to_owned(),
            limits: self.settings().limits(),
        };
        match self.change(&device, ask).await {
            Ok(Answer::Done(doc)) => {
                crash::point(Point::AfterAsk).await;
                let attempt = doc.attempts;
                // What a newer request has superseded is destroyed without waiting for a sweep.
                if !doc.doomed.is_empty() {
                    self.tend_soon(&doc);
                }
                self.queue.push(Job {
                    device,
                    nonce,
                    attempt,
                    arrived,
                });
                Ok(Handled::Asked)
            }
            Ok(Answer::Repeat) => Ok(Handled::Ignored),
            Ok(Answer::NonceUsed) => Err(refused("nonce.used", DeviceError::NonceUsed)),
            Ok(Answer::TooMany(until)) => {
                let refused = refused("rate.device_hour", DeviceError::RateLimited);
                let wait = Some(until.since(self.now()));
                self.refuse_as(Voice::Verified, &refused, wait).await;
                Ok(Handled::Refused(refused.reason))
            }
            Ok(Answer::NotAllowed) => Err(refused("not_allowed", DeviceError::Unauthorized)),
            Ok(_) => Err(refused("signature.key_changed", DeviceError::Unauthorized)),
            Err(error) => {
                tracing::warn!(%device, %error, "a device's request could not be recorded");
                let error = DeviceError::Unavailable;
                self.tell_if_heeded(Voice::Verified, &device, &nonce, error, SOON);
                Ok(Handled::Refused("store"))
            }
        }
    }

    /// Changes a device's document. Where the outcome of the write is unknown, it is repeated. A change that is found done then was done by us, and is answered as if
    /// the outcome had been known.
    pub(super) async fn change(
        &self,
        device: &DeviceId,
        change: Change,
    ) -> Result<Answer, StoreError> {
        let mut pause = Duration::from_millis(50);
        let mut in_doubt = false;
        for _ in 0..REPEATS {
            let tried = self
                .parts
                .devices
                .change_device(device, change.clone(), self.now())
                .await;
            match tried {
                Err(StoreError::Unknown { .. }) => tokio::time::sleep(pause).await,
                Ok(again @ (Answer::Repeat | Answer::Stale)) if in_doubt => {
                    return self.first_answer(device, &change, again).await;
                }
                settled => return settled,
            }
            in_doubt = true;
            pause *= 2;
        }
        Err(StoreError::Unknown {
            cause: "the outcome stayed unknown",
        })
    }

    /// Counts, audits and answers a refusal of what the device itself has said, or of nobody in particular.
    pub(super) async fn refuse(&self, refused: &Refused, wait: Option<Duration>) {
        self.refuse_as(Voice::Own, refused, wait).await;
    }

    /// Counts, audits and answers a refusal.
    pub(super) async fn refuse_as(&self, voice: Voice, refused: &Refused, wait: Option<Duration>) {
        metrics::counter!(names::DEVICE_REFUSALS, "reason" => refused.reason).increment(1);
        let recorded = self.refusals.note(refused, self.now()).await;
        let Refused {
            device,
            nonce,
            accessor,
            reason,
            answered,
            ..
        } = refused;
        // A flood fills the log as little as the trail.
        if recorded {
            let (device, nonce) = (device.as_ref().map(display), nonce.as_ref().map(display));
            tracing::info!(device, nonce, accessor, reason, "a message was refused");
        }
        if let (Some(device), Some(nonce), true) = (device, nonce, answered) {
            let wait = wait.unwrap_or(match refused.error {
                DeviceError::Unauthorized | DeviceError::ClockSkew => UNAUTHORIZED,
                DeviceError::NonceUsed => Duration::ZERO,
                _ => SOON,
            });
            self.tell_if_heeded(voice, device, nonce, refused.error, wait);
        }
    }

    /// Writes refusals that are in no record yet, every now and then, until `stopping`.
    pub(super) async fn write_refusals(&self, stopping: CancellationToken) {
        while !stopping.is_cancelled() {
            self.refusals.flush(self.now(), false).await;
            tokio::select! {
                () = tokio::time::sleep(REFUSALS) => {}
                () = stopping.cancelled() => {}
            }
        }
    }

    /// Writes all of them, as far as the store takes them. For the end, when no message comes any more.
    pub async fn write_last_refusals(&self) {
        self.refusals.flush(self.now(), true).await;
    }

    /// Asks a device to try again, unless it was told so often that it seems not to heed it: its answers would stand before everybody else's.
    pub(super) fn tell_if_heeded(
        &self,
        voice: Voice,
        device: &DeviceId,
        nonce: &DeviceNonce,
        error: DeviceError,
        wait: Duration,
    ) {
        if self.limits.may_answer(device, voice) {
            self.tell(device, nonce, error, wait);
        } else {
            metrics::counter!(names::DEVICE_RETRIES, "error" => "withheld").increment(1);
        }
    }

    /// Asks a device to try again. Lost when the connection has no room: then the device's own timeout has to do.
    pub(super) fn tell(
        &self,
        device: &DeviceId,
        nonce: &DeviceNonce,
        error: DeviceError,
        wait: Duration,
    ) {
        // Devices that are told at once should not come back at once.
        let seconds = jittered(wait, 0.5).as_secs();
        let expiry = self.settings().answer_expiry;
        let sent = outgoing::retry(device, nonce, error, seconds, expiry)
            .is_some_and(|message| self.parts.outlet.offer(message).is_ok());
        let word = if sent { error.as_str() } else { "lost" };
        metrics::counter!(names::DEVICE_RETRIES, "error" => word).increment(1);
    }
}

pub(super) fn refusal(
    device: &DeviceId,
    nonce: &DeviceNonce,
    reason: &'static str,
    error: DeviceError,
) -> Refused {
    Refused {
        device: Some(device.clone()),
        claims: None,
        known: false,
        nonce: Some(nonce.clone()),
        accessor: None,
        reason,
        error,
        answered: true,
    }
}

fn display(name: &impl std::fmt::Display) -> tracing::field::DisplayValue<&impl std::fmt::Display> {
    tracing::field::display(name)
}
