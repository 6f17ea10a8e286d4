//! What a session reports, and how an application message becomes a report.

use keyturn_mls::{AppMessage, CommitApplied, Disposition};
use keyturn_proto::inner::InnerKind;
use keyturn_proto::notify::{NotifyHeader, ServiceNotify};
use keyturn_proto::{
    Action, ClientId, Inner, MlsGroupId, Npub, RotateAck, RotationId, ServiceRequest,
};
use serde::Serialize;

use super::npub;
use super::secret::WaitingSecret;

/// Something happened.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Update {
    /// We are in a new group.
    Joined {
        /// Which.
        group: MlsGroupId,
        /// Who invited us.
        by: Npub,
    },
    /// Somebody who is not trusted to invite us did; see [`join`](super::AdminSession::join).
    Invited(WaitingWelcome),
    /// The group is in a new epoch.
    Epoch {
        /// Which group.
        group: MlsGroupId,
        /// The epoch.
        epoch: u64,
        /// Who joined.
        added: Vec<Npub>,
        /// Who was removed.
        removed: Vec<Npub>,
        /// We are out.
        evicted: bool,
    },
    /// A secret was delivered; it stays closed until [`open_secret`](super::AdminSession::open_secret).
    Secret(WaitingSecret),
    /// The service reports.
    Report {
        /// In which group.
        group: MlsGroupId,
        /// Which instance.
        from: Npub,
        /// What.
        notify: ServiceNotify,
    },
    /// Another admin asked for something.
    Request {
        /// In which group.
        group: MlsGroupId,
        /// Who.
        from: Npub,
        /// What.
        action: Action,
        /// For which client.
        client: ClientId,
        /// The operation.
        action_id: RotationId,
    },
    /// Another admin acked.
    Ack {
        /// In which group.
        group: MlsGroupId,
        /// Who.
        from: Npub,
        /// The ack.
        ack: RotateAck,
    },
    /// Something that must not happen: a person should look at it.
    Alarm {
        /// In which group.
        group: MlsGroupId,
        /// What.
        what: String,
    },
}

/// A Welcome that nobody has accepted yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct WaitingWelcome {
    /// Who invites.
    pub from: Npub,
    /// Into which group.
    pub group: MlsGroupId,
    /// What it calls itself.
    pub name: String,
}

impl Update {
    pub(super) fn epoch(applied: &CommitApplied) -> Self {
        let CommitApplied {
            group,
            epoch,
            facts,
            evicted,
            ..
        } = applied;
        Self::Epoch {
            group: group.clone(),
            epoch: *epoch,
            added: facts.added.iter().map(|(key, _)| npub(key)).collect(),
            removed: facts.removed.iter().map(|leaf| npub(&leaf.npub)).collect(),
            evicted: *evicted,
        }
    }
}

/// What the sender of a message is to us; see `vouch`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Sender {
    /// A configured service, with a key that its npub has vouched for.
    Service,
    /// Claims to be one; its key was not looked up yet.
    Unvouched,
    /// Anybody else in the group.
    Other,
}

/// The note under which a message waits until its sender's key was looked up. Not the label of a secret.
const UNVOUCHED: &str = "unvouched";

/// Whether a deferred message waits for that.
pub(super) fn is_unvouched(label: &str) -> bool {
    label == UNVOUCHED
}

/// What becomes of an application message. A message with a secret is never consumed here, except one by somebody who is no service: it
/// would only wait to deceive.
pub(super) fn judge(message: &AppMessage, sender: Sender) -> (Disposition, Option<Update>) {
    if sender == Sender::Unvouched {
        return (
            Disposition::Defer {
                label: UNVOUCHED.to_owned(),
            },
            None,
        );
    }
    let is_service = sender == Sender::Service;
    let group = message.group.clone();
    let from = npub(&message.sender);
    let alarm = |what: &str| {
        Some(Update::Alarm {
            group: message.group.clone(),
            what: format!("{from}: {what}"),
        })
    };
    let Ok(json) = std::str::from_utf8(&message.body) else {
        return (Disposition::Consume, None);
    };
    match Inner::classify(json) {
        InnerKind::Notify if !is_service => (
            Disposition::Consume,
            alarm("sent a secret without being a proven service; it was dropped unread"),
        ),
        InnerKind::Notify => match serde_json::from_str::<NotifyHeader>(json) {
            Ok(header) => (
                Disposition::Defer {
                    label: WaitingSecret::label(&header),
                },
                None,
            ),
            Err(_) => (
                Disposition::Consume,
                alarm("sent a rotate-notify that cannot be read"),
            ),
        },
        InnerKind::Service if !is_service => (
            Disposition::Consume,
            alarm("sent a report without being a proven service"),
        ),
        InnerKind::Service => match serde_json::from_str::<ServiceNotify>(json) {
            Ok(notify) => (
                Disposition::Consume,
                Some(Update::Report {
                    group,
                    from,
                    notify,
                }),
            ),
            // A newer service may know states that we do not.
            Err(_) => (Disposition::Consume, None),
        },
        InnerKind::Request => match serde_json::from_str::<ServiceRequest>(json) {
            Ok(request) => (
                Disposition::Consume,
                Some(Update::Request {
                    group,
                    from,
                    action: request.action_type,
                    client: request.client_id,
                    action_id: request.action_id,
                }),
            ),
            Err(_) => (Disposition::Consume, None),
        },
        InnerKind::Ack => match serde_json::from_str::<RotateAck>(json) {
            Ok(ack) => (Disposition::Consume, Some(Update::Ack { group, from, ack })),
            Err(_) => (Disposition::Consume, None),
        },
        InnerKind::Foreign => (Disposition::Consume, None),
    }
}
