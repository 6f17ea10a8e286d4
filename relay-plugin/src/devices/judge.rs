//! Whether a message counts, and as whose: limits, the allow-list, the keys that the operator asks for, the signature; then the store decides what it changes.
//!
//! What must always hold: nothing is counted as the device's own before it is known to be, and nothing that anybody could say again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use keyturn_proto::device::{
    DeviceError, DeviceNonce, DeviceSignature, IdentityKey, Statement, Status, identity::NotSigned,
};
use keyturn_store::devices::{DeviceDoc, DeviceState};
use keyturn_store::store::StoreError;

use super::flow::{Devices, Handled, SOON, refusal};
use super::intake::{self, Refused};
use super::limits::Voice;
use super::results;

/// Whose a message turned out to be, and what came of it.
type Judged = (Voice, Result<Handled, Refused>);

impl Devices {
    /// Holds a message to the limits, and lets the store judge it: a result until the store has, for nobody would say it again.
    pub(super) async fn look_into(
        self: &Arc<Self>,
        read: &intake::Read,
        arrived: Instant,
    ) -> Result<Handled, (Voice, Refused)> {
        let nonce = match &read.status {
            Status::Request(request) => &request.nonce,
            Status::Result(result) => &result.nonce,
            Status::Other => return Ok(Handled::Ignored),
        };
        let (device, claimed) = (&read.device, Voice::of(&read.status));
        if let Err((reason, wait)) = self.limits.admit(device, claimed) {
            let refused = refusal(device, nonce, reason, DeviceError::RateLimited);
            let wait = Some(Duration::from_secs(wait));
            self.refuse_as(claimed, &refused, wait).await;
            return Ok(Handled::Refused(reason));
        }
        for tries in 0.. {
            let place = self.places.acquire().await;
            let judged = self.judge(read, nonce, claimed, arrived).await;
            // Whoever waits for the store keeps nobody else from it.
            drop(place);
            match judged {
                Ok((whose, outcome)) => {
                    self.limits.count(device, whose.counted(claimed));
                    return outcome.map_err(|refused| (whose, refused));
                }
                Err(error) => {
                    let end = self.outlast(device, nonce, &error, tries, arrived);
                    if let Some(end) = end.await {
                        self.limits.count(device, claimed);
                        return Ok(end);
                    }
                }
            }
        }
        Ok(Handled::Unrecorded)
    }

    /// Fails only where the store does not take a result.
    async fn judge(
        self: &Arc<Self>,
        read: &intake::Read,
        nonce: &DeviceNonce,
        claimed: Voice,
        arrived: Instant,
    ) -> Result<Judged, StoreError> {
        let intake::Read { device, status } = read;
        // Whether it had to be signed is seen in the same commit.
        if let Status::Request(request) = status
            && request.signature.is_none()
            && !self.settings().require_signed
            && let Some(handled) = self.at_once(device, request, None, arrived).await
        {
            return Ok((whose(claimed, &Ok(handled)), Ok(handled)));
        }
        let doc = match self.parts.devices.device(device).await {
            Ok(Some(doc)) if doc.state == DeviceState::Allowed => doc,
            Ok(known) => {
                let refused = Refused {
                    known: known.is_some(),
                    ..refusal(device, nonce, "not_allowed", DeviceError::Unauthorized)
                };
                return Ok((claimed, Err(refused)));
            }
            Err(error) if matches!(status, Status::Result(_)) => return Err(error),
            Err(error) => {
                tracing::warn!(%device, %error, "a device could not be looked up");
                self.tell_if_heeded(claimed, device, nonce, DeviceError::Unavailable, SOON);
                return Ok((claimed, Ok(Handled::Refused("store"))));
            }
        };
        let accessor = results::issued_for(&doc, nonce).map(|held| held.accessor.clone());
        let of_listed = |refused: Refused| Refused {
            known: true,
            accessor: refused.accessor.or(accessor),
            ..refused
        };
        let proven = self
            .has_keys(&doc, nonce)
            .and_then(|()| self.verified(&doc, status));
        let identity = match proven {
            Ok(identity) => identity,
            Err(refused) => return Ok((claimed, Err(of_listed(refused)))),
        };
        let outcome = match status {
            Status::Request(request) => self.request(doc, request.clone(), identity, arrived).await,
            Status::Result(result) => self.result(doc, result.clone(), identity).await?,
            Status::Other => Ok(Handled::Ignored),
        };
        Ok((whose(claimed, &outcome), outcome.map_err(of_listed)))
    }

    /// Whether the device has the keys that the operator asks of every device.
    fn has_keys(&self, doc: &DeviceDoc, nonce: &DeviceNonce) -> Result<(), Refused> {
        let reason = if self.settings().require_signed && doc.options.identity_key.is_none() {
            "policy.not_signed"
        } else if self.settings().require_sealed && doc.options.sealing.is_none() {
            "policy.not_sealed"
        } else {
            return Ok(());
        };
        let error = DeviceError::Unauthorized;
        Err(refusal(&doc.device_id, nonce, reason, error))
    }

    /// Checks the signature where the device has an identity key. Returns the key, which the store compares with its own.
    fn verified(&self, doc: &DeviceDoc, status: &Status) -> Result<Option<IdentityKey>, Refused> {
        let Some(key) = &doc.options.identity_key else {
            return Ok(None);
        };
        let (statement, nonce, signature): (_, _, Option<&DeviceSignature>) = match status {
            Status::Request(request) => (
                Statement::Request,
                &request.nonce,
                request.signature.as_ref(),
            ),
            Status::Result(result) if result.is_ok() => {
                (Statement::Ok, &result.nonce, result.signature.as_ref())
            }
            Status::Result(result) => (Statement::Failed, &result.nonce, result.signature.as_ref()),
            Status::Other => return Ok(None),
        };
        let (now, skew) = (self.now(), self.settings().skew);
        match key.verify(statement, &doc.device_id, nonce, signature, now, skew) {
            Ok(()) => Ok(Some(key.clone())),
            Err(why) => {
                let (reason, error) = match why {
                    NotSigned::Missing => ("signature.missing", DeviceError::Unauthorized),
                    NotSigned::Wrong => ("signature.wrong", DeviceError::Unauthorized),
                    NotSigned::Skewed => ("signature.clock_skew", DeviceError::ClockSkew),
                };
                Err(refusal(&doc.device_id, nonce, reason, error))
            }
        }
    }
}

/// Whose a message is that bore whatever proof was asked for.
fn whose(claimed: Voice, outcome: &Result<Handled, Refused>) -> Voice {
    match outcome {
        // Recorded, and so it will not be again.
        Ok(Handled::Asked | Handled::Reported) => Voice::Own,
        // Anybody may have said again what the device said once.
        Ok(Handled::Ignored) => claimed,
        Err(refused) if refused.error == DeviceError::NonceUsed || !refused.answered => claimed,
        // So may they here, until it is recorded.
        _ => Voice::Verified,
    }
}
