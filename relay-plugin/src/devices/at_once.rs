//! The short way: where secret_ids lie in the store of the devices (the embedded issuer with a key of this process), a request is recorded, issued and answered
//! with one commit. No queue, no worker, and nothing to look for after a crash: the intent and what came of it are there together, or neither is.
//!
//! The device is told before the commit is on the disk, and the broker afterwards. A power cut in between takes the secret_id with it, everywhere; the broker
//! delivers the request again, and the device is told of another one. A disk that fails in between ends all writing (`sqlite/durable.rs`): nothing that the
//! device does with its secret_id is recorded before the relay has been started anew, and then either both are there or neither.
//!
//! Whatever is not plain sailing goes the long way ([`super::queue`] → [`super::work`]), which has a word for every refusal.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use keyturn_proto::device::{AuthRequest, DeviceError, DeviceId, IdentityKey, proof};
use keyturn_store::approle::SecretIdDoc;
use keyturn_store::devices::{Answer, Change, DeviceDoc, Minted};
use keyturn_store::store::StoreError;

use super::flow::{Devices, Handled, SOON};
use super::issuer::{IssueRequest, Issued, NonceHash};
use super::limits::Voice;
use super::outgoing;
use crate::metrics as names;

impl Devices {
    /// Answers a request that was verified under `identity` in one go; `None` when it has to go the long way, and nothing has happened.
    pub(super) async fn at_once(
        self: &Arc<Self>,
        device: &DeviceId,
        request: &AuthRequest,
        identity: Option<IdentityKey>,
        arrived: Instant,
    ) -> Option<Handled> {
        // Nothing is made that could not be handed over: requests wait elsewhere.
        if !self.parts.issuer.makes_at_once() || !self.parts.outlet.has_room() {
            return None;
        }
        let AuthRequest { nonce, reason, .. } = request;
        // Without an identity it bore no signature that could have been looked at.
        let voice = match identity {
            Some(_) => Voice::Verified,
            None => Voice::Unsigned,
        };
        let ask = Change::Ask {
            nonce: nonce.clone(),
            reason: reason.clone(),
            identity,
            owner: self.settings().owner.clone(),
            issuer: self.parts.issuer.name().to_owned(),
            limits: self.settings().limits(),
        };
        // The last one made is the one that was stored.
        let made: Arc<Mutex<Option<Issued>>> = Arc::default();
        let mint = {
            let (devices, made, hash) = (
                Arc::clone(self),
                Arc::clone(&made),
                NonceHash::of(nonce.as_str()),
            );
            let nonce = nonce.clone();
            move |doc: &DeviceDoc| {
                let (issued, secret_id) = devices.make(doc, &hash)?;
                let expected_proof = proof::expected(issued.credential.text().expose(), &nonce);
                *made.lock().unwrap_or_else(PoisonError::into_inner) = Some(issued);
                Some(Minted {
                    secret_id,
                    expected_proof,
                })
            }
        };
        let confirm = self.settings().confirm;
        let began = Instant::now();
        let committed = self
            .parts
            .devices
            .issue_at_once(device, ask, confirm, Box::new(mint), self.now())
            .await;
        let early = match committed {
            Ok(early) => early,
            Err(StoreError::Unknown { .. }) => {
                // What may be recorded is superseded when the device asks again.
                let error = DeviceError::Unavailable;
                self.tell_if_heeded(voice, device, nonce, error, SOON);
                return Some(Handled::Refused("store"));
            }
            Err(_) => return None,
        };
        metrics::histogram!(names::DEVICE_ISSUE_SECONDS).record(began.elapsed().as_secs_f64());
        let doc = match &early.answer {
            Answer::Done(doc) => doc,
            Answer::Repeat => return Some(Handled::Ignored),
            _ => return None,
        };
        let issued = made.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        let expiry = self.settings().answer_expiry;
        match outgoing::command(device, &doc.options, nonce, &issued, expiry) {
            Ok(message) => {
                self.send(message, nonce, doc.attempts, &issued.accessor, arrived)
                    .await;
            }
            Err(error) => {
                tracing::error!(%device, %error, "what was issued cannot be sent");
                self.not_sent(device, nonce, doc.attempts).await;
            }
        }
        // What a newer request has superseded is destroyed without waiting for a sweep.
        self.tend_soon(doc);
        match early.durable().await {
            Ok(()) => Some(Handled::Asked),
            Err(error) => {
                tracing::error!(%device, %nonce, %error, "an issued secret_id may not survive a power cut");
                Some(Handled::Unrecorded)
            }
        }
    }

    fn make(&self, doc: &DeviceDoc, nonce: &NonceHash) -> Option<(Issued, SecretIdDoc)> {
        let settings = self.settings();
        if settings.require_sealed && doc.options.sealing.is_none() {
            return None;
        }
        let role = doc.role.parse().ok()?;
        self.parts.issuer.make_at_once(IssueRequest {
            role: &role,
            device: doc.device_id.as_str(),
            nonce,
            ttl: settings.secret_id_ttl,
            num_uses: settings.secret_id_uses,
            cidrs: &settings.cidrs,
            wrap_ttl: settings.wrap_ttl,
        })
    }
}
