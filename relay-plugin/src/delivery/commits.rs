//! Commits: following those of others, and renewing our own leaf.
//!
//! What must always hold: a commit of ours is merged only after the relay has stored it; a commit that brings in somebody whom the registry does
//! not know, or that changes the group's address, suspends the group until the operator has approved the roster.

use keyturn_mls::{CommitApplied, StagedCommit};
use keyturn_store::documents::AdminDoc;

use super::outbox;
use super::service_member::{ServiceError, ServiceMember, alarm, failed, npub};
use crate::admission::Leaf;
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
            self.suspend(&alias, "group.address_changed").await?;
        }
        let joined = commit.facts.added.iter().chain(&commit.facts.rekeyed);
        for (who, key) in joined {
            let leaf = Leaf {
                npub: npub(who),
                signature_key: key.as_bytes().to_vec(),
            };
            if leaf.npub == self.identity() {
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
        let now = self.now();
        self.member()
            .call(move |member| member.settle(now))
            .await?
            .map_err(failed)?;
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
        match outbox::send(self.relay(), staged.event.clone()).await {
            Ok(()) => self.merge(&staged).await,
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
