//! Joining a group: by Welcome, from a welcomer whom the operator named for it, and in no other way.
//!
//! What must always hold: a name or an id inside the group binds nothing, the registry does; a Welcome for a group that is served already
//! changes nothing and suspends that group; after joining, the Welcome's event is deleted from the relay and our leaf is renewed before anything
//! is sealed (architecture.md, "What the relay must not be able to decrypt afterwards").

use keyturn_mls::{Decision, Invitation, Joined, NostrGroupId, Receipt, WelcomeOutcome};
use keyturn_proto::{MlsGroupId, Npub, kinds};
use keyturn_store::documents::{AdminGroupDoc, GroupState};
use keyturn_store::store::StoreError;
use nostr::Event;

use super::outbox;
use super::port::{By, Scan};
use super::service_member::{ServiceError, ServiceMember, failed, is_bound, npub};
use crate::crash;
use crate::metrics as names;
use crate::rotation::audit::Entry;

/// Instances that join at once bind one after the other; each loser looks again.
const BIND_ATTEMPTS: u32 = 5;
/// Events read at once.
const PAGE: usize = 500;

/// What the registry says about an invitation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Join, under this alias.
    Join(String),
    /// Do not join.
    Refuse(&'static str),
    /// Do not join, and stop serving this alias.
    Suspend(String, &'static str),
}

/// Judges an invitation by the registry alone.
pub(super) fn judge(
    groups: &[AdminGroupDoc],
    welcomer: Npub,
    id: &MlsGroupId,
    address: &NostrGroupId,
    served: bool,
) -> Verdict {
    let address = address.to_hex();
    if let Some(bound) = groups.iter().find(|group| is_bound(group, id)) {
        let suspend = |reason| Verdict::Suspend(bound.alias.clone(), reason);
        let same_address = bound
            .nostr_group_id
            .as_ref()
            .is_none_or(|known| *known == address);
        return match (bound.welcomers.contains(&welcomer), served, same_address) {
            (false, _, _) => suspend("welcome.by_the_wrong_person"),
            (true, true, _) => suspend("welcome.for_a_served_group"),
            (true, false, false) => suspend("group.address_changed"),
            // The operator bound it beforehand, or our state was lost and we come back as a new leaf.
            (true, false, true) => Verdict::Join(bound.alias.clone()),
        };
    }
    if served {
        return Verdict::Refuse("welcome.for_an_unbound_group");
    }
    let mut open = groups.iter().filter(|group| {
        group.mls_group_id.is_none()
            && group.welcomers.contains(&welcomer)
            && group
                .nostr_group_id
                .as_ref()
                .is_none_or(|known| *known == address)
    });
    match (open.next(), open.next()) {
        (Some(only), None) => Verdict::Join(only.alias.clone()),
        (Some(_), Some(_)) => Verdict::Refuse("welcome.ambiguous"),
        (None, _) => Verdict::Refuse("welcome.not_expected"),
    }
}

impl ServiceMember {
    /// Takes in a gift wrap. One that is no Welcome for us is dropped.
    pub(super) async fn gift_wrap(&self, event: &Event) -> Result<(), ServiceError> {
        let groups = self.store().groups().await?;
        let now = self.now();
        let wrap = event.clone();
        let (outcome, verdict) = self
            .member()
            .call(move |member| {
                let mut verdict = None;
                let decide = |invitation: &Invitation<'_>| {
                    let judged = judge(
                        &groups,
                        npub(&invitation.welcomer),
                        invitation.mls_group_id,
                        &invitation.nostr_group_id,
                        invitation.served,
                    );
                    let decision = match &judged {
                        Verdict::Join(_) => Decision::Join,
                        Verdict::Refuse(_) | Verdict::Suspend(..) => Decision::Refuse,
                    };
                    verdict = Some(judged);
                    decision
                };
                let outcome = member.open_welcome(&wrap, decide, now);
                (outcome, verdict)
            })
            .await?;
        match outcome {
            Ok(WelcomeOutcome::Joined(joined) | WelcomeOutcome::Duplicate(joined)) => {
                crash::point(crash::Point::AfterWelcome).await;
                self.joined(&joined, event.created_at.as_secs()).await
            }
            Ok(
                WelcomeOutcome::Refused { welcomer, group }
                | WelcomeOutcome::AlreadyServed { welcomer, group },
            ) => {
                let refused = self.welcome_refused(event, npub(&welcomer), &group, verdict);
                refused.await
            }
            Err(error) => {
                // Anybody can send us one of these; our own state is not touched.
                metrics::counter!(names::WELCOMES_INVALID).increment(1);
                tracing::info!(event = %event.id, %error, "not a Welcome that we can use");
                Ok(())
            }
        }
    }

    async fn welcome_refused(
        &self,
        event: &Event,
        welcomer: Npub,
        group: &MlsGroupId,
        verdict: Option<Verdict>,
    ) -> Result<(), ServiceError> {
        let (alias, reason) = match &verdict {
            Some(Verdict::Suspend(alias, reason)) => (Some(alias), *reason),
            Some(Verdict::Refuse(reason)) => (None, *reason),
            Some(Verdict::Join(_)) | None => (None, "welcome.refused"),
        };
        metrics::counter!(names::WELCOMES_REFUSED, "reason" => reason).increment(1);
        let named = alias.cloned().unwrap_or_else(|| group.to_string());
        let entry = Entry::by_admin(self.now(), welcomer, "welcome.refused", reason);
        let entry = entry.group(&named).event(&event.id.to_hex());
        self.audit_junk(entry.done()).await;
        match alias {
            Some(alias) => self.suspend(alias, reason).await,
            None => Ok(()),
        }
    }

    /// After joining, and again after a crash in between: bind, delete what could open it, renew leaf and key package.
    /// Nobody can have spoken to us in the group before `since`.
    async fn joined(&self, joined: &Joined, since: u64) -> Result<(), ServiceError> {
        let Some(info) = &joined.group else {
            return Ok(());
        };
        if !self.bound(joined, &info.nostr_group_id).await? {
            return Ok(());
        }
        self.refresh_served().await?;
        let ids: Vec<String> = joined.delete_events.iter().map(|id| id.to_hex()).collect();
        outbox::withdraw(self.relay(), &ids).await?;
        let address = *info.nostr_group_id.as_bytes();
        self.hear(address, since).await?;
        self.keep_house().await?;
        self.publish_key_package().await?;
        // Once more: what a client sent while nobody here knew the group may have been written behind the first look. The key package was written
        // behind it.
        self.hear(address, since).await
    }

    /// Takes in what was said in a group before its address was known here: others may be faster to join, and a mirror brings their words
    /// together with the Welcome. Without this the service would stay in the epoch that it joined in.
    async fn hear(&self, address: [u8; 32], since: u64) -> Result<(), ServiceError> {
        let mut scan = Scan {
            kinds: vec![kinds::GROUP_EVENT],
            by: By::Groups(vec![address]),
            since: Some(since),
            page: PAGE,
            after: None,
        };
        loop {
            let page = self.relay().scan(scan.clone()).await.map_err(failed)?;
            for event in &page.events {
                let receipt = Receipt::stored(self.now());
                // What lands in the inbox is found there at the next look.
                self.group_event(event, receipt).await?;
            }
            match page.next {
                Some(cursor) => scan.after = Some(cursor),
                None => return Ok(()),
            }
        }
    }

    /// Binds the group to its alias, unless that has happened. `false` if it is not expected any more.
    async fn bound(&self, joined: &Joined, address: &NostrGroupId) -> Result<bool, ServiceError> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            match self.bind(joined, address).await {
                // Another instance got the same Welcome and was faster: then it is bound now.
                Err(ServiceError::Store(StoreError::Conflict { why }))
                    if attempt < BIND_ATTEMPTS =>
                {
                    tracing::info!(why, "the group was bound by somebody else; looking again");
                }
                other => return other,
            }
        }
    }

    async fn bind(&self, joined: &Joined, address: &NostrGroupId) -> Result<bool, ServiceError> {
        let groups = self.store().groups().await?;
        // A suspended one is the operator's business, whatever its address.
        let bound = groups.iter().any(|group| {
            let settled = group.nostr_group_id.is_some() || group.status != GroupState::Active;
            is_bound(group, &joined.id) && settled
        });
        if !bound {
            let welcomer = npub(&joined.welcomer);
            let verdict = judge(&groups, welcomer, &joined.id, address, false);
            let Verdict::Join(alias) = verdict else {
                self.suspend(&joined.id.to_string(), "welcome.no_longer_expected")
                    .await?;
                return Ok(false);
            };
            let group = groups.into_iter().find(|group| group.alias == alias);
            if let Some(group) = group {
                let now = self.now();
                let audit = Entry::by_admin(now, welcomer, "group.joined", "welcome");
                let group = AdminGroupDoc {
                    mls_group_id: Some(joined.id.clone()),
                    nostr_group_id: Some(address.to_hex()),
                    ..group
                };
                self.store()
                    .put_group(group, audit.group(&alias).done())
                    .await?;
                crash::point(crash::Point::AfterBind).await;
            }
        }
        Ok(true)
    }

    /// Publishes a fresh key package, both kinds: at start, and whenever one was used.
    ///
    /// # Errors
    /// [`ServiceError`].
    pub async fn publish_key_package(&self) -> Result<(), ServiceError> {
        let relays = self.relays().to_vec();
        let now = self.now();
        let events = self
            .member()
            .call(move |member| member.publish_key_package(&relays, now))
            .await?
            .map_err(failed)?;
        outbox::send(self.relay(), events.addressable).await?;
        outbox::send(self.relay(), events.legacy).await?;
        Ok(())
    }
}
