//! Commits: following those of others, and renewing our own leaf.
//!
//! What must always hold: a commit of ours is merged only after the relay has stored it; a commit that brings in somebody whom the registry does
//! not know, or that changes the group's address, suspends the group until the operator has approved the roster.

use keyturn_mls::{CommitApplied, Freeze, StagedCommit};
use keyturn_store::documents::{AdminDoc, AdminGroupDoc, GroupState};

use super::outbox;
use super::service_member::{ServiceError, ServiceMember, alarm, failed, is_bound, npub};
use crate::admission::Leaf;
use crate::crash;
use crate::rotation::audit::Entry;
use crate::rotation::ports::DeliveryError;

impl ServiceMember {
    /// Judges a commit that was followed.
    pub(super) async fn commit_followed(&self, commit: &CommitApplied) -> Result<(), ServiceError> {
        let alias = self.alias(&commit.group).await?;
        let event = commit.event_id.to_hex();
        let audit = |name: &str, reason: &str| {
            let entry = Entry::by_admin(self.now(), npub(&commit.facts.committer), name, reason);
            entry.group(&alias).event(&event).done()
        };
        if commit.evicted {
            self.audit(audit("group.left", "commit.removed_us")).await;
            self.suspend(&alias, "service.removed").await?;
            return self.refresh_served().await;
        }
        if commit.address_changed().is_some() {
            self.audit(audit("group.address_changed", "commit")).await;
            self.judge_addresses().await?;
        }
        let joined = commit.facts.added.iter().chain(&commit.facts.rekeyed);
        for (who, key) in joined {
            let leaf = Leaf {
                npub: npub(who),
                signature_key: key.as_bytes().to_vec(),
            };
            // Also a leaf under our own npub is a stranger's, unless we made the commit.
            if commit.own {
                continue;
            }
            if self.is_sibling(&leaf.npub) {
                // Its key package may still be on its way. Until its key is proven nothing is sealed; there is nothing to suspend.
                let proven = self.is_proven_sibling(&leaf).await;
                let reason = if proven { "proven" } else { "not_proven_yet" };
                let entry = Entry::by_admin(self.now(), leaf.npub, "roster.sibling", reason);
                self.audit(entry.group(&alias).event(&event).done()).await;
                continue;
            }
            if let Some(reason) = self.stranger(&leaf).await? {
                let entry = Entry::by_admin(self.now(), leaf.npub, "roster.stranger", reason);
                self.audit(entry.group(&alias).event(&event).done()).await;
                self.suspend(&alias, reason).await?;
            }
        }
        if !commit.own {
            self.audit(audit("group.commit_followed", "")).await;
        }
        Ok(())
    }

    /// A group whose address changed is frozen by the member. Here the registry follows: first the group is suspended and its address forgotten, in
    /// one write; an operator who makes it active again has thereby approved the new address. Goes by what is recorded, so that a crash between
    /// the commit and this leaves nothing open.
    async fn judge_addresses(&self) -> Result<(), ServiceError> {
        let groups = self.member().call(|member| member.groups()).await?;
        let changed = groups.map_err(failed)?.into_iter();
        let mut changed = changed
            .filter(|group| group.frozen == Some(Freeze::AddressChanged))
            .peekable();
        if changed.peek().is_none() {
            return Ok(());
        }
        let documents = self.store().groups().await?;
        for group in changed {
            let bound = documents.iter().find(|doc| is_bound(doc, &group.id));
            let Some(document) = bound.filter(|doc| doc.status == GroupState::Active) else {
                continue;
            };
            let now = self.now();
            let mut document: AdminGroupDoc = document.clone();
            let alias = document.alias.clone();
            let address = group.data.nostr_group_id.to_hex();
            if document.nostr_group_id.as_ref() == Some(&address) {
                // Approved, and recorded by another instance.
                let id = group.id.clone();
                let approved = self.member().call(move |member| member.approve(&id));
                approved.await?.map_err(failed)?;
                continue;
            }
            let event = if document.nostr_group_id.is_some() {
                alarm(&alias, "group.address_changed");
                document.nostr_group_id = None;
                document.status = GroupState::Suspended {
                    reason: "group.address_changed".to_owned(),
                };
                "group.suspended"
            } else {
                let id = group.id.clone();
                let approved = self.member().call(move |member| member.approve(&id));
                approved.await?.map_err(failed)?;
                document.nostr_group_id = Some(group.data.nostr_group_id.to_hex());
                "group.readdressed"
            };
            let entry = Entry::by_relay(now, event, "group.address_changed").group(&alias);
            self.store().put_group(document, entry.done()).await?;
        }
        Ok(())
    }

