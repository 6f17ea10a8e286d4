//! What can be said of a message by itself: no store, no clock. Everything that is refused has one stable word.

use std::time::Instant;

use keyturn_proto::device::{DeviceError, DeviceId, DeviceNonce, MAX_STATUS, Status, topic};

/// How a message came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carriage {
    /// Our own subscription.
    Mqtt,
    /// The broker's HTTP call.
    Webhook,
}

/// A message, before anything was looked at.
#[derive(Clone, Copy, Debug)]
pub struct Incoming<'a> {
    /// How it came.
    pub carriage: Carriage,
    /// Its topic.
    pub topic: &'a str,
    /// Its payload.
    pub payload: &'a [u8],
    /// Whether the broker had kept it.
    pub retained: bool,
    /// When it came in. Requests that wait are served in this order.
    pub arrived: Instant,
}

/// Why a message is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The device of the topic.
    pub device: Option<DeviceId>,
    /// The device that the message says it is from, if that is another one.
    pub claims: Option<DeviceId>,
    /// Whether the device was found in the store: anybody can invent one, and an invented one gets no audit chain of its own.
    pub known: bool,
    /// The message's nonce, if it has a good one.
    pub nonce: Option<DeviceNonce>,
    /// Names the secret_id that was issued for that nonce, as far as we know one.
    pub accessor: Option<String>,
    /// A stable machine word, for the audit trail and the metrics.
    pub reason: &'static str,
    /// What the device is told.
    pub error: DeviceError,
    /// Whether it is told at all, which takes a nonce.
    pub answered: bool,
}

/// A message that may be looked into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read {
    /// Whose topic it came on.
    pub device: DeviceId,
    /// What it says.
    pub status: Status,
}

/// Reads one message.
///
/// # Errors
/// [`Refused`].
pub fn read(incoming: &Incoming<'_>) -> Result<Read, Refused> {
    let refused = |device, reason| Refused {
        device,
        claims: None,
        known: false,
        nonce: None,
        accessor: None,
        reason,
        error: DeviceError::InvalidRequest,
        answered: false,
    };
    let Ok(device) = topic::of_status(incoming.topic) else {
        let (claims, nonce) = named(incoming.payload);
        return Err(Refused {
            claims,
            nonce,
            ..refused(None, "topic.wrong")
        });
    };
    // A retained message is an old one: whoever subscribes gets it again and again.
    if incoming.retained {
        let (claims, nonce) = named(incoming.payload);
        return Err(Refused {
            claims: claims.filter(|id| *id != device),
            nonce,
            ..refused(Some(device), "message.retained")
        });
    }
    if incoming.payload.len() > MAX_STATUS {
        return Err(refused(Some(device), "message.oversized"));
    }
    let status = match Status::parse(incoming.payload) {
        Ok(status) => status,
        Err(unreadable) => {
            let reason = match unreadable.why.field {
                "nonce" => "message.nonce",
                "device_id" => "message.device_id",
                "sig" => "message.signature",
                "auth_request" => "message.auth_request",
                _ => "message.unreadable",
            };
            return Err(Refused {
                answered: unreadable.nonce.is_some(),
                nonce: unreadable.nonce,
                ..refused(Some(device), reason)
            });
        }
    };
    let (id, nonce) = names(&status);
    if let Some(id) = id
        && *id != device
    {
        return Err(Refused {
            claims: Some(id.clone()),
            nonce: nonce.cloned(),
            answered: true,
            ..refused(Some(device), "device_id.not_the_topics")
        });
    }
    Ok(Read { device, status })
}

/// The device and the nonce that a message names.
fn names(status: &Status) -> (Option<&DeviceId>, Option<&DeviceNonce>) {
    match status {
        Status::Request(request) => (Some(&request.device_id), Some(&request.nonce)),
        Status::Result(result) => (result.device_id.as_ref(), Some(&result.nonce)),
        Status::Other => (None, None),
    }
}

/// The same of a message that is refused unread, for the record. Too long, it is not looked at.
fn named(payload: &[u8]) -> (Option<DeviceId>, Option<DeviceNonce>) {
    match Status::parse(payload) {
        Ok(status) => {
            let (id, nonce) = names(&status);
            (id.cloned(), nonce.cloned())
        }
        Err(unreadable) => (None, unreadable.nonce),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn look(topic: &str, payload: &str, retained: bool) -> Result<Read, &'static str> {
        let payload = payload.as_bytes();
        read(&Incoming {
            carriage: Carriage::Mqtt,
            topic,
            payload,
            retained,
            arrived: Instant::now(),
        })
        .map_err(|refused| refused.reason)
    }

    const GOOD: &str = r#"{"nonce":"0123456789abcdef","device_id":"a","auth_request":"secret_id","reason":"invalid_secret"}"#;

    #[test]
    fn every_refusal_has_its_word() {
        let long = format!("{{\"x\":\"{}\"}}", "x".repeat(MAX_STATUS));
        let unsigned = GOOD.replace("\"reason\"", "\"ts\":1,\"reason\"");
        for (topic, payload, retained, expected) in [
            ("iot/a/message", GOOD, false, "topic.wrong"),
            ("iot/a/status", GOOD, true, "message.retained"),
            ("iot/a/status", &long, false, "message.oversized"),
            ("iot/a/status", "{", false, "message.unreadable"),
            (
                "iot/a/status",
                &GOOD.replace("0123456789abcdef", "short"),
                false,
                "message.nonce",
            ),
            (
                "iot/a/status",
                &GOOD.replace("\"a\"", "\"a/b\""),
                false,
                "message.device_id",
            ),
            ("iot/a/status", &unsigned, false, "message.signature"),
            (
                "iot/a/status",
                &GOOD.replace("secret_id", "token"),
                false,
                "message.auth_request",
            ),
            ("iot/b/status", GOOD, false, "device_id.not_the_topics"),
            (
                "iot/b/status",
                r#"{"nonce":"0123456789abcdef","device_id":"a","auth_result":"ok"}"#,
                false,
                "device_id.not_the_topics",
            ),
        ] {
            assert_eq!(look(topic, payload, retained), Err(expected), "{payload}");
        }
    }

    #[test]
    fn what_is_well_formed_goes_on() {
        assert!(matches!(
            look("iot/a/status", GOOD, false).unwrap().status,
            Status::Request(_)
        ));
        let ok = r#"{"nonce":"0123456789abcdef","auth_result":"ok"}"#;
        assert!(matches!(
            look("iot/a/status", ok, false).unwrap().status,
            Status::Result(_)
        ));
        assert_eq!(
            look("iot/a/status", r#"{"uptime":5}"#, false)
                .unwrap()
                .status,
            Status::Other
        );
    }
}
