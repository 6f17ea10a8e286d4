//! The allow-list.

use keyturn_proto::UnixMs;
use keyturn_proto::device::DeviceId;

use super::{Decision, Draft, record};
use crate::devices::documents::{DeviceDoc, DeviceOptions, DevicePolicy, DeviceState};
use crate::devices::store::Answer;
use crate::documents::Actor;

/// How far ahead a `secret_id` of unknown lifetime is looked for: no configuration gives one longer.
const IN_DOUBT_MS: u64 = 30 * 86_400_000;

/// Puts a device on the list, or changes its role and options. A repeat changes nothing.
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
        current: None,
        earlier: Vec::new(),
        doomed: Vec::new(),
        unresolved: Vec::new(),
        nonces: Vec::new(),
        ping: None,
        ping_at: None,
        due_at: None,
        created_at: now,
        updated_at: now,
    });
    let mut draft = Draft::new(doc, now);
    draft.doc.state = DeviceState::Allowed;
    draft.doc.ping_at = match options.policy {
        DevicePolicy::OnDemand => None,
        // A device that was on the schedule keeps its place.
        DevicePolicy::Scheduled => Some(draft.doc.ping_at.unwrap_or(now)),
    };
    let mut words = vec![format!("role {role}")];
    words.extend(options.sealing.as_ref().map(|_| "sealed".to_owned()));
    words.extend(options.identity_key.as_ref().map(|_| "signed".to_owned()));
    words.extend((options.policy == DevicePolicy::Scheduled).then(|| "scheduled".to_owned()));
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
    draft.done_with_doc()
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
        self.doom_all("denied");
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
    /// schedule is invited at once; every other one asks when its next login fails.
    pub(super) fn invalidate(mut self) -> Decision {
        let holds = self.doc.current.is_some()
            || !self.doc.earlier.is_empty()
            || self.doc.outstanding.is_some();
        if !holds {
            return Decision::unchanged(Answer::Repeat);
        }
        self.doom_all("invalidated");
        self.doc.ping_at = self.doc.ping_at.map(|_| self.now);
        self.record(
            Actor::Operator,
            "device.invalidated",
            "by the operator",
            None,
            None,
        );
        self.done_with_doc()
    }

    fn doom_all(&mut self, why: &str) {
        let in_doubt_until = UnixMs(self.now.0.saturating_add(IN_DOUBT_MS));
        self.set_aside(why, in_doubt_until);
        let held = self.doc.current.take();
        for held in held
            .into_iter()
            .chain(std::mem::take(&mut self.doc.earlier))
        {
            self.doom(held, why);
        }
    }
}
