//! Answers on their way to a device.

use std::time::Duration;

use async_trait::async_trait;
use keyturn_proto::device::{Command, DeviceError, DeviceId, DeviceNonce, Ping, Retry};
use keyturn_proto::device::{DeviceId as Id, command::Secret, sealed::Ephemeral, status::Asked};
use keyturn_store::devices::DeviceOptions;
use zeroize::Zeroizing;

use super::issuer::{Credential, Issued};

/// How long taking back a command is tried. One that is late could take back what another relay has sent since.
const FORGET: Duration = Duration::from_secs(5);

/// One message for a device's command topic. Wiped on drop; has no `Debug`, for it may bear a secret.
pub struct Outgoing {
    /// For whom.
    pub device: Id,
    /// JSON.
    pub payload: Zeroizing<Vec<u8>>,
    /// Whether the broker keeps it; only ever true for sealed commands, and for the empty message that takes one back. MQTT 3.1.1 has no expiry, so there the
    /// broker keeps nothing.
    pub retain: bool,
    /// How long the broker keeps it for a device that is not there.
    pub expires_in: Duration,
}

impl Outgoing {
    /// Whether it takes a command back. Such a message must not overtake or be overtaken by a command: it would erase the wrong one.
    pub(super) fn forgets(&self) -> bool {
        self.retain && self.payload.is_empty()
    }
}

/// The connection cannot take a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the answer could not be handed to the broker's connection")]
pub struct NotSent;

/// Where answers go.
#[async_trait]
pub trait Outlet: Send + Sync {
    /// Hands over a message that matters, waiting for room.
    ///
    /// # Errors
    /// [`NotSent`] when there is no room for too long, or the connection was shut down.
    async fn send(&self, message: Outgoing) -> Result<(), NotSent>;
    /// Whether a message that matters could be handed over now.
    fn has_room(&self) -> bool;
    /// Hands over a message that may be lost.
    ///
    /// # Errors
    /// [`NotSent`] without room.
    fn offer(&self, message: Outgoing) -> Result<(), NotSent>;
}

/// The command that bears what was issued; sealed when the device has a key for that.
///
/// # Errors
/// [`keyturn_proto::Invalid`] for a credential that no JSON can hold as it is; issuers make none.
pub fn command(
    device: &DeviceId,
    options: &DeviceOptions,
    nonce: &DeviceNonce,
    issued: &Issued,
    expires_in: Duration,
) -> Result<Outgoing, keyturn_proto::Invalid> {
    let (secret, good_for) = match &issued.credential {
        Credential::SecretId(text) => (Secret::SecretId(text.expose()), issued.ttl),
        Credential::Wrapped { token, ttl } => {
            (Secret::WrappingToken(token.expose(), ttl.as_secs()), *ttl)
        }
    };
    // A device that finds a dead token would have to think that somebody else has used it.
    let expires_in = expires_in.min(good_for);
    let command = Command {
        nonce,
        role_id: &issued.role_id,
        secret,
        ttl_sec: issued.ttl.as_secs(),
    };
    let text = command.compose()?;
    let Some(sealing) = &options.sealing else {
        return Ok(Outgoing {
            device: device.clone(),
            payload: Zeroizing::new(text.as_bytes().to_vec()),
            retain: false,
            expires_in,
        });
    };
    let sealed = sealing
        .key
        .seal(sealing.suite, device, nonce, &text, Ephemeral::generate()?)?;
    Ok(Outgoing {
        device: device.clone(),
        payload: json(&sealed)?,
        retain: sealing.retain,
        // A device that sleeps finds it for as long as it is good for something.
        expires_in: if sealing.retain { good_for } else { expires_in },
    })
}

/// Asks the device to try again.
#[must_use]
pub fn retry(
    device: &DeviceId,
    nonce: &DeviceNonce,
    error: DeviceError,
    retry_after_sec: u64,
    expires_in: Duration,
) -> Option<Outgoing> {
    let retry = Retry {
        nonce: nonce.clone(),
        error,
        retry_after_sec,
    };
    plain(device, &retry, expires_in)
}

/// Invites the device to ask.
#[must_use]
pub fn ping(device: &DeviceId, nonce: &DeviceNonce, expires_in: Duration) -> Option<Outgoing> {
    let ping = Ping {
        nonce: nonce.clone(),
        ping: Asked::SecretId,
    };
    plain(device, &ping, expires_in)
}

/// Has the broker forget a sealed command that it keeps and that has done its work.
#[must_use]
pub fn forget(device: &DeviceId) -> Outgoing {
    Outgoing {
        device: device.clone(),
        payload: Zeroizing::new(Vec::new()),
        retain: true,
        expires_in: FORGET,
    }
}

fn plain<T: serde::Serialize>(
    device: &DeviceId,
    message: &T,
    expires_in: Duration,
) -> Option<Outgoing> {
    Some(Outgoing {
        device: device.clone(),
        payload: json(message).ok()?,
        retain: false,
        expires_in,
    })
}

fn json<T: serde::Serialize>(message: &T) -> Result<Zeroizing<Vec<u8>>, keyturn_proto::Invalid> {
    serde_json::to_vec(message)
        .map(Zeroizing::new)
        .map_err(|_| keyturn_proto::Invalid::new("command", "serialisable"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use keyturn_proto::device::Suite;
    use keyturn_store::devices::Sealing;

    use super::*;
    use crate::devices::issuer::CredentialText;

    const HOUR: Duration = Duration::from_secs(3600);
    const MINUTE: Duration = Duration::from_secs(60);

    fn expiry(wrapped: Option<Duration>, retain: bool) -> Duration {
        let text = CredentialText::new(Zeroizing::new("secret".to_owned()));
        let issued = Issued {
            role_id: "role-id".to_owned(),
            credential: match wrapped {
                Some(ttl) => Credential::Wrapped { token: text, ttl },
                None => Credential::SecretId(text),
            },
            accessor: "accessor".parse().unwrap(),
            ttl: HOUR * 12,
        };
        let key = "QxDul9iMwfCIpVdsd6sM9cOseX89lROcbIS1QpxZZio";
        let options = DeviceOptions {
            sealing: retain.then(|| Sealing {
                key: key.parse().unwrap(),
                suite: Suite::default(),
                retain,
            }),
            ..DeviceOptions::default()
        };
        let (device, nonce) = (
            "pump-7".parse().unwrap(),
            "0123456789abcdef".parse().unwrap(),
        );
        let message = command(&device, &options, &nonce, &issued, MINUTE).unwrap();
        assert_eq!(message.retain, retain);
        message.expires_in
    }

    #[test]
    fn no_command_outlives_what_it_bears() {
        assert_eq!(expiry(None, false), MINUTE);
        assert_eq!(expiry(None, true), HOUR * 12);
        assert_eq!(expiry(Some(MINUTE * 5), false), MINUTE);
        assert_eq!(expiry(Some(MINUTE / 2), false), MINUTE / 2);
        assert_eq!(expiry(Some(MINUTE * 5), true), MINUTE * 5);
    }
}
