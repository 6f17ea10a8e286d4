//! `POST /kr/v1/mqtt/webhook`: a broker that calls HTTP on publish (EMQX, HiveMQ) hands over a device's status message.
//!
//! At the web listener the broker shows a shared secret as a bearer token; the listener of [`super::certificate`] knows it by its certificate. What comes in is held
//! to the same checks as what our own subscription brings; the answer to the device goes over MQTT all the same.

use std::sync::Arc;
use std::time::Instant;

use axum::{
    Json,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use super::{Web, routes::problem};
use crate::devices::{Carriage, Devices, Incoming, flow::Handled};
use crate::metrics::PANICS;

/// Where it is.
pub(super) const PATH: &str = "/kr/v1/mqtt/webhook";

/// The door for a broker: who may come in, and to whom it leads.
pub struct Webhook {
    devices: Arc<Devices>,
    /// SHA-256 of the secret: two hashes are compared in the same time whatever was sent.
    secret: [u8; 32],
}

impl Webhook {
    /// A door that opens for `secret`.
    #[must_use]
    pub fn new(devices: Arc<Devices>, secret: &str) -> Self {
        Self {
            devices,
            secret: Sha256::digest(secret.as_bytes()).into(),
        }
    }

    fn knows(&self, headers: &HeaderMap) -> bool {
        let shown = headers
            .get(header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .and_then(|text| text.strip_prefix("Bearer "))
            .unwrap_or_default();
        let shown: [u8; 32] = Sha256::digest(shown.as_bytes()).into();
        shown.ct_eq(&self.secret).into()
    }
}

/// What brokers send; unknown fields are ignored.
#[derive(Deserialize)]
struct Published {
    topic: String,
    /// The message as text.
    payload: String,
    #[serde(default)]
    retain: bool,
    /// EMQX says it here.
    #[serde(default)]
    flags: Flags,
}

#[derive(Default, Deserialize)]
struct Flags {
    #[serde(default)]
    retain: bool,
}

pub(super) async fn receive(
    State(web): State<Arc<Web>>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let door = web.webhook.borrow().clone();
    let Some(door) = door else {
        return problem(
            StatusCode::NOT_FOUND,
            "not_found",
            "there is nothing at this path",
        );
    };
    if !door.knows(&headers) {
        door.devices.stranger("webhook.unauthenticated").await;
        return problem(
            StatusCode::UNAUTHORIZED,
            "unauthorized",
            "show the shared secret as a bearer token",
        );
    }
    deliver(&door.devices, &body).await
}

/// Hands over what a broker sent that has shown who it is.
pub(crate) async fn deliver(devices: &Arc<Devices>, body: &[u8]) -> Response {
    let Ok(published) = serde_json::from_slice::<Published>(body) else {
        devices.stranger("webhook.unreadable").await;
        return problem(
            StatusCode::BAD_REQUEST,
            "invalid_request",
            "expected a JSON object with topic and payload",
        );
    };
    let turn = devices.line_up(&published.topic);
    let (devices, arrived) = (Arc::clone(devices), Instant::now());
    // A task of its own: a caller that hangs up, or whose time is over, leaves nothing half done.
    let handling = tokio::spawn(async move {
        let incoming = Incoming {
            carriage: Carriage::Webhook,
            topic: &published.topic,
            payload: published.payload.as_bytes(),
            retained: published.retain || published.flags.retain,
            arrived,
        };
        devices.handle_in(turn, incoming).await
    });
    let Ok(handled) = handling.await else {
        metrics::counter!(PANICS, "part" => "devices").increment(1);
        return problem(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal_error",
            "the message could not be handled",
        );
    };
    // Also a refusal is a success towards the broker: it has nothing to try again.
    let result = match handled {
        Handled::Asked | Handled::Reported => "accepted",
        Handled::Ignored => "ignored",
        Handled::Refused(_) => "refused",
        // Nobody else has it.
        Handled::Unrecorded | Handled::Interrupted => {
            return problem(
                StatusCode::SERVICE_UNAVAILABLE,
                "unavailable",
                "the device's result could not be recorded; send it again",
            );
        }
    };
    Json(json!({ "result": result })).into_response()
}
