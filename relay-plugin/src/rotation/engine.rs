//! What every step works with, and the order of the steps for one request.
//!
//! What must always hold: two tasks never work on one rotation at once ([`Engine::claim`]); whoever ends or changes something wakes the
//! driver, which finds everything else in the store.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use keyturn_proto::notify::NotifyState;
use keyturn_proto::{Action, RotationId, ServiceNotify, UnixMs};
use keyturn_store::documents::RotationDoc;
use keyturn_store::mac::MacKey;
use keyturn_store::store::{Asked, Decided, Store, StoreError};
use tokio::sync::{Notify, watch};

use super::failure::Failure;
use super::lease::Fence;
use super::machine::Doubt;
use super::ports::{Clock, DeliveryError, Distributor, Gate};
use super::recover::{Carried, PATIENCE};
use super::request::Authorised;
use super::reserve::Reservation;
use super::settings::Settings;

/// The ports the engine is built from.
pub struct Parts {
    /// Documents, registry, audit trail.
    pub store: Arc<dyn Store>,
    /// The key that hashes secrets.
    pub mac: Arc<dyn MacKey>,
    /// Who may ask, and who may read.
    pub gate: Arc<dyn Gate>,
    /// The way to the admins.
    pub distributor: Arc<dyn Distributor>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// What the operator decided.
    pub settings: Settings,
}

/// The rotation engine of this process. Cheap to clone.
#[derive(Clone)]
pub struct Engine(Arc<Inner>);

pub(super) struct Inner {
    pub(super) parts: Parts,
    pub(super) fence: Fence,
    claimed: Mutex<HashSet<RotationId>>,
    later: Mutex<BTreeSet<RotationId>>,
    delivered: Mutex<HashMap<RotationId, u32>>,
    wake: Notify,
    /// The fence under which everything under way was taken up.
    acting: watch::Sender<Option<u64>>,
}

/// This task's exclusive right to work on one rotation; given back on drop, also by a panic.
pub struct Claim {
    engine: Engine,
    id: RotationId,
}

/// What a permitted action came to.
pub enum Answer {
    /// To be told to the group the request came from.
    Tell(NotifyState),
    /// The rotation is reserved: the request may be forgotten, [`Engine::carry_on`] goes on and answers.
    Carry(Claim),
}

/// A rotation that did not get to its admins. While the claim is held, the driver does not announce how the rotation ended: its requester hears of the
/// refusal first.
pub struct NotCarried {
    /// Why.
    pub failure: Failure,
    /// The right to go on.
    pub claim: Claim,
}

