//! Documents as Firestore values: serde's JSON on one side, Firestore's types on the other.
//!
//! What must always hold:
//! - a field that holds a time is a Firestore timestamp (whole milliseconds) and nothing else, in both directions; which fields do is decided by their
//!   names, a list ([`crate::fits`]) that a test holds against the JSON Schemas;
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

use crate::fits::{LAST_MS, TIME_FIELDS};

/// The fields of a document.
pub(super) type Fields = HashMap<String, Value>;

/// A value that has no exact counterpart on the other side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unrepresentable;

/// A time as Firestore holds it.
///
/// # Errors
/// [`Unrepresentable`] past the year 9999.
pub(super) fn timestamp(time: UnixMs) -> Result<Timestamp, Unrepresentable> {
    if time.0 > LAST_MS {
        return Err(Unrepresentable);
    }
    let seconds = i64::try_from(time.0 / 1000).map_err(|_| Unrepresentable)?;
    let millis = i32::try_from(time.0 % 1000).map_err(|_| Unrepresentable)?;
    Ok(Timestamp {
        seconds,
        nanos: millis * 1_000_000,
    })
}

/// A time to be stored.
///
/// # Errors
/// [`Unrepresentable`] past the year 9999.
pub(super) fn time_value(time: Option<UnixMs>) -> Result<Value, Unrepresentable> {
    Ok(match time {
        Some(time) => value(ValueType::TimestampValue(timestamp(time)?)),
        None => null(),
    })
}

/// A time to compare with. Nothing that is stored is later than the end of the year 9999, so any later time finds what that one finds.
pub(super) fn time_operand(time: UnixMs) -> Value {
    time_value(Some(UnixMs(time.0.min(LAST_MS)))).unwrap_or_else(|_| null())
}

/// A null that is there.
pub(super) fn null() -> Value {
    value(ValueType::NullValue(0))
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
/// [`Unrepresentable`] for a time past the year 9999, a number beyond 63 bits or with a fraction, or what is no object.
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
            ValueType::TimestampValue(timestamp(UnixMs(ms))?)
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
        assert_eq!(fields.get("not_after"), Some(&null()));
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
        let stamp = ValueType::TimestampValue(timestamp(UnixMs(1)).unwrap());
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
    fn the_end_of_time_is_the_end_of_the_year_9999_and_what_is_later_is_refused() {
        let last = Timestamp {
            seconds: 253_402_300_799,
            nanos: 999_000_000,
        };
        assert_eq!(timestamp(UnixMs(LAST_MS)), Ok(last));
        assert_eq!(timestamp(UnixMs(LAST_MS + 1)), Err(Unrepresentable));
        let mut late = sample();
        late.not_after = Some(UnixMs(LAST_MS + 1));
        assert_eq!(encode(&late), Err(Unrepresentable));
        late.not_after = Some(UnixMs(LAST_MS));
        assert_eq!(decode::<Sample>(encode(&late).unwrap()), Ok(late));
        // What is only compared with may be as late as it likes.
        let end = value(ValueType::TimestampValue(last));
        assert_eq!(time_operand(UnixMs(u64::MAX)), end);
        assert_eq!(time_operand(UnixMs(LAST_MS)), end);
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
