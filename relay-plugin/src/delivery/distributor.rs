//! The way to the admins: who may read is checked here, leaf by leaf, and sealing happens only for exactly those who were checked.
//!
//! What must always hold (architecture.md, "Who is really in the group"): a secret is sealed in a group only while every leaf but our own belongs
//! to an enrolled admin, under a key proven for it, whose scope covers the client. Checking and sealing are two steps on purpose (the registry
//! is asynchronous, the member is not); the roster hash ties them: the member seals only if it is still the one that was checked.

use std::sync::Arc;

use async_trait::async_trait;
use keyturn_mls::error::SealError;
use keyturn_mls::wire::rumor::Payload;
use keyturn_mls::{Leaf as MlsLeaf, MlsGroupId, SealedMessage};
use keyturn_proto::{ErrorClass, RotateNotify, ServiceNotify, UnixMs, kinds};
use keyturn_store::documents::{AdminGroupDoc, ClientDoc, GroupState, OutboxDoc};
use nostr::{JsonUtil, Kind};
use zeroize::Zeroizing;

use super::member_thread::MemberThread;
use super::outbox;
use super::port::RelayPort;
use super::service_member::{ServiceMember, npub};
use crate::admission::Leaf;
use crate::rotation::audit::Entry;
use crate::rotation::ports::{
    Audience, AudienceError, Clock, DeliveryError, Distributor, Gate, Roster, SealedEvent,
};
use keyturn_store::store::Store;
use std::time::Duration;

/// [`Distributor`] over the service member and the relay.
pub struct GroupDistributor {
    service: ServiceMember,
    gate: Arc<dyn Gate>,
}

/// How long to wait for something that has no moment of its own.
const SHORTLY: Duration = Duration::from_millis(100);

/// How long a sibling's key package may take to get here.
const SIBLING: Duration = Duration::from_secs(1);

/// A group as the member sees it.
struct Seen {
    epoch: u64,
    hash: String,
    leaves: Vec<Leaf>,
}

impl GroupDistributor {
    /// Over `service`, with `gate` as the judge of leaves.
    #[must_use]
    pub fn new(service: ServiceMember, gate: Arc<dyn Gate>) -> Self {
        Self { service, gate }
    }

    fn store(&self) -> &dyn Store {
        self.service.store()
    }

    fn relay(&self) -> &dyn RelayPort {
        self.service.relay()
    }

    fn member(&self) -> &MemberThread {
        self.service.member()
    }

    fn now(&self) -> UnixMs {
        let clock: &dyn Clock = self.service.clock();
        clock.now()
    }

    async fn roster(
        &self,
        client: &ClientDoc,
        groups: &[AdminGroupDoc],
        alias: &str,
    ) -> Result<Roster, AudienceError> {
        let unfit = |reason| AudienceError::Unfit {
            alias: alias.to_owned(),
            reason,
        };
        let group = groups
            .iter()
            .find(|group| group.alias == alias)
            .ok_or_else(|| unfit("group.unknown"))?;
        if matches!(group.status, GroupState::Suspended { .. }) {
            return Err(unfit("group.suspended"));
        }
        let id = group
            .mls_group_id
            .clone()
            .ok_or_else(|| unfit("group.not_joined"))?;
        let seen = self.see(alias, &id).await?;
        let seen = self.without_siblings(alias, seen).await?;
        let readers = self.judge(client, alias, &seen.leaves).await?;
        Ok(Roster {
            alias: alias.to_owned(),
            mls_group_id: id,
            epoch: seen.epoch,
            hash: seen.hash,
            leaves: seen.leaves,
            readers,
        })
    }

