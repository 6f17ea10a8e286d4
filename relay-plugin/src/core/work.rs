//! The desk: inbox rows on their way from opened to done.
//!
//! What must always hold: a row leaves the inbox only when its effect is in the store; the requests of one sender are worked off in the order
//! they came; a row is on the desk once. Whatever cannot be finished now stays in the inbox and is laid out again.

use std::collections::{HashMap, HashSet};

use keyturn_proto::inner::InnerKind;
use keyturn_proto::notify::NotifyState;
use keyturn_proto::{ErrorClass, Npub, ServiceNotify, UnixMs};
use keyturn_store::store::{Asked, Decision};
use tokio::sync::oneshot;
use tokio::task::{Id, JoinSet};

use super::Core;
use super::standby::OLDEST;
use crate::admission::{NotAdmitted, Opened, Refusal, hints, refuse};
use crate::crash;
use crate::delivery::inbox::Waiting;
use crate::delivery::service_member::ServiceError;
use crate::metrics as names;
use crate::rotation::Failure;
use crate::rotation::audit::Entry;
use crate::rotation::engine::{Answer, NotCarried};
use crate::rotation::repeat::is_recorded;
use crate::rotation::request::Requested;

/// Rows worked on at once.
const MAX_TASKS: usize = 128;
/// Times a row is tried before it waits for the next sweep.
const TRIES: u32 = 5;

/// See the module.
pub(super) struct Desk {
    core: Core,
    tasks: JoinSet<()>,
    /// What lies on the desk, by task.
    laid: HashMap<Id, Card>,
    rows: HashSet<i64>,
    /// The newest row that was ever laid out.
    latest: i64,
    /// The inbox holds more than there was room for.
    more: bool,
    /// The fence under which everything that waited was laid out: what comes in after that has no past here.
    caught_up: Option<u64>,
    /// Resolves when the last task of a sender has let the next one go.
    turns: HashMap<Npub, oneshot::Receiver<()>>,
}

/// Whether a row may have been worked on before: by this process, by the one before it, by another instance.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Past {
    /// It came in just now, and this instance acts: only a sibling can have.
    None,
    /// The store is asked first.
    Unknown,
}

/// Names a row without its content.
struct Card {
    row: i64,
    sender: Npub,
    event_id: String,
    group: String,
}

impl Desk {
    pub(super) fn new(core: Core) -> Self {
        Self {
            core,
            tasks: JoinSet::new(),
            laid: HashMap::new(),
            rows: HashSet::new(),
            latest: 0,
            more: false,
            caught_up: None,
            turns: HashMap::new(),
        }
    }

    pub(super) fn has_room(&self) -> bool {
        self.tasks.len() < MAX_TASKS
    }

    /// Starts on every row of the inbox that is not on the desk, as far as there is room. Somebody may have worked on them before.
    pub(super) async fn lay_out(&mut self) -> Result<(), ServiceError> {
        let fence = self.core.engine.acts_under();
        self.lay_out_after(0, Past::Unknown).await?;
        self.caught_up = fence.filter(|_| !self.more);
        Ok(())
    }

    /// Starts on the rows that came in since, as far as there is room.
    pub(super) async fn lay_out_new(&mut self) -> Result<(), ServiceError> {
        let fence = self.core.engine.acts_under();
        let past = if fence.is_some() && fence == self.caught_up {
            Past::None
        } else {
            Past::Unknown
        };
        self.lay_out_after(self.latest, past).await
    }

    async fn lay_out_after(&mut self, after: i64, past: Past) -> Result<(), ServiceError> {
        if !self.core.engine.acts() {
            return Ok(());
        }
        // Rows on the desk are still in the inbox: read past them, and one more to see whether there is more.
        let limit = u32::try_from(MAX_TASKS * 2 + 1).unwrap_or(u32::MAX);
        let waiting = self.core.service.inbox(after, limit).await?;
        self.more = waiting.len() > MAX_TASKS * 2;
        for waiting in waiting {
            if !self.has_room() {
                self.more = true;
                break;
            }
            self.latest = self.latest.max(waiting.row);
            if self.rows.insert(waiting.row) {
                self.lay(waiting, past);
            }
        }
        Ok(())
    }

