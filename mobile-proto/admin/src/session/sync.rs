//! What arrives: catching up with the relay, and the live subscription.
//!
//! What must hold: stored events are fed oldest first and marked as stored, live ones as live (the MLS member judges commits by that); the
//! cursor moves only after everything before it was taken in; a message that bears a secret is never opened here, only announced.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use keyturn_mls::error::{ReceiveError, StoreError, WelcomeError};
use keyturn_mls::{AppMessage, Decision, Disposition, Inbound, Joined, Receipt, WelcomeOutcome};
use keyturn_proto::inner::InnerKind;
use keyturn_proto::notify::{NotifyHeader, ServiceNotify};
use keyturn_proto::{
    Action, ClientId, Inner, MlsGroupId, Npub, RotateAck, RotationId, ServiceRequest, UnixMs,
};
use nostr::nips::nip09::EventDeletionRequest;
use nostr::{Event, EventBuilder, EventId, Filter, Kind, SingleLetterTag, Timestamp};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::secret::WaitingSecret;
use super::{AdminSession, GroupError, npub};
use crate::transport::{Heard, RelayError};

/// Fetched again each time, for clocks that differ and events that were stored late.
const OVERLAP: Duration = Duration::from_secs(3600);
/// NIP-59 dates gift wraps up to two days back.
const WRAP_OVERLAP: Duration = Duration::from_secs(3 * 86_400);
/// How far back a group's events may be dated (Marmot).
const BEFORE_JOINING: Duration = Duration::from_secs(45 * 86_400);
/// Joining a group may reveal events of it, and so on; more rounds than groups are never needed.
const MAX_ROUNDS: usize = 32;

