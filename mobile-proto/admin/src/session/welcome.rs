//! Joining: a Welcome from somebody trusted, and what has to follow it.
//!
//! What must hold: nobody is drawn into a group by a stranger; the key package that was used is gone from here and asked to be gone from the
//! relay, and our leaf is renewed, before anything is sent.

use std::collections::BTreeSet;

use keyturn_mls::error::WelcomeError;
use keyturn_mls::{Decision, Invitation, Joined, WelcomeOutcome};
use keyturn_proto::Npub;
use nostr::nips::nip09::EventDeletionRequest;
use nostr::{Event, EventBuilder};
use tokio::time::Instant;

use super::update::WaitingWelcome;
use super::{AdminSession, GroupError, SyncError, Update, npub, public_key};
use crate::transport::RelayError;

/// A Welcome that was not followed.
pub(super) struct HeldWelcome {
    pub(super) event: Event,
    pub(super) info: WaitingWelcome,
}

impl AdminSession {
    /// The Welcomes that wait for [`Self::join`].
    #[must_use]
    pub fn waiting_welcomes(&self) -> Vec<WaitingWelcome> {
        self.welcomes.iter().map(|held| held.info.clone()).collect()
    }

    /// Follows the Welcomes of `from` that wait.
    ///
    /// # Errors
    /// [`GroupError::NoWelcome`], and what joining reports.
    pub async fn join(&mut self, from: &Npub, deadline: Instant) -> Result<(), GroupError> {
        let from_key = public_key(from);
        let (chosen, rest): (Vec<_>, Vec<_>) = std::mem::take(&mut self.welcomes)
            .into_iter()
            .partition(|held| held.info.from == *from);
        self.welcomes = rest;
        if chosen.is_empty() {
            return Err(GroupError::NoWelcome(*from));
        }
        self.welcomers.push(from_key);
        for held in chosen {
            self.follow_welcome(&held.event)?;
        }
        self.sync(deadline).await?;
        Ok(())
    }

    /// Opens a gift wrap. Only a trusted welcomer gets us in; another one's Welcome is announced and kept.
    pub(super) fn follow_welcome(&mut self, wrap: &Event) -> Result<Option<Joined>, SyncError> {
        let trusted: BTreeSet<_> = self.welcomers.iter().copied().collect();
        let mut name = String::new();
        let decide = |invitation: &Invitation<'_>| {
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
    pub(super) async fn settle_in(
        &mut self,
        joined: Joined,
        deadline: Instant,
    ) -> Result<(), SyncError> {
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
}