    fn lay(&mut self, waiting: Waiting, past: Past) {
        let Waiting { row, kind, opened } = waiting;
        let card = Card {
            row,
            sender: opened.sender,
            event_id: opened.event_id.clone(),
            group: opened.group.alias.clone(),
        };
        let (mine, next) = oneshot::channel();
        let before = self.turns.insert(opened.sender, next);
        let core = self.core.clone();
        let task = self.tasks.spawn(async move {
            if let Some(before) = before {
                // Resolves with an error, too, when the one before ended without saying so.
                let _ended = before.await;
            }
            core.work_off(row, kind, &opened, past, mine).await;
        });
        self.laid.insert(task.id(), card);
    }

    /// Resolves when a task has ended and was put away; never while there is none.
    pub(super) async fn one_done(&mut self) {
        let Some(ended) = self.tasks.join_next_with_id().await else {
            return std::future::pending().await;
        };
        let (id, panicked) = match ended {
            Ok((id, ())) => (id, false),
            Err(error) => (error.id(), error.is_panic()),
        };
        let Some(card) = self.laid.remove(&id) else {
            return;
        };
        self.rows.remove(&card.row);
        if panicked {
            self.core.panicked(&card).await;
        }
    }

    /// Whether rows wait for room, and there is some again.
    pub(super) fn wants_more(&self) -> bool {
        self.more && self.tasks.len() < MAX_TASKS / 2
    }

    /// Lets everything on the desk finish.
    pub(super) async fn finish(mut self) {
        while !self.tasks.is_empty() {
            self.one_done().await;
        }
    }
}

impl Core {
    /// Tries a row until it is done, or leaves it to a later sweep. Dropping `mine` lets the sender's next row go.
    async fn work_off(
        &self,
        row: i64,
        kind: InnerKind,
        opened: &Opened,
        mut past: Past,
        mine: oneshot::Sender<()>,
    ) {
        self.service
            .prove_sender(opened.sender, &opened.leaf_signature_key)
            .await;
        let mut pause = self.retry;
        let mut mine = Some(mine);
        for _ in 0..TRIES {
            let worked = match self
                .decided_before(row, opened, kind, past, &mut mine)
                .await
            {
                Ok(true) => Ok(()),
                Ok(false) => match kind {
                    InnerKind::Ack => self.ack(row, opened, &mut mine).await,
                    _ => self.request(row, opened, &mut mine).await,
                },
                Err(failure) => Err(failure),
            };
            // What failed may have happened all the same.
            past = Past::Unknown;
            let worked = match worked {
                Err(Failure::Refused(refusal)) => {
                    drop(mine.take());
                    self.refuse(row, opened, kind, &refusal).await
                }
                other => other,
            };
            let Err(failure) = worked else { return };
            let reason = failure.reason();
            tracing::info!(event = opened.event_id, reason, "to be tried again");
            self.clock.sleep_until(self.engine.now().plus(pause)).await;
            pause = (pause * 2).min(self.sweep);
        }
        tracing::warn!(event = opened.event_id, "left in the inbox for now");
    }

    async fn request(
        &self,
        row: i64,
        opened: &Opened,
        mine: &mut Option<oneshot::Sender<()>>,
    ) -> Result<(), Failure> {
        let started = self.engine.now();
        // It waited for us or for the store. Its sender has given up by now, and may have seen to it in another way.
        if started.since(opened.received_at) > OLDEST {
            let class = ErrorClass::InternalError;
            return Err(Failure::refused(class, "request.waited_too_long"));
        }
        let requested = Requested::new(opened, self.engine.fenced()?);
        let authorised = match requested.authorise(self.gate.as_ref(), started).await {
            Ok(authorised) => authorised,
            // Whoever acts now has its own word on it.
            Err(NotAdmitted::Refused(_) | NotAdmitted::Counted(_)) if !self.engine.acts() => {
                return Err(Failure::Again("lease.not_held"));
            }
            Err(NotAdmitted::Counted(_)) => {
                metrics::counter!(names::REFUSALS_NOT_ANSWERED).increment(1);
                self.done(row).await;
                return Ok(());
            }
            // Audited by admission.
            Err(NotAdmitted::Refused(refusal)) => {
                drop(mine.take());
                self.answer_refusal(opened, InnerKind::Request, &refusal)
                    .await;
                self.done(row).await;
                return Ok(());
            }
            Err(NotAdmitted::Unrecorded) => return Err(UNRECORDED),
        };
        crash::point(crash::Point::AfterAdmit).await;
        let answer = self.engine.act(authorised).await?;
        self.follow(row, opened, answer, started, mine).await;
        Ok(())
    }