impl Engine {
    /// An engine at rest: nothing happens until it is asked, or [`super::driver`] runs.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        Self(Arc::new(Inner {
            parts,
            fence: Fence::default(),
            claimed: Mutex::default(),
            later: Mutex::default(),
            delivered: Mutex::default(),
            wake: Notify::new(),
            acting: watch::Sender::new(None),
        }))
    }

    pub(super) fn store(&self) -> &dyn Store {
        self.0.parts.store.as_ref()
    }

    pub(super) fn mac(&self) -> &dyn MacKey {
        self.0.parts.mac.as_ref()
    }

    pub(super) fn gate(&self) -> &dyn Gate {
        self.0.parts.gate.as_ref()
    }

    pub(super) fn distributor(&self) -> &dyn Distributor {
        self.0.parts.distributor.as_ref()
    }

    pub(super) fn clock(&self) -> &dyn Clock {
        self.0.parts.clock.as_ref()
    }

    pub(super) fn settings(&self) -> &Settings {
        &self.0.parts.settings
    }

    pub(super) fn fence(&self) -> &Fence {
        &self.0.fence
    }

    /// Now.
    #[must_use]
    pub fn now(&self) -> UnixMs {
        self.clock().now()
    }

    /// Whether this instance holds the lease, has recovered under it, and may act.
    #[must_use]
    pub fn acts(&self) -> bool {
        self.acts_under().is_some()
    }

    /// The fence under which this instance acts, if it does.
    #[must_use]
    pub fn acts_under(&self) -> Option<u64> {
        let fence = self.fence().current(self.now());
        fence.filter(|_| *self.0.acting.borrow() == fence)
    }

    /// Changes when this instance begins to act.
    #[must_use]
    pub fn acting(&self) -> watch::Receiver<Option<u64>> {
        self.0.acting.subscribe()
    }

    /// After the lease was taken: takes up everything under way, and acts from then on.
    ///
    /// # Errors
    /// [`Failure`]; nothing is answered until it succeeds.
    pub async fn take_charge(&self) -> Result<(), Failure> {
        let fence = self.fenced()?;
        self.recover().await?;
        self.0.acting.send_replace(Some(fence));
        Ok(())
    }

    /// What was decided before of these messages, by whichever instance: one look into the store, however many.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn decided(&self, asked: &[Asked]) -> Result<Vec<Decided>, StoreError> {
        self.store().decided(asked).await
    }

    /// Lets the driver look at the store again.
    pub fn wake(&self) {
        self.0.wake.notify_one();
    }

    /// Leaves a rotation to the driver's next turn. A hint only: the sweep finds it as well.
    pub fn later(&self, id: &RotationId) {
        let mut later = self.0.later.lock().unwrap_or_else(PoisonError::into_inner);
        later.insert(id.clone());
        drop(later);
        self.wake();
    }

    pub(super) fn take_later(&self) -> BTreeSet<RotationId> {
        std::mem::take(&mut *self.0.later.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Which attempts of rotations under way this instance's relay was seen to hold in full: they need no second look. A hint only, lost with
    /// the process and found again by looking.
    pub(super) fn delivered(&self) -> std::sync::MutexGuard<'_, HashMap<RotationId, u32>> {
        self.0
            .delivered
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) async fn woken(&self) {
        self.0.wake.notified().await;
    }

    /// The right to work on `id`; `None` while another task of this process does.
    #[must_use]
    pub fn claim(&self, id: &RotationId) -> Option<Claim> {
        self.claims().insert(id.clone()).then(|| Claim {
            engine: self.clone(),
            id: id.clone(),
        })
    }

    fn claims(&self) -> std::sync::MutexGuard<'_, HashSet<RotationId>> {
        // A set of ids is whole whenever the lock is free, also after a panic elsewhere.
        self.0
            .claimed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Carries out what a permit allows, up to the point from which recovery would go on by itself.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn act(&self, authorised: Authorised) -> Result<Answer, Failure> {
        match authorised.permit().action() {
            Action::Rotation | Action::Emergency => {
                // Claimed before it is recorded: the driver must not find it first.
                let claim = self
                    .claim(authorised.permit().action_id())
                    .ok_or(Failure::Again("rotation.claimed"))?;
                match authorised.reserve(self).await? {
                    Reservation::New => Ok(Answer::Carry(claim)),
                    Reservation::Repeat(rotation) => self.reserved_before(claim, &rotation).await,
                }
            }
            Action::Cancel => self.cancel(authorised).await.map(Answer::Tell),
            Action::Rollback => self.rollback(authorised).await.map(Answer::Tell),
            Action::Revoke => self.revoke(authorised).await.map(Answer::Tell),
            Action::Status => self.status(&authorised).await.map(Answer::Tell),
        }
    }

    /// Where a rotation that was reserved before has come.
    pub(super) async fn reserved_before(
        &self,
        claim: Claim,
        rotation: &RotationDoc,
    ) -> Result<Answer, Failure> {
        match rotation.outcome {
            None => Ok(Answer::Carry(claim)),
            Some(outcome) => self
                .ended(&rotation.client_id, outcome, rotation.grace_until)
                .await
                .map(Answer::Tell),
        }
    }

    /// Takes a reserved rotation to its admins, and tells the group that it is under way. The same call serves a fresh reservation, a repeat
    /// of a request and recovery: it goes by what the store holds.
    ///
    /// # Errors
    /// [`NotCarried`]: `Refused` has cancelled the rotation; `Again` leaves it for the driver.
    pub async fn carry_on(
        &self,
        claim: Claim,
        in_reply_to: Option<String>,
    ) -> Result<(), NotCarried> {
        let carried = match self.resume(&claim, Doubt::None, PATIENCE).await {
            Ok(carried) => carried,
            Err(failure) => return Err(NotCarried { failure, claim }),
        };
        drop(claim);
        if let Some(Carried { rotation, .. }) = carried {
            self.tell(&rotation.mls_group, &self.accepted(&rotation, in_reply_to))
                .await;
        }
        Ok(())
    }

    /// What the group is told of a rotation that is under way.
    pub(super) fn accepted(
        &self,
        rotation: &RotationDoc,
        in_reply_to: Option<String>,
    ) -> ServiceNotify {
        ServiceNotify {
            action_id: Some(rotation.rotation_id.clone()),
            client_id: Some(rotation.client_id.clone()),
            in_reply_to,
            at: self.now(),
            body: NotifyState::Accepted {
                version_id: rotation.new_version,
                ack_deadline: Some(rotation.ack_deadline),
            },
        }
    }

    /// Tells a group something, with one try. What must arrive although the process dies is announced by the driver from the store instead.
    pub(super) async fn tell_once(&self, alias: &str, notify: &ServiceNotify) {
        if let Err(error) = self.distributor().announce(alias, notify).await {
            untold(alias, &error);
        }
    }

    /// Tells a group something, trying again while the relay is away or an epoch has to settle. For those who hold nobody up by waiting.
    pub async fn tell(&self, alias: &str, notify: &ServiceNotify) {
        let give_up = self.now().plus(TELL_WITHIN);
        let mut pause = self.settings().retry;
        loop {
            match self.distributor().announce(alias, notify).await {
                Ok(()) => return,
                Err(DeliveryError::Away(_)) if self.now() < give_up => {
                    self.clock().sleep_until(self.now().plus(pause)).await;
                    pause = (pause * 2).min(self.settings().sweep);
                }
                Err(error) => return untold(alias, &error),
            }
        }
    }
}

/// How long an answer is worth trying: about as long as somebody waits for it.
const TELL_WITHIN: Duration = Duration::from_secs(60);

fn untold(alias: &str, error: &DeliveryError) {
    metrics::counter!(crate::metrics::ANNOUNCEMENTS_FAILED).increment(1);
    tracing::warn!(group = alias, %error, "a group could not be told");
}

impl Claim {
    /// Which rotation.
    #[must_use]
    pub const fn id(&self) -> &RotationId {
        &self.id
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.engine.claims().remove(&self.id);
    }
}