    /// Whether the group can be sealed to at all, and who is in it.
    async fn see(&self, alias: &str, id: &MlsGroupId) -> Result<Seen, AudienceError> {
        let now = self.now();
        let group = id.clone();
        let seen = self
            .member()
            .call(move |member| {
                member.can_seal(&group, now)?;
                let info = member.group_info(&group)?;
                let hash = member.roster_hash(&group)?;
                let leaves = member.members(&group)?;
                let own = (member.npub(), member.signature_key());
                let others = leaves
                    .iter()
                    .filter(|leaf| (leaf.npub, leaf.signature_key) != own)
                    .map(leaf)
                    .collect();
                Ok::<_, SealError>(info.zip(hash).map(|(info, hash)| Seen {
                    epoch: info.epoch,
                    hash: hash.to_hex(),
                    leaves: others,
                }))
            })
            .await
            .map_err(|_| AudienceError::Member("member.gone"))?;
        match seen {
            Ok(Some(seen)) => Ok(seen),
            Ok(None) => Err(AudienceError::Unfit {
                alias: alias.to_owned(),
                reason: "group.not_joined",
            }),
            Err(error) => Err(self.not_sealable(alias, &error)),
        }
    }

    /// The service members of other instances can open what is sealed, and are no readers: each throws it away. A leaf that bears a sibling's
    /// name, under a key that the sibling has not signed, keeps anything from being sealed.
    async fn without_siblings(&self, alias: &str, seen: Seen) -> Result<Seen, AudienceError> {
        let (siblings, leaves): (Vec<Leaf>, Vec<Leaf>) = seen
            .leaves
            .into_iter()
            .partition(|leaf| self.service.is_sibling(&leaf.npub));
        for leaf in siblings {
            if !self.service.is_proven_sibling(&leaf).await {
                return Err(AudienceError::NotYet {
                    alias: alias.to_owned(),
                    reason: "sibling.key_not_proven",
                    retry_at: self.now().plus(SIBLING),
                });
            }
        }
        Ok(Seen { leaves, ..seen })
    }

    fn not_sealable(&self, alias: &str, error: &SealError) -> AudienceError {
        let alias = alias.to_owned();
        let soon = self.now().plus(SHORTLY);
        let not_yet = |alias, reason, retry_at| AudienceError::NotYet {
            alias,
            reason,
            retry_at,
        };
        match error {
            SealError::Unsettled { settles_at } => {
                not_yet(alias, "group.unsettled", (*settles_at).max(soon))
            }
            SealError::PendingCommit(_) => not_yet(alias, "group.commit_pending", soon),
            SealError::NeedsSelfUpdate => not_yet(alias, "group.needs_self_update", soon),
            SealError::UnknownGroup(_) => AudienceError::Unfit {
                alias,
                reason: "group.not_joined",
            },
            SealError::Evicted(_) => AudienceError::Unfit {
                alias,
                reason: "group.evicted",
            },
            SealError::Forked => AudienceError::Unfit {
                alias,
                reason: "group.forked",
            },
            SealError::AddressChanged => AudienceError::Unfit {
                alias,
                reason: "group.address_changed",
            },
            SealError::Rumor(_) | SealError::Event(_) | SealError::Mls(_) | SealError::Store(_) => {
                tracing::error!(group = alias, %error, "the service member failed");
                AudienceError::Member("member.failed")
            }
            // The error type may grow; what is not known is not sealed.
            #[allow(unreachable_patterns)]
            _ => AudienceError::Member("member.failed"),
        }
    }

    /// The last look before a ciphertext goes out: whoever left the group since it was sealed could still open it.
    async fn still_meant_for(&self, event: &OutboxDoc) -> Result<(), DeliveryError> {
        let groups = self.store().groups().await;
        let groups = groups.map_err(|_| DeliveryError::Away("store.unavailable"))?;
        let served = groups
            .into_iter()
            .find(|group| group.alias == event.group && group.status == GroupState::Active);
        let id = served
            .and_then(|group| group.mls_group_id)
            .ok_or(DeliveryError::Group("group.not_served"))?;
        let hash = self.member().call(move |member| member.roster_hash(&id));
        match hash.await {
            Ok(Ok(Some(hash))) if hash.to_hex() == event.roster_hash => Ok(()),
            Ok(Ok(_)) => Err(DeliveryError::Group("roster.changed")),
            Ok(Err(_)) | Err(_) => Err(DeliveryError::Away("member.failed")),
        }
    }