    /// What an action came to, on its way to its group.
    async fn follow(
        &self,
        row: i64,
        opened: &Opened,
        answer: Answer,
        started: UnixMs,
        mine: &mut Option<oneshot::Sender<()>>,
    ) {
        match answer {
            Answer::Tell(state) => {
                crash::point(crash::Point::AfterAction).await;
                drop(mine.take());
                self.answer(opened, state).await;
                self.done(row).await;
            }
            Answer::Carry(claim) => {
                // The reservation is recorded: the request itself has done its work, the rest is found in the store.
                self.done(row).await;
                drop(mine.take());
                let id = claim.id().clone();
                let reply = Some(opened.event_id.clone());
                match self.engine.carry_on(claim, reply).await {
                    Ok(()) => {
                        metrics::histogram!(names::REQUEST_SECONDS)
                            .record(self.engine.now().since(started).as_secs_f64());
                    }
                    Err(NotCarried {
                        failure: Failure::Again(reason),
                        claim,
                    }) => {
                        drop(claim);
                        tracing::info!(rotation = %id, reason, "left to the driver");
                        self.engine.later(&id);
                    }
                    Err(NotCarried {
                        failure: Failure::Refused(refusal),
                        claim,
                    }) => {
                        // Why first, then, by the driver, that it is over.
                        self.answer(opened, refused(&refusal)).await;
                        drop(claim);
                        self.engine.wake();
                    }
                }
            }
        }
    }

    /// What was decided of this message before, here before a crash or by another instance, is its outcome: it is answered, not judged again. `true` when
    /// nothing is left to do.
    async fn decided_before(
        &self,
        row: i64,
        opened: &Opened,
        kind: InnerKind,
        past: Past,
        mine: &mut Option<oneshot::Sender<()>>,
    ) -> Result<bool, Failure> {
        if past == Past::None && !self.service.has_siblings() {
            return Ok(false);
        }
        if self.service.was_answered(opened) {
            self.done(row).await;
            return Ok(true);
        }
        let asked = Asked {
            event_id: opened.event_id.clone(),
            operation: match kind {
                InnerKind::Ack => None,
                _ => hints(opened).0,
            },
        };
        let Some(decided) = self.engine.decided(&[asked]).await?.pop() else {
            return Ok(false);
        };
        // Whoever acts now tells what came of it; a refusal written too late is not what came of what it has granted.
        self.engine.fenced()?;
        let started = self.engine.now();
        let leaf = &opened.leaf_signature_key;
        if is_recorded(opened, &decided.known) && !self.answers.may_repeat(leaf, started) {
            // Nobody has judged this event: any number of them may bear the id of what was granted. That goes on by itself.
            metrics::counter!(names::REFUSALS_NOT_ANSWERED).increment(1);
            self.done(row).await;
            return Ok(true);
        }
        if let Some(answer) = self.engine.granted_before(opened, &decided.known).await? {
            self.follow(row, opened, answer, started, mine).await;
            return Ok(true);
        }
        if let Some(refusal) = decided.refused {
            drop(mine.take());
            tracing::info!(
                event = opened.event_id,
                reason = refusal.reason,
                "was refused before"
            );
            let state = NotifyState::Refused {
                error: refusal.class,
                retry_after_ms: None,
            };
            self.answer(opened, state).await;
            self.done(row).await;
            return Ok(true);
        }
        Ok(false)
    }

    async fn ack(
        &self,
        row: i64,
        opened: &Opened,
        mine: &mut Option<oneshot::Sender<()>>,
    ) -> Result<(), Failure> {
        let notify = self.engine.acknowledge(opened).await?;
        // Recorded. Telling the group may take its time, and holds nobody up.
        drop(mine.take());
        self.engine.tell(&opened.group.alias, &notify).await;
        self.done(row).await;
        Ok(())
    }

