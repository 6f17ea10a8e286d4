//! What arrives: catching up with the relay, and the live subscription.
//!
//! What must hold: stored events are fed oldest first and marked as stored, live ones as live (the MLS member judges commits by that); the
//! cursor moves only after everything before it was taken in; a message that bears a secret is never opened here, only announced.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use keyturn_mls::error::{ReceiveError, StoreError};
use keyturn_mls::{AppMessage, DeferredMessage, Inbound, Joined, Receipt};
use keyturn_proto::{MlsGroupId, UnixMs};
use nostr::{Alphabet, Event, EventId, Filter, Kind, SingleLetterTag, Timestamp};
use tokio::time::Instant;

use super::secret::WaitingSecret;
use super::update::{is_unvouched, judge};
use super::vouch::sender;
use super::{AdminSession, GroupError, Update};
use crate::transport::{Fetched, Heard, RelayError};

/// Fetched again each time, for clocks that differ and events that were stored late.
const OVERLAP: Duration = Duration::from_secs(3600);
/// NIP-59 dates gift wraps up to two days back.
const WRAP_OVERLAP: Duration = Duration::from_secs(3 * 86_400);
/// How far back a group's events may be dated (Marmot).
const BEFORE_JOINING: Duration = Duration::from_secs(45 * 86_400);
/// Joining a group may reveal events of it, and so on; more rounds than groups are never needed.
const MAX_ROUNDS: usize = 32;

/// Crowded seconds of which nobody need be told again.
const CROWDS: usize = 1_024;

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

impl AdminSession {
    /// Catches up with the relay and brings to an end what was begun: Welcomes, our commits, the renewal of leaves. The live subscription
    /// runs from here on.
    ///
    /// # Errors
    /// [`SyncError`].
    pub async fn sync(&mut self, deadline: Instant) -> Result<(), SyncError> {
        while let Some(heard) = self.relay.arrived()? {
            // Gift wraps are fetched below; a resync is what this is.
            if let Heard::Live { event, at } = heard
                && event.kind == Kind::MlsGroupMessage
            {
                self.take_in(&event, Receipt::live(at))?;
            }
        }
        for _ in 0..MAX_ROUNDS {
            let started = self.clock.now();
            let before = self.addresses()?;
            self.listen().await?;
            let joined = self.fetch_welcomes(started, deadline).await?;
            self.fetch_groups(started, deadline).await?;
            self.judge_unvouched(deadline).await?;
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
        wanted: impl FnMut(&Update) -> bool + Send,
        deadline: Instant,
    ) -> Result<Option<Update>, SyncError> {
        self.wait_past(0, wanted, deadline).await
    }

    /// As [`Self::wait_for`], past the first `looked_at` of the updates that nobody has taken yet.
    pub(super) async fn wait_past(
        &mut self,
        mut looked_at: usize,
        mut wanted: impl FnMut(&Update) -> bool + Send,
        deadline: Instant,
    ) -> Result<Option<Update>, SyncError> {
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
    ///
    /// The deadline is one for the waiting. What came just before it is still worked off, with the patience of one step: whoever only looks
    /// in for a moment would otherwise break off a catching up that had hardly begun, and be told of a relay that is too slow.
    pub(super) async fn pump(&mut self, deadline: Instant) -> Result<bool, SyncError> {
        let Some(heard) = self.relay.next(deadline).await? else {
            return Ok(false);
        };
        let enough = deadline.max(Instant::now() + self.patience);
        self.hear(heard, enough).await?;
        Ok(true)
    }

    /// Takes in what has arrived. Comes before every step that lets epochs settle: a commit that arrived in time must not lose because it
    /// was looked at late.
    pub(super) async fn catch_up(&mut self, deadline: Instant) -> Result<(), SyncError> {
        while let Some(heard) = self.relay.arrived()? {
            self.hear(heard, deadline).await?;
        }
        Ok(())
    }

    async fn hear(&mut self, heard: Heard, deadline: Instant) -> Result<(), SyncError> {
        match heard {
            // Boxed: both may come back here while they catch up.
            Heard::Resync => Box::pin(self.sync(deadline)).await,
            Heard::Live { event, .. } if event.kind == Kind::GiftWrap => {
                if let Some(joined) = self.follow_welcome(&event)? {
                    Box::pin(self.settle_in(joined, deadline)).await?;
                    Box::pin(self.sync(deadline)).await?;
                }
                Ok(())
            }
            Heard::Live { event, at } => {
                self.take_in(&event, Receipt::live(at))?;
                self.judge_unvouched(deadline).await
            }
            Heard::Closed(reason) => Err(RelayError::Closed(reason).into()),
        }
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
        let wraps = self.relay.fetch_past_crowds(&filter, self.step(deadline));
        let Fetched {
            events: wraps,
            crowded,
            cut: _,
        } = wraps.await?;
        for second in crowded {
            tracing::warn!(
                second,
                "somebody floods us; an invitation of that second may be missing"
            );
        }
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
            let fetched = self.relay.fetch_past_crowds(&filter, self.step(deadline));
            let Fetched {
                events,
                crowded,
                cut: _,
            } = fetched.await?;
            self.note_crowds(&group.id, crowded);
            for event in &events {
                // As if it had been received when it was made: an epoch of ours must not settle before its rivals were looked at.
                let made = UnixMs::from_secs(event.created_at.as_secs());
                self.take_in(event, Receipt::stored(made.min(self.clock.now())))?;
            }
            let reached = started.minus(OVERLAP).as_secs();
            self.cursor.positions.groups.insert(key, reached);
        }
        Ok(())
    }

    /// Anybody can fill a second with what nobody can open. Waiting for it to pass would be waiting for ever; what was missed, if anything, shows by
    /// what cannot be opened afterwards.
    fn note_crowds(&mut self, group: &MlsGroupId, crowded: BTreeSet<u64>) {
        for second in crowded {
            if self.crowded.insert((group.clone(), second)) {
                self.updates.push_back(Update::Alarm {
                    group: group.clone(),
                    what: format!(
                        "somebody floods the group's address; an event of second {second} may be missing"
                    ),
                });
            }
        }
        while self.crowded.len() > CROWDS {
            self.crowded.pop_first();
        }
    }

    /// Takes in a group event. A message that bears a secret is left closed.
    fn take_in(&mut self, event: &Event, receipt: Receipt) -> Result<(), SyncError> {
        let mut said = Vec::new();
        let (services, vouched) = (&self.services, &self.vouched);
        let mut decide = |message: &AppMessage| {
            let (disposition, update) = judge(message, sender(message, services, vouched));
            said.extend(update);
            disposition
        };
        let inbound = self.member.receive(event, receipt, &mut decide)?;
        for each in inbound {
            match each {
                Inbound::Deferred(message) => self.announce_deferred(&message),
                Inbound::Commit(applied) => {
                    self.lost.extend(applied.own_lost);
                    said.push(Update::epoch(&applied));
                }
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

    /// A message was left closed: a secret that waits, or one whose sender has to be looked up first.
    pub(super) fn announce_deferred(&mut self, message: &DeferredMessage) {
        if is_unvouched(&message.label) {
            self.unvouched.push(message.event_id);
        } else if let Some(waiting) = WaitingSecret::from_deferred(message) {
            self.updates.push_back(Update::Secret(waiting));
        }
    }

    /// Whether an event id is stored by the relay.
    pub(super) async fn is_stored(
        &mut self,
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
        .custom_tags(SingleLetterTag::lowercase(Alphabet::H), addresses)
}
