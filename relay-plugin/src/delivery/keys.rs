//! Whose MLS key is whose: learnt from what an npub has signed, never from a credential.
//!
//! A key package event (443, 30443) carries the key under the npub's signature; a binding names one for a key that no key package carries. Only
//! enrolled admins have keys recorded. What the relay stores is searched again when a leaf turns up whose key nobody has recorded, because an
//! admin may be enrolled after having published.

use keyturn_mls::{verify_binding, verify_key_package};
use keyturn_proto::{Npub, kinds};
use keyturn_store::documents::ProvenKey;
use nostr::{Event, PublicKey};

use super::port::{By, Scan};
use super::service_member::{ServiceError, ServiceMember, npub};
use crate::admission::Leaf;
use crate::rotation::audit::Entry;

/// How many signed events of one author are searched for a key.
const SEARCH: usize = 200;

impl ServiceMember {
    /// Records the key that a signed event proves, if it proves one for an enrolled admin. A forged event proves nothing and is not an error.
    pub(super) async fn learn(&self, event: &Event) -> Result<(), ServiceError> {
        let proven = match event.kind.as_u16() {
            kinds::KEY_PACKAGE | kinds::KEY_PACKAGE_LEGACY => verify_key_package(event, self.now())
                .map(|verified| (npub(&verified.npub()), verified.signature_key()))
                .ok(),
            _ => verify_binding(event)
                .map(|binding| (npub(&binding.npub), binding.signature_key))
                .ok(),
        };
        let Some((who, key)) = proven else {
            tracing::debug!(event = %event.id, "proves no key");
            return Ok(());
        };
        let Some(admin) = self.store().admin(&who).await? else {
            return Ok(());
        };
        let key = key.to_hex();
        if !admin.active || admin.signature_keys.iter().any(|known| known.key == key) {
            return Ok(());
        }
        let now = self.now();
        let proof_event = event.id.to_hex();
        let audit = Entry::by_admin(now, who, "admin.key_proven", "signed_event");
        let audit = audit.event(&proof_event).done();
        let key = ProvenKey {
            key,
            proof_event,
            at: now,
        };
        self.store().prove_key(&who, key, audit).await?;
        Ok(())
    }

    /// Looks among the stored events of the owners of `leaves` for what proves their keys. Failing to find it leaves them unproven.
    pub(super) async fn prove_leaves(&self, leaves: &[Leaf]) {
        for leaf in leaves {
            if let Err(error) = self.prove_leaf(leaf.npub).await {
                tracing::warn!(leaf = %leaf.npub, %error, "its signed key packages could not be searched");
            }
        }
    }

    /// Before a sender is judged: who was enrolled after having published a key package is enrolled with a key that nobody has recorded yet.
    pub(crate) async fn prove_sender(&self, sender: Npub, signature_key: &[u8]) {
        let unproven = match self.store().admin(&sender).await {
            Ok(Some(admin)) => {
                let key = hex::encode(signature_key);
                admin.active && !admin.signature_keys.iter().any(|known| known.key == key)
            }
            // Not enrolled, or the store is away: admission finds the same and says so.
            Ok(None) | Err(_) => false,
        };
        if unproven && let Err(error) = self.prove_leaf(sender).await {
            tracing::warn!(%sender, %error, "its signed key packages could not be searched");
        }
    }

    async fn prove_leaf(&self, who: Npub) -> Result<(), ServiceError> {
        let Ok(author) = PublicKey::from_slice(who.as_bytes()) else {
            return Ok(());
        };
        let scan = Scan {
            kinds: vec![
                kinds::KEY_PACKAGE,
                kinds::KEY_PACKAGE_LEGACY,
                keyturn_mls::binding::KIND_BINDING.as_u16(),
            ],
            by: By::Authors(vec![author]),
            since: None,
            page: SEARCH,
            after: None,
        };
        let page = self
            .relay()
            .scan(scan)
            .await
            .map_err(super::service_member::failed)?;
        for event in &page.events {
            self.learn(event).await?;
        }
        Ok(())
    }
}