    /// A refusal that nobody has recorded yet: the audit trail gets the reason, the group the class.
    async fn refuse(
        &self,
        row: i64,
        opened: &Opened,
        kind: InnerKind,
        refusal: &Refusal,
    ) -> Result<(), Failure> {
        self.engine.fenced()?;
        let now = self.engine.now();
        let event = match kind {
            InnerKind::Ack => "ack.refused",
            _ => "request.refused",
        };
        let mut entry = Entry::of_opened(now, opened, event, refusal.reason);
        let (rotation, client) = self.about(opened, kind);
        if let Some(rotation) = &rotation {
            entry = entry.rotation(rotation);
        }
        if let Some(client) = &client {
            entry = entry.client(client);
        }
        let decision = Decision {
            audit: entry.done(),
            refuses: Some(refuse(opened, refusal.class, refusal.reason, now)),
        };
        let recorded = if kind == InnerKind::Ack {
            metrics::counter!(names::ACKS, "result" => "refused").increment(1);
            self.service
                .note_refusal(opened.sender, refusal.reason, &opened.event_id, decision)
                .await
        } else {
            // It was admitted, so the budgets of its sender bound how many there are.
            let recorded = self.service.decide(decision).await;
            recorded.map_err(|_| UNRECORDED)?;
            let class = refusal.class.as_str();
            metrics::counter!(names::REFUSED_LATE, "class" => class).increment(1);
            true
        };
        if recorded {
            self.answer_refusal(opened, kind, refusal).await;
        } else {
            metrics::counter!(names::REFUSALS_NOT_ANSWERED).increment(1);
        }
        self.done(row).await;
        Ok(())
    }

    /// Tells the group, unless its sender was told enough ([`super::answers`]).
    async fn answer_refusal(&self, opened: &Opened, kind: InnerKind, refusal: &Refusal) {
        let leaf = &opened.leaf_signature_key;
        let Some(_until_told) = self
            .answers
            .may_refuse(leaf, kind, refusal, self.engine.now())
        else {
            metrics::counter!(names::REFUSALS_NOT_ANSWERED).increment(1);
            return;
        };
        self.answer(opened, refused(refusal)).await;
    }

    fn about(
        &self,
        opened: &Opened,
        kind: InnerKind,
    ) -> (
        Option<keyturn_proto::RotationId>,
        Option<keyturn_proto::ClientId>,
    ) {
        if kind != InnerKind::Ack {
            return hints(opened);
        }
        match serde_json::from_str::<keyturn_proto::RotateAck>(&opened.json) {
            Ok(ack) => (Some(ack.rotation_id), Some(ack.client_id)),
            Err(_) => (None, None),
        }
    }

    async fn answer(&self, opened: &Opened, body: NotifyState) {
        let (action_id, client_id) =
            self.about(opened, keyturn_proto::Inner::classify(&opened.json));
        let notify = ServiceNotify {
            action_id,
            client_id,
            in_reply_to: Some(opened.event_id.clone()),
            at: self.engine.now(),
            body,
        };
        self.engine.tell(&opened.group.alias, &notify).await;
    }

    /// Deletes a row. One that stays is worked off again, which changes nothing.
    async fn done(&self, row: i64) {
        if let Err(error) = self.service.done(row).await {
            tracing::warn!(%error, "an inbox row could not be deleted");
        }
    }

    /// A row whose task panicked is not tried again: it would take every later start down with it. A reservation it may have made is found by
    /// the driver.
    async fn panicked(&self, card: &Card) {
        metrics::counter!(names::PANICS, "part" => "request").increment(1);
        tracing::error!(event = card.event_id, "a request panicked; it was given up");
        let entry = Entry::by_admin(
            self.engine.now(),
            card.sender,
            "request.failed",
            "internal.panic",
        );
        let entry = entry.group(&card.group).event(&card.event_id);
        self.service.record(entry.done()).await;
        self.done(card.row).await;
    }
}

/// Nobody is told of a decision that is not recorded: the row stays, and it is made again.
const UNRECORDED: Failure = Failure::Again("audit.not_recorded");

const fn refused(refusal: &Refusal) -> NotifyState {
    NotifyState::Refused {
        error: refusal.class,
        retry_after_ms: refusal.retry_after_ms,
    }
}
