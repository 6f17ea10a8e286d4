//! A device asks and is given a `secret_id` in one change: where the `secret_id` lies in the same store as the device, nothing can come in between, and so nothing
//! has to be looked for afterwards.

use std::time::Duration;

use keyturn_proto::UnixMs;
use keyturn_proto::device::DeviceId;

use super::issue::Fresh;
use super::{Decision, Draft, apply};
use crate::approle::SecretIdDoc;
use crate::devices::documents::{DeviceDoc, Stage};
use crate::devices::store::{Answer, Change, Minted};

/// Decides: the `ask` as ever, then what `mint` makes for the device. The `secret_id` is to be stored with the rest, or not at all.
pub fn at_once(
    id: &DeviceId,
    known: Option<DeviceDoc>,
    ask: Change,
    confirm: Duration,
    mint: &mut dyn FnMut(&DeviceDoc) -> Option<Minted>,
    now: UnixMs,
) -> (Decision, Option<SecretIdDoc>) {
    let asked = apply(id, known, ask, now);
    let Decision {
        doc: Some(mut doc),
        audit,
        ..
    } = asked
    else {
        return (asked, None);
    };
    let Some(minted) = mint(&doc) else {
        return (Decision::unchanged(Answer::NotAtOnce), None);
    };
    let Minted {
        secret_id,
        expected_proof,
    } = minted;
    if let Some(issue) = &mut doc.outstanding {
        issue.stage = Stage::Issuing;
    }
    let fresh = Fresh {
        attempt: doc.attempts,
        role: secret_id.role.clone(),
        accessor: secret_id.accessor.to_string(),
        expected_proof,
        expires_at: secret_id.expires_at,
        confirm,
    };
    let issued = Draft { doc, audit, now }.issued(fresh);
    (issued, Some(secret_id))
}
