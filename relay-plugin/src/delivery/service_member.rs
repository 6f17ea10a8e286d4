//! The relay as a member of the admin groups: what it takes in, and what it keeps in order.
//!
//! What must always hold: a message that bears a secret is never kept; a request or an ack is in the member's encrypted inbox, in the very
//! transaction that destroyed its MLS key, before anybody is told of it; a group that is not what the operator's registry says is suspended.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use keyturn_mls::{Inbound, Receipt};
use keyturn_proto::{MlsGroupId, Npub, UnixMs, kinds};
use keyturn_store::documents::{Actor, AdminGroupDoc, AuditRecord, GroupState};
use keyturn_store::store::{Decision, Store, StoreError};
use nostr::{Event, PublicKey};

use super::inbox::{Dropped, Taken, decide};
use super::member_thread::{MemberGone, MemberThread};
use super::port::RelayPort;
use super::siblings::Family;
use crate::metrics as names;
use crate::rotation::audit::Entry;
use crate::rotation::ports::Clock;
use crate::service::{Served, ServedSet};
use crate::trail::Trail;

/// What the service member is built from.
pub struct Parts {
    /// The MLS member.
    pub member: MemberThread,
    /// Its Nostr identity.
    pub identity: Npub,
    /// Registry and audit trail.
    pub store: Arc<dyn Store>,
    /// The relay it lives in.
    pub relay: Arc<dyn RelayPort>,
    /// Which events the extension hands over.
    pub served: ServedSet,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Relay addresses that its key packages advertise.
    pub relays: Vec<String>,
    /// The service members of the other instances: neither admins nor readers.
    pub siblings: HashSet<Npub>,
    /// How often the store is asked at most whether admins have changed.
    pub registry: Duration,
}

/// See the module. Cheap to clone.
#[derive(Clone)]
pub struct ServiceMember(Arc<Shared>);

struct Shared {
    parts: Parts,
    junk: Mutex<Junk>,
    enrolled: Mutex<Enrolled>,
    pub(super) family: Family,
    /// What members of the groups are refused, beside their requests.
    refused: Trail,
}

/// What anybody can send us is recorded one by one only so often; the metrics count all of it.
#[derive(Default)]
struct Junk {
    since: UnixMs,
    recorded: u32,
}

/// Who may send us key packages, as it was last read. A hint, found again by reading.
#[derive(Default)]
struct Enrolled {
    asked: Option<UnixMs>,
    revision: Option<u64>,
}

/// Records of junk within [`JUNK_WINDOW`].
const JUNK_RECORDS: u32 = 30;
const JUNK_WINDOW: Duration = Duration::from_secs(600);