/// Why catching up failed. Nothing is lost: the next sync starts where this one did.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    /// The relay.
    #[error(transparent)]
    Relay(#[from] RelayError),
    /// An event could not be taken in.
    #[error(transparent)]
    Receive(#[from] ReceiveError),
    /// The member database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A commit that had to follow.
    #[error(transparent)]
    Group(Box<GroupError>),
    /// The cursor file.
    #[error("{path}: {source}")]
    Cursor {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A deletion could not be signed.
    #[error("the event could not be signed: {0}")]
    Sign(#[from] nostr::event::builder::Error),
}

impl From<GroupError> for SyncError {
    fn from(error: GroupError) -> Self {
        Self::Group(Box::new(error))
    }
}

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
    /// Somebody who is not trusted to invite us did; see [`AdminSession::join`].
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
    /// A secret was delivered; it stays closed until [`AdminSession::open_secret`].
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

pub(super) struct HeldWelcome {
    pub(super) event: Event,
    pub(super) info: WaitingWelcome,
}

/// Where the last sync ended, in unix seconds.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Positions {
    wraps: Option<u64>,
    groups: BTreeMap<String, u64>,
}

pub(super) struct Cursor {
    path: Option<PathBuf>,
    positions: Positions,
}

impl Cursor {
    /// A file that does not parse is only a lost optimisation: everything is read again.
    pub(super) fn load(path: Option<PathBuf>) -> Result<Self, SyncError> {
        let positions = match &path {
            None => Positions::default(),
            Some(file) => match std::fs::read(file) {
                Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Positions::default(),
                Err(source) => {
                    return Err(SyncError::Cursor {
                        path: file.clone(),
                        source,
                    });
                }
            },
        };
        Ok(Self { path, positions })
    }

    fn save(&self) -> Result<(), SyncError> {
        let Some(path) = &self.path else {
            return Ok(());
        };
        let failed = |source| SyncError::Cursor {
            path: path.clone(),
            source,
        };
        let json =
            serde_json::to_vec(&self.positions).map_err(|error| failed(io::Error::other(error)))?;
        let partial = path.with_extension("partial");
        std::fs::write(&partial, json).map_err(failed)?;
        std::fs::rename(&partial, path).map_err(failed)
    }
}

impl AdminSession {
    /// Catches up with the relay and brings to an end what was begun: Welcomes, our commits, the renewal of leaves. The live subscription
    /// runs from here on.
    ///
    /// # Errors
    /// [`SyncError`].
    pub async fn sync(&mut self, deadline: Instant) -> Result<(), SyncError> {
        for _ in 0..MAX_ROUNDS {
            let started = self.clock.now();
            let before = self.addresses()?;
            self.listen().await?;
            let joined = self.fetch_welcomes(started, deadline).await?;
            self.fetch_groups(started, deadline).await?;
            self.cursor.save()?;
            self.finish_commits(deadline).await?;
            for joined in joined {
                self.settle_in(joined, deadline).await?;
            }
            // A group more, or another address: what belongs to it was not asked for yet.
            if self.addresses()? == before {
                break;
            }
        }
        Ok(())
    }

    /// The next thing that happened; `None` when nothing did until the deadline.
    ///
    /// # Errors
    /// [`SyncError`].
    pub async fn next_update(&mut self, deadline: Instant) -> Result<Option<Update>, SyncError> {
        self.wait_for(|_| true, deadline).await
    }

    /// The first update that `wanted` picks, now or later; others stay for [`Self::next_update`].
    pub(super) async fn wait_for(
        &mut self,
        mut wanted: impl FnMut(&Update) -> bool + Send,
        deadline: Instant,
    ) -> Result<Option<Update>, SyncError> {
        let mut looked_at = 0;
        loop {
            if let Some(at) = (looked_at..self.updates.len()).find(|at| wanted(&self.updates[*at]))
            {
                return Ok(self.updates.remove(at));
            }
            looked_at = self.updates.len();
            if !self.pump(deadline).await? {
                return Ok(None);
            }
        }
    }

    /// Takes in one live event; `false` when none came until the deadline.
    pub(super) async fn pump(&mut self, deadline: Instant) -> Result<bool, SyncError> {
        let Some(heard) = self.relay.next(deadline).await? else {
            return Ok(false);
        };
        self.member.settle(self.clock.now())?;
        match heard {
            Heard::Resync => self.sync(deadline).await?,
            Heard::Live(event) if event.kind == Kind::GiftWrap => {
                if let Some(joined) = self.follow_welcome(&event)? {
                    self.settle_in(joined, deadline).await?;
                    self.sync(deadline).await?;
                }
            }
            Heard::Live(event) => {
                let receipt = Receipt::live(self.clock.now());
                self.take_in(&event, receipt)?;
            }
        }
        Ok(true)
    }

    async fn listen(&mut self) -> Result<(), SyncError> {
        let since = Timestamp::from_secs(self.clock.now().minus(OVERLAP).as_secs());
        let mut filters =
            vec![
                Filter::new()
                    .kind(Kind::GiftWrap)
                    .pubkey(self.me)
                    .since(Timestamp::from_secs(
                        self.clock.now().minus(WRAP_OVERLAP).as_secs(),
                    )),
            ];
        let addresses = self.addresses()?;
        if !addresses.is_empty() {
            filters.push(group_filter(addresses).since(since));
        }
        Ok(self.relay.listen(filters).await?)
    }

    /// The `h` tags of our groups.
    fn addresses(&self) -> Result<BTreeSet<String>, StoreError> {
        Ok(self
            .member
            .groups()?
            .iter()
            .filter(|group| !group.evicted)
            .flat_map(|group| [group.nostr_group_id, group.data.nostr_group_id])
            .map(|address| address.to_hex())
            .collect())
    }

    async fn fetch_welcomes(
        &mut self,
        started: UnixMs,
        deadline: Instant,
    ) -> Result<Vec<Joined>, SyncError> {
        let mut filter = Filter::new().kind(Kind::GiftWrap).pubkey(self.me);
        if let Some(position) = self.cursor.positions.wraps {
            filter = filter.since(Timestamp::from_secs(position));
        }
        let wraps = self.relay.fetch_all(&filter, self.step(deadline)).await?;
        let mut joined = Vec::new();
        for wrap in &wraps {
            joined.extend(self.follow_welcome(wrap)?);
        }
        // A Welcome that waits to be accepted must be found again by the next run.
        if self.welcomes.is_empty() {
            self.cursor.positions.wraps = Some(started.minus(WRAP_OVERLAP).as_secs());
        }
        Ok(joined)
    }

    async fn fetch_groups(&mut self, started: UnixMs, deadline: Instant) -> Result<(), SyncError> {
        for group in self.member.groups()? {
            if group.evicted {
                continue;
            }
            let key = group.id.to_string();
            let since = self.cursor.positions.groups.get(&key).copied();
            let since = since.unwrap_or_else(|| group.joined_at.minus(BEFORE_JOINING).as_secs());
            let addresses = [group.nostr_group_id, group.data.nostr_group_id]
                .map(|address| address.to_hex())
                .into();
            let filter = group_filter(addresses).since(Timestamp::from_secs(since));
            let events = self.relay.fetch_all(&filter, self.step(deadline)).await?;
            for event in &events {
                let receipt = Receipt::stored(self.clock.now());
                self.take_in(event, receipt)?;
            }
            let reached = started.minus(OVERLAP).as_secs();
            self.cursor.positions.groups.insert(key, reached);
        }
        Ok(())
    }

    /// Opens a gift wrap. Only a trusted welcomer gets us in; another one's Welcome is announced and kept.
    pub(super) fn follow_welcome(&mut self, wrap: &Event) -> Result<Option<Joined>, SyncError> {
        let trusted: BTreeSet<_> = self
            .welcomers
            .iter()
            .chain(&self.services)
            .copied()
            .collect();
        let mut name = String::new();
        let decide = |invitation: &keyturn_mls::Invitation<'_>| {
            invitation.name.clone_into(&mut name);
            if trusted.contains(&invitation.welcomer) {
                Decision::Join
            } else {
                Decision::Refuse
            }
        };
        let now = self.clock.now();
        match self.member.open_welcome(wrap, decide, now) {
            Ok(WelcomeOutcome::Joined(joined)) => {
                tracing::info!(group = %joined.id, welcomer = %npub(&joined.welcomer), "joined");
                self.updates.push_back(Update::Joined {
                    group: joined.id.clone(),
                    by: npub(&joined.welcomer),
                });
                Ok(Some(joined))
            }
            // A crash after joining may have left the rest undone.
            Ok(WelcomeOutcome::Duplicate(joined)) => Ok(self
                .member
                .needs_self_update(&joined.id)?
                .then_some(joined)
                .filter(|joined| joined.group.as_ref().is_some_and(|group| !group.evicted))),
            Ok(WelcomeOutcome::Refused { welcomer, group }) => {
                let info = WaitingWelcome {
                    from: npub(&welcomer),
                    group,
                    name,
                };
                if !self.welcomes.iter().any(|held| held.event.id == wrap.id) {
                    self.updates.push_back(Update::Invited(info.clone()));
                    self.welcomes.push(HeldWelcome {
                        event: wrap.clone(),
                        info,
                    });
                }
                Ok(None)
            }
            Ok(WelcomeOutcome::AlreadyServed { .. }) => Ok(None),
            Err(WelcomeError::Store(error)) => Err(error.into()),
            // Anybody may send us anything.
            Err(reason) => {
                tracing::debug!(event = %wrap.id, %reason, "gift wrap passed over");
                Ok(None)
            }
        }
    }

    /// What has to follow a join: the used key package goes, a new one comes, and our leaf is renewed.
    async fn settle_in(&mut self, joined: Joined, deadline: Instant) -> Result<(), SyncError> {
        let deletion = EventBuilder::delete(EventDeletionRequest::new().ids(joined.delete_events))
            .sign_with_keys(&self.keys)?;
        // A relay may refuse to delete (a gift wrap is not ours by its author): the secrets it opened with are gone from here either way.
        match self.relay.publish(&deletion, self.step(deadline)).await {
            Ok(()) | Err(RelayError::Refused(_) | RelayError::Notice(_)) => {}
            Err(error) => return Err(error.into()),
        }
        self.publish_key_package(deadline).await?;
        // Boxed: a self-update that loses its epoch syncs again.
        Box::pin(self.self_update(&joined.id, deadline)).await?;
        Ok(())
    }

    /// Takes in a group event. A message that bears a secret is left closed.
    fn take_in(&mut self, event: &Event, receipt: Receipt) -> Result<(), SyncError> {
        let mut said = Vec::new();
        let services = &self.services;
        let mut decide = |message: &AppMessage| {
            let (disposition, update) = judge(message, |key| services.contains(key));
            said.extend(update);
            disposition
        };
        let inbound = self.member.receive(event, receipt, &mut decide)?;
        for each in inbound {
            match each {
                Inbound::Deferred(message) => {
                    if let Some(waiting) = WaitingSecret::from_deferred(&message) {
                        said.push(Update::Secret(waiting));
                    }
                }
                Inbound::Commit(applied) => said.push(Update::Epoch {
                    group: applied.group,
                    epoch: applied.epoch,
                    added: applied
                        .facts
                        .added
                        .iter()
                        .map(|(key, _)| npub(key))
                        .collect(),
                    removed: applied
                        .facts
                        .removed
                        .iter()
                        .map(|leaf| npub(&leaf.npub))
                        .collect(),
                    evicted: applied.evicted,
                }),
                Inbound::CommitRefused {
                    group,
                    reason,
                    peers_may_follow: true,
                    ..
                } => said.push(Update::Alarm {
                    group,
                    what: format!("a commit was refused that others may follow: {reason}"),
                }),
                Inbound::Frozen { group } => said.push(Update::Alarm {
                    group,
                    what: "the others follow another branch of the group: it is frozen".to_owned(),
                }),
                Inbound::Invalid { event_id, reason } => {
                    tracing::debug!(event = %event_id, %reason, "group event passed over");
                }
                _ => {}
            }
        }
        self.updates.extend(said);
        Ok(())
    }

    /// The Welcomes that wait for [`Self::join`].
    #[must_use]
    pub fn waiting_welcomes(&self) -> Vec<WaitingWelcome> {
        self.welcomes.iter().map(|held| held.info.clone()).collect()
    }

    /// Whether an event id is stored by the relay.
    pub(super) async fn is_stored(
        &self,
        id: EventId,
        deadline: Instant,
    ) -> Result<bool, RelayError> {
        let filter = Filter::new().id(id).limit(1);
        Ok(!self.relay.fetch_all(&filter, deadline).await?.is_empty())
    }
}

fn group_filter(addresses: BTreeSet<String>) -> Filter {
    Filter::new()
        .kind(Kind::MlsGroupMessage)
        .custom_tags(SingleLetterTag::lowercase(nostr::Alphabet::H), addresses)
}

/// What becomes of an application message. A message with a secret is never consumed here, except one by somebody who is no service: it
/// would only wait to deceive.
fn judge(
    message: &AppMessage,
    is_service: impl Fn(&nostr::PublicKey) -> bool,
) -> (Disposition, Option<Update>) {
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
        InnerKind::Notify if !is_service(&message.sender) => (
            Disposition::Consume,
            alarm("sent a secret without being a configured service; it was dropped unread"),
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
        InnerKind::Service if !is_service(&message.sender) => (
            Disposition::Consume,
            alarm("sent a report without being a configured service"),
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
