//! The allow-list.

use keyturn_proto::UnixMs;
use keyturn_proto::device::DeviceId;

use super::{Decision, Draft, ping, record};
use crate::devices::documents::{
    DeviceDoc, DeviceOptions, DevicePolicy, DeviceState, Outstanding, Stage,
};
use crate::devices::store::Answer;
use crate::documents::Actor;

/// Puts a device on the list, or changes its role and options. A repeat changes nothing. Under another role or other keys nothing of the old ones is sent or waited for
/// any more: whoever changes a key may know that somebody else has the old one.
pub(super) fn allow(
    id: &DeviceId,
    known: Option<DeviceDoc>,
    role: String,
    options: DeviceOptions,
    now: UnixMs,
) -> Decision {
    let event = match &known {
        None => "device.allowed",
        Some(doc) if doc.state == DeviceState::Denied => "device.allowed",
        Some(doc) if doc.role == role && doc.options == options => {
            return Decision::unchanged(Answer::Repeat);
        }
        Some(_) => "device.changed",
    };
    let doc = known.unwrap_or_else(|| DeviceDoc {
        device_id: id.clone(),
        state: DeviceState::Allowed,
        role: String::new(),
        options: DeviceOptions::default(),
        attempts: 0,
        outstanding: None,
        superseded: None,
        current: None,
        earlier: Vec::new(),
        doomed: Vec::new(),
        unresolved: Vec::new(),
        nonces: Vec::new(),
        spent: Vec::new(),
        ping: None,
        ping_at: None,
        pings_missed: 0,
        due_at: None,
        created_at: now,
        updated_at: now,
    });
    let mut draft = Draft::new(doc, now);
    draft.doc.state = DeviceState::Allowed;
    draft.doc.ping_at = match options.policy {
        DevicePolicy::OnDemand => None,
        // A device that was on the schedule keeps its place.
        DevicePolicy::Scheduled => Some(draft.doc.ping_at.unwrap_or_else(|| ping::soon(id, now))),
    };
    let mut words = vec![format!("role {role}")];
    words.extend(options.sealing.as_ref().map(|_| "sealed".to_owned()));
    words.extend(options.identity_key.as_ref().map(|_| "signed".to_owned()));
    words.extend((options.policy == DevicePolicy::Scheduled).then(|| "scheduled".to_owned()));
    let anew = draft.doc.role != role || have_other_keys(&draft.doc.options, &options);
    draft.doc.role = role;
    draft.doc.options = options;
    let line = record(
        id,
        now,
        Actor::Operator,
        event,
        &words.join(", "),
        None,
        None,
    );
    draft.audit.push(line);
    if anew {
        draft.begin_anew("changed");
    }
    draft.done_with_doc()
}

/// Whether what is signed or sealed under one does not hold under the other.
fn have_other_keys(one: &DeviceOptions, other: &DeviceOptions) -> bool {
    let sealing = |options: &DeviceOptions| {
        let sealing = options.sealing.as_ref();
        sealing.map(|sealing| (sealing.key.clone(), sealing.suite))
    };
    one.identity_key != other.identity_key || sealing(one) != sealing(other)
}

impl Draft {
    /// Takes it off the list. Whatever it holds is destroyed: this is what an operator does with a stolen device.
    pub(super) fn deny(mut self) -> Decision {
        if self.doc.state == DeviceState::Denied {
            return Decision::unchanged(Answer::Repeat);
        }
        self.doc.state = DeviceState::Denied;
        self.doc.ping = None;
        self.doc.ping_at = None;
        self.set_aside("denied");
        self.doom_held("denied");
        self.record(
            Actor::Operator,
            "device.denied",
            "by the operator",
            None,
            None,
        );
        self.done_with_doc()
    }

    /// Whatever it holds is destroyed, and it stays on the list: this is what an operator does when secret_ids may have been read by somebody. A device on the
    /// schedule is invited soon, one that waits for an answer is told to ask again, and every other one asks when its next login fails. A request that has not
    /// reached the issuer goes on: what it gets is younger than this.
    pub(super) fn invalidate(mut self) -> Decision {
        let issue = self.doc.outstanding.as_ref();
        let is_begun = issue.is_some_and(|issue| issue.stage != Stage::Asked);
        if !is_begun && self.doc.held().next().is_none() {
            return Decision::unchanged(Answer::Repeat);
        }
        if is_begun {
            self.begin_anew("invalidated");
        }
        self.doom_held("invalidated");
        self.doc.ping_at = (self.doc.ping_at).map(|_| ping::soon(&self.doc.device_id, self.now));
        self.record(
            Actor::Operator,
            "device.invalidated",
            "by the operator",
            None,
            None,
        );
        self.done_with_doc()
    }

    fn doom_held(&mut self, why: &str) {
        let held = [self.doc.superseded.take(), self.doc.current.take()];
        let earlier = std::mem::take(&mut self.doc.earlier);
        for held in held.into_iter().flatten().chain(earlier) {
            self.doom(held, why);
        }
    }

    /// Sets the unconfirmed issues aside. A device that waits for an answer, or has not said how it went, is told to ask again by whoever looks after deadlines:
    /// its request stands there as one that nobody works on and whose time is over. Its new number keeps out whoever is at work on the old one.
    fn begin_anew(&mut self, why: &str) {
        if let Some(held) = self.doc.superseded.take() {
            self.doom(held, why);
        }
        let issue = self.doc.outstanding.clone();
        self.set_aside(why);
        let Some(issue) = issue.filter(|issue| issue.stage != Stage::Unconfirmed) else {
            return;
        };
        self.doc.attempts += 1;
        self.doc.outstanding = Some(Outstanding {
            attempt: self.doc.attempts,
            role: self.doc.role.clone(),
            stage: Stage::Asked,
            deadline_at: self.now,
            held: None,
            ..issue
        });
    }
}
