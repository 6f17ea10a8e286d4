//! What a device reports about the secret_id that it was sent.
//!
//! What must always hold: a result that counts for less than it says (a wrong proof), or for nothing though it is about something that is or was there, is in the audit
//! trail with the nonce and the accessor, and nobody is told: whoever sent it would learn what we know.

use std::sync::Arc;

use keyturn_proto::device::{AuthResult, DeviceError, DeviceId, DeviceNonce, IdentityKey, proof};
use keyturn_store::devices::{Answer, Change, DeviceDoc, Held, UsedNonce};
use keyturn_store::store::StoreError;

use super::flow::{Devices, Handled, refusal};
use super::intake::Refused;
use super::outgoing;
use super::settings::jittered;
use crate::crash::{self, Point};
use crate::metrics as names;

impl Devices {
    /// Takes a result in; fails when the store does not, and may then be called again ([`super::outlast`]).
    pub(super) async fn result(
        self: &Arc<Self>,
        doc: DeviceDoc,
        result: AuthResult,
        identity: Option<IdentityKey>,
    ) -> Result<Result<Handled, Refused>, StoreError> {
        let ok = result.is_ok();
        let AuthResult {
            nonce,
            proof,
            reason,
            ..
        } = result;
        let silent = |device: &DeviceId, reason| Refused {
            known: true,
            answered: false,
            ..refusal(device, &nonce, reason, DeviceError::InvalidRequest)
        };
        // What the store says of a repeat or of a result that comes too late does not say what was wrong with it.
        let before = issued_for(&doc, &nonce).cloned();
        let nonces = doc.nonces;
        let device = doc.device_id;
        let kept = doc.options.sealing.is_some_and(|sealing| sealing.retain);
        let next_ping = self.now().plus(jittered(self.settings().interval, 0.1));
        let change = Change::Result {
            nonce: nonce.clone(),
            ok,
            proof: proof.clone(),
            reason,
            identity,
            next_ping,
        };
        let wrong = |held: &Held| {
            let proven = |text: &String| proof::is_proven(text, &held.expected_proof);
            ok && proof.as_ref().is_some_and(|text| !proven(text))
        };
        let mut newest = None;
        let (word, outcome) = match self.change(&device, change).await? {
            Answer::Confirmed { proven, doc } => {
                crash::point(Point::AfterResult).await;
                self.tend_soon(&doc);
                // It counts as an ok without proof; but somebody may be guessing.
                if let Some(held) = issued_for(&doc, &nonce).filter(|held| wrong(held)) {
                    let refused = Refused {
                        accessor: Some(held.accessor.clone()),
                        ..silent(&device, "proof.wrong")
                    };
                    self.refuse(&refused, None).await;
                }
                let word = if proven { "proven" } else { "unproven" };
                newest = Some(doc);
                (word, Ok(Handled::Reported))
            }
            Answer::Done(doc) => {
                self.tend_soon(&doc);
                newest = Some(doc);
                ("failed", Ok(Handled::Reported))
            }
            Answer::Repeat => match &before {
                Some(held) if wrong(held) => ("repeat", Err(silent(&device, "proof.wrong"))),
                // What works does not stop working because somebody says so later.
                _ if !ok => ("repeat", Err(silent(&device, "result.contradicts"))),
                _ => ("repeat", Ok(Handled::Ignored)),
            },
            Answer::KeyChanged => return Ok(Err(silent(&device, "signature.key_changed"))),
            _ if before.as_ref().is_some_and(wrong) => {
                ("stale", Err(silent(&device, "proof.wrong")))
            }
            // Nothing to do, and nothing to tell.
            _ if is_among(&nonces, &nonce) => ("stale", Err(silent(&device, "result.stale"))),
            _ => ("stale", Err(silent(&device, "result.unasked"))),
        };
        metrics::counter!(names::DEVICE_RESULTS, "result" => word).increment(1);
        // What the broker keeps has done its work, unless the device has asked again since: then it may be the next command already. A request that comes
        // from here on is handled after this, and its command stands behind this in the same queue.
        if kept && newest.is_some_and(|doc| doc.outstanding.is_none()) {
            // Lost, it stays until its expiry, as it would have anyway.
            let _ = self.parts.outlet.offer(outgoing::forget(&device));
        }
        Ok(outcome)
    }
}

/// What was issued for this nonce, as far as the document still knows it.
pub(super) fn issued_for<'a>(doc: &'a DeviceDoc, nonce: &DeviceNonce) -> Option<&'a Held> {
    doc.held().find(|held| held.nonce == *nonce)
}

/// Whether the device has asked under this nonce, as far as the document still knows it.
fn is_among(nonces: &[UsedNonce], nonce: &DeviceNonce) -> bool {
    let hash = nonce.hash();
    nonces.iter().any(|used| hash.starts_with(&used.hash))
}