    /// Not even how things stand is told to a group with a stranger in it.
    async fn may_hear(
        &self,
        client: Option<&ClientDoc>,
        alias: &str,
        id: &MlsGroupId,
    ) -> Result<(), DeliveryError> {
        // About a client that this group has nothing to do with there is only "refused" to be told.
        let Some(client) = client.filter(|c| c.admin_groups.iter().any(|g| g == alias)) else {
            return Ok(());
        };
        let seen = self.see(alias, id).await.map_err(undelivered)?;
        let seen = self
            .without_siblings(alias, seen)
            .await
            .map_err(undelivered)?;
        let judged = self.judge(client, alias, &seen.leaves).await;
        judged.map(drop).map_err(undelivered)
    }

    /// Judges every leaf; keys that are not proven yet are looked for among the signed key packages that the relay stores.
    async fn judge(
        &self,
        client: &ClientDoc,
        alias: &str,
        leaves: &[Leaf],
    ) -> Result<Vec<keyturn_proto::Npub>, AudienceError> {
        let verdict = self.gate.authorise_roster(client, alias, leaves).await;
        let verdict = match verdict {
            Err((Some(_), refusal)) if refusal.reason == "admin.key_not_proven" => {
                self.service.prove_leaves(leaves).await;
                self.gate.authorise_roster(client, alias, leaves).await
            }
            verdict => verdict,
        };
        let (who, refusal) = match verdict {
            Ok(readers) => return Ok(readers),
            Err(refused) => refused,
        };
        if refusal.class == ErrorClass::InternalError {
            return Err(AudienceError::Member(refusal.reason));
        }
        metrics::counter!(crate::metrics::ALARMS, "reason" => refusal.reason).increment(1);
        tracing::error!(
            group = alias, reason = refusal.reason, leaf = ?who, client = %client.client_id,
            "ALARM: somebody in the group may not read this client's secrets; nothing is sealed"
        );
        let now = self.now();
        let entry = match who {
            Some(npub) => Entry::by_admin(now, npub, "roster.refused", refusal.reason),
            None => Entry::by_relay(now, "roster.refused", refusal.reason),
        };
        let entry = entry.client(&client.client_id).group(alias);
        self.store().append(entry.done()).await?;
        Err(AudienceError::Unfit {
            alias: alias.to_owned(),
            reason: refusal.reason,
        })
    }
}

#[async_trait]
impl Distributor for GroupDistributor {
    async fn audience(&self, client: &ClientDoc) -> Result<Audience, AudienceError> {
        if client.admin_groups.is_empty() {
            return Err(AudienceError::NoGroup);
        }
        let groups = self.store().groups().await?;
        let mut rosters = Vec::with_capacity(client.admin_groups.len());
        for alias in &client.admin_groups {
            rosters.push(self.roster(client, &groups, alias).await?);
        }
        Ok(Audience {
            client_id: client.client_id.clone(),
            rosters,
        })
    }

