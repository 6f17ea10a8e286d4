//! What a document can hold on every backend: whatever lies in one store can be copied to the other, and means the same there.
//!
//! What must always hold: what does not fit is refused before it is written. A time that was cut to the last one that fits would be another time.

use keyturn_proto::UnixMs;
use serde_json::Value;

use crate::store::{Result, StoreError};

/// Every field that holds a time, in any document. A test of the Firestore codec holds the list to the JSON Schemas.
pub(crate) const TIME_FIELDS: [&str; 24] = [
    "ack_deadline",
    "announced_at",
    "asked_at",
    "at",
    "completed_at",
    "created_at",
    "deadline_at",
    "delete_after",
    "due_at",
    "expires_at",
    "given_up_at",
    "grace_until",
    "issued_at",
    "last_rotation_at",
    "locked_until",
    "not_after",
    "not_before",
    "ping_at",
    "proof_expires_at",
    "retry_at",
    "secret_since",
    "until",
    "updated_at",
    "withdrawn_at",
];

/// The last millisecond that a Firestore timestamp can name: the end of the year 9999.
pub(crate) const LAST_MS: u64 = 253_402_300_799_999;

/// Refuses a time that no backend may hold.
///
/// # Errors
/// [`StoreError::Unrepresentable`].
pub(crate) fn time(what: &'static str, time: UnixMs) -> Result<UnixMs> {
    if time.0 <= LAST_MS {
        Ok(time)
    } else {
        Err(StoreError::Unrepresentable { what })
    }
}

/// Refuses a document with a time past the year 9999, or a number beyond 63 bits or with a fraction.
///
/// # Errors
/// [`StoreError::Unrepresentable`].
pub(crate) fn document(what: &'static str, json: &Value) -> Result<()> {
    if holds(false, json) {
        Ok(())
    } else {
        Err(StoreError::Unrepresentable { what })
    }
}

fn holds(is_time: bool, json: &Value) -> bool {
    match json {
        Value::Number(number) if is_time => number.as_u64().is_some_and(|ms| ms <= LAST_MS),
        Value::Number(number) => number.as_i64().is_some(),
        Value::Array(items) => items.iter().all(|item| holds(false, item)),
        Value::Object(fields) => fields
            .iter()
            .all(|(name, value)| holds(TIME_FIELDS.contains(&name.as_str()), value)),
        Value::Null | Value::Bool(_) | Value::String(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_does_not_fit_is_refused_wherever_it_stands() {
        let refused = Err(StoreError::Unrepresentable { what: "client" });
        for bad in [
            json!({ "not_after": LAST_MS + 1 }),
            json!({ "snapshot": [{ "not_before": u64::MAX }] }),
            json!({ "grace_duration_ms": u64::MAX }),
            json!({ "number": 0.5 }),
        ] {
            assert_eq!(document("client", &bad), refused, "{bad}");
        }
        for good in [
            json!({ "not_after": LAST_MS, "until": null, "at": 0 }),
            json!({ "grace_duration_ms": i64::MAX }),
            json!([]),
        ] {
            assert_eq!(document("client", &good), Ok(()), "{good}");
        }
        assert_eq!(time("nonce", UnixMs(LAST_MS)), Ok(UnixMs(LAST_MS)));
        assert_eq!(
            time("nonce", UnixMs(LAST_MS + 1)),
            Err(StoreError::Unrepresentable { what: "nonce" })
        );
    }
}
