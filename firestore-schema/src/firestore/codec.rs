//! Documents as Firestore values: serde's JSON on one side, Firestore's types on the other.
//!
//! What must always hold:
//! - a field that holds a time is a Firestore timestamp (whole milliseconds) and nothing else, in both directions; which fields do is decided by their
//!   names, a list that a test holds against the JSON Schemas;
//! - `None` is a null that is there, so that a query can ask for it;
//! - what cannot be represented exactly is refused, not rounded.

use std::collections::HashMap;

use firestore::gcloud_sdk::google::firestore::v1::value::ValueType;
use firestore::gcloud_sdk::google::firestore::v1::{ArrayValue, MapValue, Value};
use firestore::gcloud_sdk::prost_types::Timestamp;
use keyturn_proto::UnixMs;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value as Json};

/// The fields of a document.
pub(super) type Fields = HashMap<String, Value>;

/// Every field that holds a time, in any document.
pub(super) const TIME_FIELDS: [&str; 23] = [
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
const LAST_MS: u64 = 253_402_300_799_999;

/// A value that has no exact counterpart on the other side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unrepresentable;

/// A time as Firestore holds it. Later than the year 9999 is the end of that year.
pub(super) fn timestamp(time: UnixMs) -> Timestamp {
    let ms = time.0.min(LAST_MS);
    Timestamp {
        seconds: i64::try_from(ms / 1000).unwrap_or(i64::MAX),
        nanos: i32::try_from(ms % 1000).unwrap_or(0) * 1_000_000,
    }
}

pub(super) fn time_value(time: Option<UnixMs>) -> Value {
    value(time.map_or(ValueType::NullValue(0), |time| {
        ValueType::TimestampValue(timestamp(time))
    }))
}

pub(super) fn text_value(text: impl Into<String>) -> Value {
    value(ValueType::StringValue(text.into()))
}

pub(super) fn value(value_type: ValueType) -> Value {
    Value {
        value_type: Some(value_type),
    }
}

/// A document's fields.
///
/// # Errors
/// [`Unrepresentable`] for a number beyond 63 bits or with a fraction, or what is no object.
pub(super) fn encode<T: Serialize>(document: &T) -> Result<Fields, Unrepresentable> {
    match serde_json::to_value(document) {
        Ok(Json::Object(object)) => fields(object),
        Ok(_) | Err(_) => Err(Unrepresentable),
    }
}

/// A document from its fields; those that the type does not know are left out.
///
/// # Errors
/// [`Unrepresentable`] when a field has a type that no document of ours uses, or serde does not find what it needs. What it found is not told: it
/// could be a value.
pub(super) fn decode<T: DeserializeOwned>(fields: Fields) -> Result<T, Unrepresentable> {
    serde_json::from_value(Json::Object(object(fields)?)).map_err(|_| Unrepresentable)
}

fn fields(object: Map<String, Json>) -> Result<Fields, Unrepresentable> {
    object
        .into_iter()
        .map(|(name, json)| {
            let value = to_value(TIME_FIELDS.contains(&name.as_str()), json)?;
            Ok((name, value))
        })
        .collect()
}

fn to_value(time: bool, json: Json) -> Result<Value, Unrepresentable> {
    let typed = match json {
        Json::Null => ValueType::NullValue(0),
        Json::Number(number) if time => {
            let ms = number.as_u64().ok_or(Unrepresentable)?;
            ValueType::TimestampValue(timestamp(UnixMs(ms)))
        }
        _ if time => return Err(Unrepresentable),
        Json::Bool(flag) => ValueType::BooleanValue(flag),
        Json::Number(number) => ValueType::IntegerValue(number.as_i64().ok_or(Unrepresentable)?),
        Json::String(text) => ValueType::StringValue(text),
        Json::Array(items) => ValueType::ArrayValue(ArrayValue {
            values: items
                .into_iter()
                .map(|item| to_value(false, item))
                .collect::<Result<_, _>>()?,
        }),
        Json::Object(object) => ValueType::MapValue(MapValue {
            fields: fields(object)?,
        }),
    };
    Ok(value(typed))
}

fn object(fields: Fields) -> Result<Map<String, Json>, Unrepresentable> {
    fields
        .into_iter()
        .map(|(name, value)| {
            let json = to_json(TIME_FIELDS.contains(&name.as_str()), value)?;
            Ok((name, json))
        })
        .collect()
}

fn to_json(time: bool, value: Value) -> Result<Json, Unrepresentable> {
    Ok(match value.value_type.ok_or(Unrepresentable)? {
        ValueType::NullValue(_) => Json::Null,
        ValueType::TimestampValue(stamp) if time => Json::from(unix_ms(stamp)?.0),
        _ if time => return Err(Unrepresentable),
        ValueType::BooleanValue(flag) => Json::Bool(flag),
        ValueType::IntegerValue(number) => Json::from(number),
        ValueType::StringValue(text) => Json::String(text),
        ValueType::ArrayValue(array) => Json::Array(
            array
                .values
                .into_iter()
                .map(|item| to_json(false, item))
                .collect::<Result<_, _>>()?,
        ),
        ValueType::MapValue(map) => Json::Object(object(map.fields)?),
        _ => return Err(Unrepresentable),
    })
}

/// The whole milliseconds of a timestamp; nothing of ours lies before 1970.
pub(super) fn unix_ms(stamp: Timestamp) -> Result<UnixMs, Unrepresentable> {
    let seconds = u64::try_from(stamp.seconds).map_err(|_| Unrepresentable)?;
    let nanos = u64::try_from(stamp.nanos).map_err(|_| Unrepresentable)?;
    Ok(UnixMs(
        seconds
            .saturating_mul(1000)
            .saturating_add(nanos / 1_000_000),
    ))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeSet;

    use keyturn_proto::ClientId;
    use serde::Deserialize;

    use super::*;
    use crate::documents::{ClientScope, GroupState};

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    struct Sample {
        created_at: UnixMs,
        not_after: Option<UnixMs>,
        grace_duration_ms: u64,
        client_id: ClientId,
        scope: ClientScope,
        status: GroupState,
        flags: Vec<bool>,
        inner: Vec<Inner>,
    }

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    struct Inner {
        at: UnixMs,
        word: Option<String>,
    }

    fn sample() -> Sample {
        Sample {
            created_at: UnixMs(1_760_000_000_123),
            not_after: None,
            grace_duration_ms: 3,
            client_id: "ext-totp-svc".parse().unwrap(),
            scope: ClientScope::Only(vec!["a".parse().unwrap()]),
            status: GroupState::Suspended {
                reason: "roster".to_owned(),
            },
            flags: vec![true, false],
            inner: vec![Inner {
                at: UnixMs(1),
                word: None,
            }],
        }
    }

    #[test]
    fn a_document_comes_back_as_it_went() {
        let fields = encode(&sample()).unwrap();
        let stamp = Timestamp {
            seconds: 1_760_000_000,
            nanos: 123_000_000,
        };
        assert_eq!(
            fields.get("created_at"),
            Some(&value(ValueType::TimestampValue(stamp)))
        );
        assert_eq!(fields.get("not_after"), Some(&time_value(None)));
        assert_eq!(
            fields.get("grace_duration_ms"),
            Some(&value(ValueType::IntegerValue(3)))
        );
        assert_eq!(decode::<Sample>(fields), Ok(sample()));
    }

    #[test]
    fn a_time_is_a_timestamp_and_nothing_else() {
        for wrong in [
            ValueType::IntegerValue(1_760_000_000_000),
            ValueType::StringValue("2026-01-01T00:00:00Z".to_owned()),
            ValueType::TimestampValue(Timestamp {
                seconds: -1,
                nanos: 0,
            }),
        ] {
            let mut fields = encode(&sample()).unwrap();
            fields.insert("created_at".to_owned(), value(wrong));
            assert_eq!(decode::<Sample>(fields), Err(Unrepresentable));
        }
        let mut fields = encode(&sample()).unwrap();
        let stamp = ValueType::TimestampValue(timestamp(UnixMs(1)));
        fields.insert("grace_duration_ms".to_owned(), value(stamp));
        assert_eq!(decode::<Sample>(fields), Err(Unrepresentable));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let mut large = sample();
        large.grace_duration_ms = u64::MAX;
        assert_eq!(encode(&large), Err(Unrepresentable));
        assert_eq!(encode(&0.5), Err(Unrepresentable));
        let mut fields = encode(&sample()).unwrap();
        fields.insert("flags".to_owned(), value(ValueType::DoubleValue(0.5)));
        assert_eq!(decode::<Sample>(fields), Err(Unrepresentable));
    }

    #[test]
    fn the_end_of_time_is_the_end_of_the_year_9999() {
        let last = timestamp(UnixMs(u64::MAX));
        assert_eq!((last.seconds, last.nanos), (253_402_300_799, 999_000_000));
    }

    /// Collects the properties whose schema is the time type, and all the others.
    fn properties(json: &Json, times: &mut BTreeSet<String>, others: &mut BTreeSet<String>) {
        match json {
            Json::Object(object) => {
                if let Some(Json::Object(found)) = object.get("properties") {
                    for (name, schema) in found {
                        let set = if schema.to_string().contains("#/$defs/UnixMs") {
                            &mut *times
                        } else {
                            &mut *others
                        };
                        set.insert(name.clone());
                    }
                }
                object
                    .values()
                    .for_each(|value| properties(value, times, others));
            }
            Json::Array(items) => items
                .iter()
                .for_each(|item| properties(item, times, others)),
            _ => {}
        }
    }

    #[test]
    fn the_list_of_time_fields_is_that_of_the_schemas() {
        let (mut times, mut others) = (BTreeSet::new(), BTreeSet::new());
        for (_, schema) in crate::schema::all() {
            properties(schema.as_value(), &mut times, &mut others);
        }
        let listed: BTreeSet<String> = TIME_FIELDS.map(str::to_owned).into();
        let missing: Vec<_> = times.difference(&listed).collect();
        assert!(missing.is_empty(), "times that are not listed: {missing:?}");
        let ambiguous: Vec<_> = listed.intersection(&others).collect();
        assert!(ambiguous.is_empty(), "no times, but listed: {ambiguous:?}");
    }
}
