//! Who speaks for the service: an npub from the configuration, with an MLS key that this npub has vouched for.
//!
//! A leaf's credential is a claim: whoever may add members can add a leaf that calls itself the service. What must hold: a secret or a report
//! counts only if the key that signed it stands in a key package event, or a binding, that the service's npub has signed. A message under
//! a key not known yet is left closed until that was looked up.

use std::collections::BTreeSet;

use keyturn_mls::binding::KIND_BINDING;
use keyturn_mls::error::StoreError;
use keyturn_mls::{
    AppMessage, Inbound, MlsGroupId, SignatureKey, verify_binding, verify_key_package,
};
use keyturn_proto::kinds;
use nostr::{EventId, Filter, Kind, PublicKey};
use tokio::time::Instant;

use super::update::{Sender, is_unvouched, judge};
use super::{AdminSession, SyncError};

/// The keys that are proven, in every group or in one.
#[derive(Default)]
pub(super) struct Vouched {
    everywhere: BTreeSet<(PublicKey, SignatureKey)>,
    in_group: BTreeSet<(MlsGroupId, PublicKey, SignatureKey)>,
}

impl Vouched {
    fn covers(&self, message: &AppMessage) -> bool {
        let (npub, key) = (message.sender, message.signature_key);
        self.everywhere.contains(&(npub, key))
            || self.in_group.contains(&(message.group.clone(), npub, key))
    }
}

impl AdminSession {
    /// Looks up what the services' npubs have signed.
    pub(super) async fn look_up_services(&mut self, deadline: Instant) -> Result<(), SyncError> {
        if self.services.is_empty() {
            return Ok(());
        }
        let filter = Filter::new()
            .kinds([
                Kind::from(kinds::KEY_PACKAGE),
                Kind::from(kinds::KEY_PACKAGE_LEGACY),
                KIND_BINDING,
            ])
            .authors(self.services.iter().copied());
        let events = self.relay.fetch_all(&filter, self.step(deadline)).await?;
        let now = self.clock.now();
        for event in &events {
            if event.kind == KIND_BINDING {
                if let Ok(binding) = verify_binding(event) {
                    self.vouched.in_group.insert((
                        binding.group,
                        binding.npub,
                        binding.signature_key,
                    ));
                }
            } else if let Ok(package) = verify_key_package(event, now) {
                self.vouched
                    .everywhere
                    .insert((package.npub(), package.signature_key()));
            }
        }
        Ok(())
    }

    /// Judges once more what was signed by a key nobody had vouched for, after looking again.
    pub(super) async fn judge_unvouched(&mut self, deadline: Instant) -> Result<(), SyncError> {
        if self.unvouched.is_empty() {
            return Ok(());
        }
        self.look_up_services(deadline).await?;
        for event in std::mem::take(&mut self.unvouched) {
            self.open_again(event)?;
        }
        Ok(())
    }

    /// Messages left closed for that by an earlier run.
    pub(super) fn left_unvouched(&self) -> Result<Vec<EventId>, StoreError> {
        let mut left = Vec::new();
        for group in self.member.groups()? {
            let deferred = self.member.deferred(&group.id)?;
            left.extend(
                deferred
                    .iter()
                    .filter(|message| is_unvouched(&message.label))
                    .map(|message| message.event_id),
            );
        }
        Ok(left)
    }

    fn open_again(&mut self, event: EventId) -> Result<(), SyncError> {
        let mut said = Vec::new();
        let (services, vouched) = (&self.services, &self.vouched);
        let mut decide = |message: &AppMessage| {
            let sender = match sender(message, services, vouched) {
                // Looked up, and still nobody vouches.
                Sender::Unvouched => Sender::Other,
                known => known,
            };
            let (disposition, update) = judge(message, sender);
            said.extend(update);
            disposition
        };
        let inbound = self.member.receive_deferred(event, &mut decide)?;
        self.updates.extend(said);
        if let Some(Inbound::Deferred(message)) = inbound {
            self.announce_deferred(&message);
        }
        Ok(())
    }
}

/// What the sender of a message is to us.
pub(super) fn sender(message: &AppMessage, services: &[PublicKey], vouched: &Vouched) -> Sender {
    if !message.still_member || !services.contains(&message.sender) {
        Sender::Other
    } else if vouched.covers(message) {
        Sender::Service
    } else {
        Sender::Unvouched
    }
}
