//! What a device reports about the secret_id that it was sent.
//!
//! What must always hold: a result that counts for less than it says (a wrong proof), or for nothing though it is about something that is or was there, is in the audit
//! trail with the nonce and the accessor, and nobody is told: whoever sent it would learn what we know.

use std::sync::Arc;

use keyturn_proto::device::{AuthResult, DeviceError, DeviceId, DeviceNonce, IdentityKey, proof};
use keyturn_store::devices::{Answer, Change, DeviceDoc, Held, UsedNonce};

use super::flow::{Devices, Handled, refusal};
use super::intake::Refused;
use super::outgoing;
use super::settings::jittered;
use crate::crash::{self, Point};
use crate::metrics as names;

impl Devices {
    /// Takes a result in.
    pub(super) async fn result(
        self: &Arc<Self>,
        doc: DeviceDoc,
        result: AuthResult,
        identity: Option<IdentityKey>,
    ) -> Result<Handled, Refused> {
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
        let (word, outcome) = match self.change(&device, change).await {
            Ok(Answer::Confirmed { proven, doc }) => {
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
                (word, Ok(Handled::Reported))
            }
            Ok(Answer::Done(doc)) => {
                self.tend_soon(&doc);
                ("failed", Ok(Handled::Reported))
            }
            Ok(Answer::Repeat) => match before {
                Some(held) if wrong(&held) => ("repeat", Err(silent(&device, "proof.wrong"))),
                // What works does not stop working because somebody says so later.
                _ if !ok => ("repeat", Err(silent(&device, "result.contradicts"))),
                _ => ("repeat", Ok(Handled::Ignored)),
            },
            Ok(Answer::KeyChanged) => return Err(silent(&device, "signature.key_changed")),
            // Nothing to do, and nothing to tell.
            Ok(_) if is_among(&nonces, &nonce) => ("stale", Err(silent(&device, "result.stale"))),
            Ok(_) => ("stale", Err(silent(&device, "result.unasked"))),
            Err(error) => {
                tracing::warn!(%device, %error, "a device's result could not be recorded");
                ("store", Ok(Handled::Refused("store")))
            }
        };
        metrics::counter!(names::DEVICE_RESULTS, "result" => word).increment(1);
        let handled = outcome?;
        if kept && handled == Handled::Reported {
            // Lost, it stays until its expiry, as it would have anyway.
            let forget = outgoing::forget(&device, self.settings().answer_expiry);
            let _ = self.parts.outlet.offer(forget);
        }
        Ok(handled)
    }
}

/// What was issued for this nonce, as far as the document still knows it.
pub(super) fn issued_for<'a>(doc: &'a DeviceDoc, nonce: &DeviceNonce) -> Option<&'a Held> {
    let issue = doc.outstanding.as_ref();
    let held = issue.and_then(|issue| issue.held.as_ref());
    let all = held.into_iter().chain(&doc.current).chain(&doc.earlier);
    all.into_iter().find(|held| held.nonce == *nonce)
}

/// Whether the device has asked under this nonce, as far as the document still knows it.
fn is_among(nonces: &[UsedNonce], nonce: &DeviceNonce) -> bool {
    let hash = nonce.hash();
    nonces.iter().any(|used| hash.starts_with(&used.hash))
}
