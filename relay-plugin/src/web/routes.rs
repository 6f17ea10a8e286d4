//! The routes and what they answer.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::State,
    http::{HeaderValue, StatusCode, header},
    middleware::map_response,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use keyturn_proto::nonce::CHALLENGE_PATH;
use serde_json::json;

use super::{Web, approle, webhook};

type Shared = State<Arc<Web>>;

pub(super) fn router(web: Web) -> Router {
    Router::new()
        .route("/healthz", get(alive))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route(CHALLENGE_PATH, get(challenge))
        .route(approle::PATH, post(approle::log_in))
        .route(webhook::PATH, post(webhook::receive))
        .fallback(|| async {
            problem(
                StatusCode::NOT_FOUND,
                "not_found",
                "there is nothing at this path",
            )
        })
        .method_not_allowed_fallback(|| async {
            problem(
                StatusCode::METHOD_NOT_ALLOWED,
                "method_not_allowed",
                "this path takes another method",
            )
        })
        .layer(map_response(guard))
        .with_state(Arc::new(web))
}

/// An error as JSON: `{"error": code, "message": text}`.
pub(super) fn problem(status: StatusCode, code: &'static str, message: &'static str) -> Response {
    (status, Json(json!({ "error": code, "message": message }))).into_response()
}

/// Answers are for the one who asked, now.
pub(super) async fn guard(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    response
}

async fn alive() -> Response {
    Json(json!({ "status": "alive" })).into_response()
}

async fn ready(State(web): Shared) -> Response {
    let checks = web.readiness.states();
    let ready = web.readiness.all_ready();
    let status = if ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (status, Json(json!({ "ready": ready, "checks": checks }))).into_response()
}

async fn metrics(State(web): Shared) -> Response {
    match &web.metrics {
        Some(handle) => (
            [(
                header::CONTENT_TYPE,
                "text/plain; version=0.0.4; charset=utf-8",
            )],
            handle.render(),
        )
            .into_response(),
        None => problem(
            StatusCode::NOT_FOUND,
            "not_found",
            "the relay's own recorder has the metrics",
        ),
    }
}

async fn challenge(State(web): Shared) -> Response {
    let issuer = web.challenges.borrow().clone();
    match issuer.map(|issuer| issuer.issue()) {
        Some(Ok(challenge)) => Json(challenge).into_response(),
        Some(Err(_)) | None => problem(
            StatusCode::SERVICE_UNAVAILABLE,
            "unavailable",
            "no challenge can be issued at the moment",
        ),
    }
}
