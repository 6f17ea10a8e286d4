//! `POST /kr/v1/approle/login`: whether a secret_id of our own is good. Errors have Vault's shape, `{"errors": […]}`.
//!
//! It checks and counts; it hands out no token. `lease_duration` says how long the asker may rely on the answer.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Extension, Json,
    body::Bytes,
    extract::State,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use serde_json::json;
use zeroize::{Zeroize as _, Zeroizing};

use super::Web;
use crate::devices::issuer::embedded::login::{LoggedIn, LoginError};

/// Where it is.
pub(super) const PATH: &str = "/kr/v1/approle/login";
/// Longest time an answer may be relied on: a secret_id can be destroyed at any moment.
const LEASE: Duration = Duration::from_secs(60);

#[derive(Deserialize)]
struct Login {
    role_id: String,
    secret_id: Zeroizing<String>,
}

pub(super) async fn log_in(
    State(web): State<Arc<Web>>,
    Extension(peer): Extension<SocketAddr>,
    body: Bytes,
) -> Response {
    let logins = web.approle.borrow().clone();
    let Some(logins) = logins else {
        return refusal(StatusCode::NOT_FOUND, "no secret_ids are issued here");
    };
    let parsed = serde_json::from_slice::<Login>(&body);
    if let Ok(mut own) = body.try_into_mut() {
        own.as_mut().zeroize();
    }
    // serde's message could repeat what was sent.
    let Ok(Login { role_id, secret_id }) = parsed else {
        let expected = "expected a JSON object with role_id and secret_id";
        return refusal(StatusCode::BAD_REQUEST, expected);
    };
    match logins.log_in(&role_id, &secret_id, peer.ip()).await {
        Ok(good) => answer(&good),
        Err(error) => refused(error),
    }
}

fn answer(good: &LoggedIn) -> Response {
    let LoggedIn {
        role,
        device,
        accessor,
        ttl,
        uses_left,
    } = good;
    Json(json!({
        "data": {
            "role_name": role,
            "device_id": device,
            "secret_id_accessor": accessor.to_string(),
            "secret_id_ttl": ttl.as_secs(),
            // 0 means any number, as in Vault; a last use leaves -1 behind, for it is over.
            "secret_id_num_uses": match uses_left {
                None => 0,
                Some(0) => -1,
                Some(left) => i64::from(*left),
            },
        },
        "lease_duration": LEASE.min(*ttl).as_secs(),
        "renewable": false,
    }))
    .into_response()
}

fn refused(error: LoginError) -> Response {
    let text = error.to_string();
    match error {
        LoginError::Invalid => refusal(StatusCode::BAD_REQUEST, &text),
        LoginError::Unavailable => refusal(StatusCode::SERVICE_UNAVAILABLE, &text),
        LoginError::TooMany { retry_after } => {
            let mut response = refusal(StatusCode::TOO_MANY_REQUESTS, &text);
            let seconds = retry_after.as_millis().div_ceil(1000).to_string();
            if let Ok(seconds) = HeaderValue::from_str(&seconds) {
                response.headers_mut().insert(header::RETRY_AFTER, seconds);
            }
            response
        }
    }
}

fn refusal(status: StatusCode, text: &str) -> Response {
    (status, Json(json!({ "errors": [text] }))).into_response()
}
