//! The transition table of a rotation that outlives its process: from what the store holds, what happened, and the time, to what is to be
//! done next. Pure; no effect is carried out here, and the store judges each again inside its own transaction.
//!
//! | state | something is looked at | an ack | the clock |
//! |---|---|---|---|
//! | `reserved` | stale or no longer entitled → cancel; an older attempt in doubt → take over; else prepare | refused | proof expired → cancel |
//! | `prepared` | delivered → nothing; void → take over; no longer entitled → cancel; else publish | recorded | ack deadline → expire |
//! | `quorum_met` | as `prepared` | recorded | `not_before` → promote |
//! | `done` | promoted, and a group's event still open → publish | noted | not announced → announce |
//!
//! What must always hold: nothing is published that was sealed for somebody who is gone; nothing is prepared while an older attempt may still
//! land; nothing leaves `done`.

use keyturn_proto::UnixMs;
use keyturn_proto::notify::Outcome;
use keyturn_store::documents::{OutboxDoc, RotationDoc, RotationState};

use super::ports::Audience;

/// How many epochs a sealed event may be behind its group: receivers keep five (marmot.md), and one or two may pass while it travels.
pub const MAX_EPOCHS_BEHIND: u64 = 3;

/// Whether those who asked and those who read are still entitled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Requester, client, groups and every leaf hold.
    Sound,
    /// They do not, and why.
    Lost(&'static str),
}

/// What became of the ciphertext of the present attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// Every event can be read back from the relay.
    Delivered,
    /// Some cannot, and all of those may go out.
    Open,
    /// Some cannot, and one of those must not go out any more.
    Void(&'static str),
}

/// Whether a write of an older attempt may still be on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// No: this very task reserved it, or took it over.
    None,
    /// Perhaps: a process died, or an answer was lost.
    OlderAttempt,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Somebody looks whether there is work: the request itself, recovery, the sweep.
    Looked {
        /// See [`Standing`].
        standing: Standing,
        /// See [`Delivery`].
        delivery: Delivery,
        /// See [`Doubt`].
        doubt: Doubt,
    },
    /// An ack arrived from a reader; its proof was judged.
    Acked,
    /// Time passed.
    Ticked,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Bump the attempt, so that whatever the older one still writes cannot land; its version and ciphertext become void.
    TakeOver(&'static str),
    /// Generate, hash, seal, record.
    Prepare,
    /// Publish what is not published.
    Publish,
    /// End it without promotion.
    Cancel {
        /// `canceled` or `expired`.
        outcome: Outcome,
        /// A stable machine word.
        reason: &'static str,
    },
    /// Record the ack, and promote with it if it completes the quorum in time.
    RecordAck,
    /// The ack comes after the end: say how things stand.
    NoteLateAck,
    /// There is nothing to ack yet.
    RefuseAck(&'static str),
    /// Make the pending version current.
    Promote,
    /// Tell the admins how it ended.
    Announce,
}

/// The next effect, if any. After it was carried out, the store is read and the table asked again.
#[must_use]
pub fn step(rotation: &RotationDoc, event: Event, now: UnixMs) -> Option<Effect> {
    match (rotation.state, event) {
        // A group whose event goes out a little after the quorum of another still needs the secret.
        (
            RotationState::Done,
            Event::Looked {
                standing: Standing::Sound,
                delivery: Delivery::Open,
                doubt: _,
            },
        ) if rotation.outcome == Some(Outcome::Promoted) => Some(Effect::Publish),
        (RotationState::Done, Event::Looked { .. }) => None,
        (RotationState::Done, Event::Acked) => Some(Effect::NoteLateAck),
        (RotationState::Done, Event::Ticked) => {
            rotation.announced_at.is_none().then_some(Effect::Announce)
        }

        (RotationState::Reserved, Event::Acked) => Some(Effect::RefuseAck("ack.not_prepared")),
        (RotationState::Reserved, Event::Ticked) => stale(rotation, now),
        (
            RotationState::Reserved,
            Event::Looked {
                standing,
                delivery: _,
                doubt,
            },
        ) => stale(rotation, now).or(Some(match (standing, doubt) {
            (Standing::Lost(reason), _) => cancel(reason),
            (Standing::Sound, Doubt::OlderAttempt) => Effect::TakeOver("attempt.in_doubt"),
            (Standing::Sound, Doubt::None) => Effect::Prepare,
        })),

        (RotationState::Prepared | RotationState::QuorumMet, Event::Acked) => {
            Some(Effect::RecordAck)
        }
        (RotationState::Prepared, Event::Ticked) => expired(rotation, now),
        (RotationState::QuorumMet, Event::Ticked) => {
            (now >= rotation.not_before).then_some(Effect::Promote)
        }
        (RotationState::Prepared, Event::Looked { .. }) if now >= rotation.ack_deadline => {
            expired(rotation, now)
        }
        (
            RotationState::Prepared | RotationState::QuorumMet,
            Event::Looked {
                standing,
                delivery,
                doubt: _,
            },
        ) => match (delivery, standing) {
            (Delivery::Delivered, _) => None,
            (_, Standing::Lost(reason)) => Some(cancel(reason)),
            (Delivery::Void(reason), Standing::Sound) => Some(Effect::TakeOver(reason)),
            (Delivery::Open, Standing::Sound) => Some(Effect::Publish),
        },
    }
}

/// The ciphertext of the present attempt.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ciphertext {
    /// How many events it came to.
    pub sealed: usize,
    /// Those that this instance's relay does not hold.
    pub open: Vec<OutboxDoc>,
}

/// Compares the ciphertext of the present attempt with those who are in the groups now. Without an audience (nobody may be sealed to) nothing
/// that is still open may go out.
#[must_use]
pub fn delivery(ciphertext: &Ciphertext, audience: Option<&Audience>) -> Delivery {
    if ciphertext.sealed == 0 {
        return Delivery::Void("outbox.empty");
    }
    if ciphertext.open.is_empty() {
        return Delivery::Delivered;
    }
    for event in &ciphertext.open {
        let Some(roster) = audience.and_then(|audience| audience.roster(&event.group)) else {
            return Delivery::Void("group.gone");
        };
        if roster.hash != event.roster_hash {
            return Delivery::Void("roster.changed");
        }
        if roster.epoch.saturating_sub(event.epoch) > MAX_EPOCHS_BEHIND {
            return Delivery::Void("epoch.too_old");
        }
    }
    Delivery::Open
}

const fn cancel(reason: &'static str) -> Effect {
    Effect::Cancel {
        outcome: Outcome::Canceled,
        reason,
    }
}

fn stale(rotation: &RotationDoc, now: UnixMs) -> Option<Effect> {
    (now >= rotation.proof_expires_at.min(rotation.ack_deadline))
        .then_some(cancel("reservation.stale"))
}

fn expired(rotation: &RotationDoc, now: UnixMs) -> Option<Effect> {
    (now >= rotation.ack_deadline).then_some(Effect::Cancel {
        outcome: Outcome::Expired,
        reason: "ack.deadline",
    })
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