/// Why something could not be taken in or done. It stays where it is, and is tried again.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// The member's thread.
    #[error(transparent)]
    Gone(#[from] MemberGone),
    /// The member's own state.
    #[error("the service member failed: {0}")]
    Member(String),
    /// The store.
    #[error(transparent)]
    Store(#[from] keyturn_store::store::StoreError),
    /// The relay.
    #[error(transparent)]
    Relay(#[from] crate::rotation::ports::DeliveryError),
}

/// A member-crate error, which names rules and never contents.
pub(crate) fn failed(error: impl std::fmt::Display) -> ServiceError {
    ServiceError::Member(error.to_string())
}

impl ServiceMember {
    /// A service member at rest.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        Self(Arc::new(Shared {
            junk: Mutex::default(),
            enrolled: Mutex::default(),
            family: Family::default(),
            refused: Trail::counting_as("member.refused_repeatedly", Arc::clone(&parts.store)),
            parts,
        }))
    }

    pub(super) fn store(&self) -> &dyn Store {
        self.0.parts.store.as_ref()
    }

    pub(super) fn relay(&self) -> &dyn RelayPort {
        self.0.parts.relay.as_ref()
    }

    pub(crate) fn member(&self) -> &MemberThread {
        &self.0.parts.member
    }

    pub(super) fn clock(&self) -> &dyn Clock {
        self.0.parts.clock.as_ref()
    }

    pub(super) fn relays(&self) -> &[String] {
        &self.0.parts.relays
    }

    pub(super) fn now(&self) -> UnixMs {
        self.0.parts.clock.now()
    }

    pub(super) fn family(&self) -> &Family {
        &self.0.family
    }

    pub(super) fn siblings(&self) -> &HashSet<Npub> {
        &self.0.parts.siblings
    }

    /// Our own npub.
    #[must_use]
    pub fn identity(&self) -> Npub {
        self.0.parts.identity
    }

    /// Whether `event` may be taken in before the relay has stored it: only what cannot change a group.
    ///
    /// # Errors
    /// [`ServiceError`].
    pub async fn may_run_ahead(&self, event: &Event) -> Result<bool, ServiceError> {
        if event.kind.as_u16() != kinds::GROUP_EVENT {
            return Ok(true);
        }
        let event = event.clone();
        let ahead = self
            .member()
            .call(move |member| member.is_application(&event));
        ahead.await?.map_err(failed)
    }

    /// Takes in one event. Returns whether the inbox has something new.
    ///
    /// # Errors
    /// [`ServiceError`]; the event is taken in again with the next rescan.
    pub async fn take_in(&self, event: &Event, receipt: Receipt) -> Result<bool, ServiceError> {
        match event.kind.as_u16() {
            kinds::GROUP_EVENT => self.group_event(event, receipt).await,
            kinds::GIFT_WRAP => self.gift_wrap(event).await.map(|()| false),
            kinds::KEY_PACKAGE | kinds::KEY_PACKAGE_LEGACY => {
                self.learn(event).await.map(|()| false)
            }
            kind if kind == keyturn_mls::binding::KIND_BINDING.as_u16() => {
                self.learn(event).await.map(|()| false)
            }
            _ => Ok(false),
        }
    }

    pub(super) async fn group_event(
        &self,
        event: &Event,
        receipt: Receipt,
    ) -> Result<bool, ServiceError> {
        let event = event.clone();
        let siblings = self.siblings().clone();
        let (results, taken, scrubbed) = self
            .member()
            .call(move |member| {
                let mut taken = Taken::default();
                let results = member.receive(&event, receipt, &mut |message| {
                    decide(message, &siblings, &mut taken)
                });
                // What could have opened it is overwritten; nor may an older version of its page stay in the log.
                let scrubbed = if taken.notifies > 0 {
                    member.scrub()
                } else {
                    Ok(())
                };
                (results, taken, scrubbed)
            })
            .await?;
        let Taken {
            dropped,
            answered,
            notifies: _,
        } = taken;
        self.note_answered(answered).await;
        if let Err(error) = scrubbed {
            metrics::counter!(names::ALARMS, "reason" => "member.not_scrubbed").increment(1);
            tracing::error!(%error, "ALARM: the member's log could not be truncated");
        }
        for Dropped {
            sender,
            event,
            reason,
        } in dropped
        {
            let sender = npub(&sender);
            self.dropped(sender, &event, reason).await;
        }
        let mut inbox = false;
        for result in results.map_err(failed)? {
            inbox |= self.follow_up(result).await?;
        }
        Ok(inbox)
    }

    /// What a received event means beyond MLS. `true` when the inbox has something new.
    async fn follow_up(&self, result: Inbound) -> Result<bool, ServiceError> {
        match result {
            Inbound::Message { inbox, .. } => return Ok(inbox.is_some()),
            Inbound::Commit(commit) => self.commit_followed(&commit).await?,
            Inbound::CommitRefused {
                event_id,
                group,
                reason,
                peers_may_follow,
            } => {
                let alias = self.alias(&group).await?;
                let entry = Entry::by_relay(self.now(), "commit.refused", &reason.to_string())
                    .group(&alias)
                    .event(&event_id.to_hex());
                self.audit(entry.done()).await;
                if peers_may_follow {
                    alarm(&alias, "commit.refused");
                }
            }
            Inbound::Frozen { group } => {
                let alias = self.alias(&group).await?;
                alarm(&alias, "group.forked");
                let entry = Entry::by_relay(self.now(), "group.frozen", "group.forked");
                self.audit(entry.group(&alias).done()).await;
            }
            Inbound::Thawed { group } => {
                let alias = self.alias(&group).await?;
                let entry = Entry::by_relay(self.now(), "group.thawed", "peers.on_our_branch");
                self.audit(entry.group(&alias).done()).await;
            }
            Inbound::Invalid { event_id, reason } => {
                metrics::counter!(names::EVENTS_INVALID).increment(1);
                let entry = Entry::new(
                    self.now(),
                    Actor::Unknown,
                    "event.invalid",
                    &reason.to_string(),
                );
                self.audit_junk(entry.event(&event_id.to_hex()).done())
                    .await;
            }
            Inbound::Kept {
                event_id,
                group,
                gave_way,
            } => {
                metrics::counter!(names::EVENTS_KEPT).increment(1);
                metrics::counter!(names::EVENTS_GAVE_WAY).increment(gave_way as u64);
                let entry =
                    Entry::new(self.now(), Actor::Unknown, "event.kept", "not_openable_yet");
                let alias = self.alias(&group).await?;
                let entry = entry.group(&alias).event(&event_id.to_hex());
                self.audit_junk(entry.done()).await;
            }
            Inbound::SelfRemove { group, leaf } => {
                tracing::info!(%group, leaf = %leaf.npub, "asks to be let go");
            }
            Inbound::Duplicate { .. } | Inbound::UnknownGroup { .. } | Inbound::Deferred(_) => {}
            other => tracing::debug!(?other, "nothing to do"),
        }
        Ok(false)
    }

    /// Says which events concern us: the addresses of bound groups we are in, our own key, the enrolled admins.
    ///
    /// # Errors
    /// [`ServiceError`].
    pub async fn refresh_served(&self) -> Result<(), ServiceError> {
        let addresses = HashSet::from_iter(self.addresses().await?);
        let authors = self.changed_authors().await?;
        self.0.parts.served.update(|served| {
            *served = Served {
                groups: addresses,
                recipients: HashSet::from([*self.identity().as_bytes()]),
                key_package_authors: authors
                    .unwrap_or_else(|| std::mem::take(&mut served.key_package_authors)),
                cleartext_requests: served.cleartext_requests,
            };
        });
        Ok(())
    }

    /// Who is enrolled, if that has changed since it was last read: the whole list is read only then. The revision is read before the list, so that a change in
    /// between is met by the next look.
    async fn changed_authors(&self) -> Result<Option<HashSet<[u8; 32]>>, ServiceError> {
        let now = self.now();
        {
            let mut enrolled = self.enrolled();
            let early = |asked: UnixMs| asked <= now && now < asked.plus(self.0.parts.registry);
            if enrolled.revision.is_some() && enrolled.asked.is_some_and(early) {
                return Ok(None);
            }
            enrolled.asked = Some(now);
        }
        let revision = self.store().admins_revision().await?;
        if self.enrolled().revision == Some(revision) {
            return Ok(None);
        }
        let admins = self.store().admins().await?;
        self.enrolled().revision = Some(revision);
        let active = admins.iter().filter(|admin| admin.active);
        Ok(Some(active.map(|admin| *admin.npub.as_bytes()).collect()))
    }

    fn enrolled(&self) -> std::sync::MutexGuard<'_, Enrolled> {
        let enrolled = self.0.enrolled.lock();
        enrolled.unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The `h` tags of the groups we are in.
    ///
    /// # Errors
    /// [`ServiceError`].
    pub async fn addresses(&self) -> Result<Vec<[u8; 32]>, ServiceError> {
        let groups = self.member().call(|member| member.groups()).await?;
        let groups = groups.map_err(failed)?.into_iter();
        Ok(groups
            .filter(|group| !group.evicted)
            .map(|group| *group.nostr_group_id.as_bytes())
            .collect())
    }

    /// Whether some group cannot be sealed to yet, but will be.
    ///
    /// # Errors
    /// [`ServiceError`].
    pub async fn is_settling(&self) -> Result<bool, ServiceError> {
        let settling = self.member().call(|member| {
            for group in member.groups()? {
                let stopped = group.evicted || group.frozen.is_some();
                if !stopped && member.needs_self_update(&group.id)? {
                    return Ok(true);
                }
            }
            Ok::<_, keyturn_mls::error::StoreError>(member.next_settle()?.is_some())
        });
        settling.await?.map_err(failed)
    }

    /// The operator's name for a group, or its id when it has none.
    pub(super) async fn alias(&self, group: &MlsGroupId) -> Result<String, ServiceError> {
        let groups = self.store().groups().await?;
        let bound = groups.into_iter().find(|doc| is_bound(doc, group));
        Ok(bound.map_or_else(|| group.to_string(), |doc| doc.alias))
    }

    /// Stops serving a group until the operator has looked.
    pub(super) async fn suspend(
        &self,
        alias: &str,
        reason: &'static str,
    ) -> Result<(), ServiceError> {
        alarm(alias, reason);
        let groups = self.store().groups().await?;
        let known = groups.iter().find(|group| group.alias == alias);
        let entry = Entry::by_relay(self.now(), "group.suspended", reason).group(alias);
        match known.map(|group| &group.status) {
            None | Some(GroupState::Suspended { .. }) => self.audit_junk(entry.done()).await,
            Some(GroupState::Active) => {
                let state = GroupState::Suspended {
                    reason: reason.to_owned(),
                };
                self.store()
                    .set_group_state(alias, state, self.now(), entry.done())
                    .await?;
            }
        }
        Ok(())
    }

    /// Appends a record about something that anybody can send, within limits.
    pub(super) async fn audit_junk(&self, record: AuditRecord) {
        let within = {
            let mut junk = self.0.junk.lock().unwrap_or_else(PoisonError::into_inner);
            // A clock set back starts anew.
            if record.at < junk.since || record.at >= junk.since.plus(JUNK_WINDOW) {
                *junk = Junk {
                    since: record.at,
                    recorded: 0,
                };
            }
            junk.recorded = junk.recorded.saturating_add(1);
            junk.recorded <= JUNK_RECORDS
        };
        if within {
            self.audit(record).await;
        } else {
            metrics::counter!(names::JUNK_NOT_RECORDED).increment(1);
        }
    }

    /// Appends a record of the core's.
    pub(crate) async fn record(&self, record: AuditRecord) {
        self.audit(record).await;
    }

    /// Records a decision about a member's message, which must not be told before.
    ///
    /// # Errors
    /// [`StoreError`]; the decision is to be made again.
    pub(crate) async fn decide(&self, decision: Decision) -> Result<(), StoreError> {
        self.0.refused.decide(decision).await
    }

    /// Records the refusal of a member's message that no limit bounds: on its own, or in the summary of a flood. Returns whether on its own by now: without that
    /// nothing makes other instances refuse the message, and nobody is told.
    pub(crate) async fn note_refusal(
        &self,
        sender: Npub,
        reason: &'static str,
        event: &str,
        decision: Decision,
    ) -> bool {
        let (trail, now) = (&self.0.refused, decision.audit.at);
        trail.note(sender, reason, event, decision, now).await
    }

    /// Records that a member's message was not kept.
    pub(super) async fn dropped(&self, sender: Npub, event: &str, reason: &'static str) {
        let entry = Entry::by_admin(self.now(), sender, "message.dropped", reason);
        let decision = Decision {
            audit: entry.event(event).done(),
            refuses: None,
        };
        self.note_refusal(sender, reason, event, decision).await;
    }

    /// Counts a message that was not kept, without a record of its own and without waiting for the store.
    pub(super) fn sum_up(&self, sender: Npub, reason: &'static str, event: &str) {
        self.0.refused.sum_up(sender, reason, event, self.now());
    }

    /// Writes down what was not recorded one by one; `all` of it at the end.
    pub(crate) async fn sum_up_refusals(&self, all: bool) {
        self.0.refused.flush(self.now(), all).await;
    }

    /// Appends a record. A record that cannot be written is an alarm of its own; what it is about stands all the same.
    pub(super) async fn audit(&self, record: AuditRecord) {
        let event = record.event.clone();
        if let Err(error) = self.store().append(record).await {
            metrics::counter!(names::AUDIT_FAILED).increment(1);
            tracing::error!(%error, event, "an audit record could not be written");
        }
    }
}

/// Counts and logs something an operator must look at.
pub(super) fn alarm(group: &str, reason: &'static str) {
    metrics::counter!(names::ALARMS, "reason" => reason).increment(1);
    tracing::error!(
        group,
        reason,
        "ALARM: a group is not what the registry says"
    );
}

/// Whether the registry binds this alias to `group`.
pub(super) fn is_bound(document: &AdminGroupDoc, group: &MlsGroupId) -> bool {
    document.mls_group_id.as_ref() == Some(group)
}

/// A Nostr key in our own type.
pub(super) fn npub(key: &PublicKey) -> Npub {
    Npub::from_bytes(key.to_bytes())
}