    /// Why a new leaf is not one of ours, if it is not.
    async fn stranger(&self, leaf: &Leaf) -> Result<Option<&'static str>, ServiceError> {
        let known = |admin: &AdminDoc| {
            let key = hex::encode(&leaf.signature_key);
            admin.signature_keys.iter().any(|proven| proven.key == key)
        };
        let Some(admin) = self.store().admin(&leaf.npub).await? else {
            return Ok(Some("admin.not_enrolled"));
        };
        if !admin.active {
            return Ok(Some("admin.revoked"));
        }
        if known(&admin) {
            return Ok(None);
        }
        self.prove_leaves(std::slice::from_ref(leaf)).await;
        let admin = self.store().admin(&leaf.npub).await?;
        Ok(match admin {
            Some(admin) if known(&admin) => None,
            _ => Some("admin.key_not_proven"),
        })
    }

    /// Everything that needs doing now and then: settling epochs, finishing our own commits, renewing leaves we joined with.
    ///
    /// # Errors
    /// [`ServiceError`]; what is left is done the next time.
    pub async fn keep_house(&self) -> Result<(), ServiceError> {
        self.sum_up_refusals(false).await;
        let now = self.now();
        self.member()
            .call(move |member| member.settle(now))
            .await?
            .map_err(failed)?;
        self.judge_addresses().await?;
        self.finish_commits().await?;
        self.renew_leaves().await?;
        self.refresh_served().await
    }

    /// Commits that were staged and whose fate we do not know: the relay does.
    async fn finish_commits(&self) -> Result<(), ServiceError> {
        let pending = self
            .member()
            .call(|member| member.pending_commits())
            .await?;
        for staged in pending.map_err(failed)? {
            let id = staged.event.id;
            if outbox::is_stored(self.relay(), &id.to_hex()).await? {
                self.merge(&staged).await?;
                continue;
            }
            let now = self.now();
            let renewed = self
                .member()
                .call(move |member| member.renew_pending(id, now))
                .await?;
            self.publish_commit(renewed.map_err(failed)?).await?;
        }
        Ok(())
    }

    /// A leaf we joined with is renewed at once, so that the key package's private key can open nothing that is sealed later.
    async fn renew_leaves(&self) -> Result<(), ServiceError> {
        let now = self.now();
        let due = self.member().call(move |member| {
            let mut due = Vec::new();
            for group in member.groups()? {
                let waits = member.settles_at(&group.id)?.is_some();
                let stopped = group.evicted || group.frozen.is_some();
                if !stopped && !waits && member.needs_self_update(&group.id)? {
                    due.push(group.id);
                }
            }
            Ok::<_, keyturn_mls::error::StoreError>(due)
        });
        for group in due.await?.map_err(failed)? {
            let staged = self
                .member()
                .call(move |member| member.self_update(&group, now))
                .await?;
            match staged {
                Ok(staged) => self.publish_commit(staged).await?,
                Err(error) => tracing::warn!(%error, "no self-update now"),
            }
        }
        Ok(())
    }

    async fn publish_commit(&self, staged: StagedCommit) -> Result<(), ServiceError> {
        crash::point(crash::Point::AfterLeafStaged).await;
        match outbox::send(self.relay(), staged.event.clone()).await {
            Ok(()) => {
                crash::point(crash::Point::AfterLeafPublished).await;
                self.merge(&staged).await
            }
            Err(DeliveryError::Refused(reason)) => {
                let alias = self.alias(&staged.group).await?;
                alarm(&alias, reason);
                let id = staged.event.id;
                let rejected = self.member().call(move |member| member.commit_rejected(id));
                rejected.await?.map_err(failed)
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn merge(&self, staged: &StagedCommit) -> Result<(), ServiceError> {
        let id = staged.event.id;
        let now = self.now();
        let merged = self
            .member()
            .call(move |member| member.commit_published(id, now))
            .await?;
        merged.map(drop).map_err(failed)
    }
}