    async fn seal(
        &self,
        audience: &Audience,
        notify: RotateNotify,
    ) -> Result<Vec<SealedEvent>, AudienceError> {
        let rosters = audience.rosters.clone();
        let now = self.now();
        let sealed = self
            .member()
            .call(move |member| {
                let mut sealed = Vec::with_capacity(rosters.len());
                for roster in rosters {
                    let hash = member.roster_hash(&roster.mls_group_id);
                    let hash = hash.map_err(|error| (roster.alias.clone(), Err(error.into())))?;
                    if hash.map(|hash| hash.to_hex()).as_ref() != Some(&roster.hash) {
                        return Err((roster.alias, Ok("roster.changed")));
                    }
                    let content = notify.compose();
                    let content =
                        content.map_err(|_| (roster.alias.clone(), Ok("notify.malformed")))?;
                    let message = member
                        .seal(
                            &roster.mls_group_id,
                            payload(kinds::ROTATE_NOTIFY, content),
                            now,
                        )
                        .map_err(|error| (roster.alias.clone(), Err(error)))?;
                    sealed.push(sealed_event(roster, &message));
                }
                // The plaintext ends here, on the member's thread.
                drop(notify);
                Ok(sealed)
            })
            .await
            .map_err(|_| AudienceError::Member("member.gone"))?;
        sealed.map_err(
            |(alias, why): (String, Result<&'static str, SealError>)| match why {
                Ok(reason) => AudienceError::NotYet {
                    retry_at: self.now().plus(SHORTLY),
                    alias,
                    reason,
                },
                Err(error) => self.not_sealable(&alias, &error),
            },
        )
    }

    async fn publish(&self, event: &OutboxDoc) -> Result<(), DeliveryError> {
        if !outbox::is_stored(self.relay(), &event.event_id).await? {
            self.still_meant_for(event).await?;
        }
        outbox::publish(self.relay(), event).await
    }

    async fn is_published(&self, event_id: &str) -> Result<bool, DeliveryError> {
        outbox::is_stored(self.relay(), event_id).await
    }

    async fn announce(&self, alias: &str, notify: &ServiceNotify) -> Result<(), DeliveryError> {
        let away = |_| DeliveryError::Away("store.unavailable");
        let groups = self.store().groups().await.map_err(away)?;
        let group = groups
            .into_iter()
            .find(|group| group.alias == alias && group.status == GroupState::Active);
        let id = group
            .and_then(|group| group.mls_group_id)
            .ok_or(DeliveryError::Group("group.not_served"))?;
        if let Some(client) = &notify.client_id {
            let client = self.store().client(client).await.map_err(away)?;
            self.may_hear(client.as_ref(), alias, &id).await?;
        }
        let json = serde_json::to_string(notify)
            .map_err(|_| DeliveryError::Refused("notify.malformed"))?;
        let now = self.now();
        let sealed = self
            .member()
            .call(move |member| {
                let payload = payload(kinds::SERVICE_NOTIFY, Zeroizing::new(json));
                member.seal(&id, payload, now)
            })
            .await
            .map_err(|_| DeliveryError::Away("member.gone"))?;
        match sealed {
            Ok(message) => outbox::send(self.relay(), message.event).await,
            Err(error) => Err(undelivered(self.not_sealable(alias, &error))),
        }
    }

    async fn withdraw(&self, event_ids: &[String]) -> Result<(), DeliveryError> {
        outbox::withdraw(self.relay(), event_ids).await
    }
}

fn undelivered(error: AudienceError) -> DeliveryError {
    match error {
        AudienceError::Unfit { alias: _, reason } => DeliveryError::Group(reason),
        AudienceError::NotYet { reason, .. } | AudienceError::Member(reason) => {
            DeliveryError::Away(reason)
        }
        AudienceError::NoGroup => DeliveryError::Group("client.no_admin_group"),
        AudienceError::Store(_) => DeliveryError::Away("store.unavailable"),
    }
}

fn payload(kind: u16, content: Zeroizing<String>) -> Payload {
    Payload {
        kind: Kind::Custom(kind),
        tags: Vec::new(),
        content,
    }
}

fn sealed_event(roster: Roster, message: &SealedMessage) -> SealedEvent {
    SealedEvent {
        alias: roster.alias,
        event_id: message.event.id.to_hex(),
        event_json: message.event.as_json(),
        epoch: message.epoch,
        roster_hash: roster.hash,
    }
}

/// A leaf in admission's terms.
pub(super) fn leaf(leaf: &MlsLeaf) -> Leaf {
    Leaf {
        npub: npub(&leaf.npub),
        signature_key: leaf.signature_key.as_bytes().to_vec(),
    }
}
