//! Our own HTTP listener beside a real relay.
#![allow(clippy::unwrap_used)]

mod world;

use std::sync::Arc;

use keyturn::running::Keyturn;
use reqwest::{Client, Method, Response, StatusCode};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::oneshot,
    time::timeout,
};
use world::{GROUP, Handover, PATIENCE, World, config, group_event, served};

fn assert_no_cors(response: &Response) {
    for name in response.headers().keys() {
        assert!(!name.as_str().starts_with("access-control"), "{name}");
    }
}

async fn get(url: String) -> Response {
    let request = Client::new()
        .get(url)
        .header("origin", "https://evil.example")
        .header("authorization", "Bearer x");
    let response = request.send().await.unwrap();
    assert_no_cors(&response);
    assert_eq!(response.headers()["cache-control"], "no-store");
    response
}

#[tokio::test(flavor = "multi_thread")]
async fn the_listener_answers_health_readiness_metrics_and_challenges() {
    let dir = tempfile::tempdir().unwrap();
    let mut world = World::start(dir.path(), Some(served()), &[]).await;
    let alive = get(world.web("/healthz")).await;
    assert_eq!(
        (alive.status(), alive.json::<Value>().await.unwrap()),
        (StatusCode::OK, json!({ "status": "alive" }))
    );

    let jwks = world.ports.readiness.register("jwks");
    jwks.not_ready("no keys fetched yet");
    let waiting = get(world.web("/readyz")).await;
    assert_eq!(waiting.status(), StatusCode::SERVICE_UNAVAILABLE);
    let body: Value = waiting.json().await.unwrap();
    assert_eq!(body["ready"], false);
    assert_eq!(
        body["checks"]["jwks"],
        json!({ "state": "not_ready", "reason": "no keys fetched yet" })
    );
    jwks.ready();
    timeout(PATIENCE, world.relay().attached()).await.unwrap();
    let ready: Value = loop {
        // The relay's own check follows its attachment on another task.
        let body: Value = get(world.web("/readyz")).await.json().await.unwrap();
        if body["ready"] == true {
            break body;
        }
        assert_eq!(body["checks"]["jwks"]["state"], "ready");
        tokio::task::yield_now().await;
    };
    assert_eq!(ready["checks"]["service"]["state"], "ready");

    let challenge = get(world.web("/kr/v1/challenge")).await;
    assert_eq!(
        challenge.json::<Value>().await.unwrap(),
        json!({ "challenge": "c1", "expires_at": 1_700_000_000_000_u64 })
    );

    let mut client = world.client().await;
    assert!(client.publish(&group_event(GROUP, "counted")).await.0);
    world.inbound().await;
    let metrics = get(world.web("/metrics")).await;
    assert_eq!(
        metrics.headers()["content-type"],
        "text/plain; version=0.0.4; charset=utf-8"
    );
    let text = metrics.text().await.unwrap();
    for name in [
        "keyturn_inbound_total{result=\"taken\"}",
        "nostr_relay_new_event",
        "nostr_relay_session",
    ] {
        assert!(text.contains(name), "{name} is not in\n{text}");
    }
    world.stop(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mistakes_are_answered_in_json() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::start(
        dir.path(),
        Some(served()),
        &[("KEYTURN_WEB__MAX_BODY_BYTES", "1024")],
    )
    .await;
    let ask = |method: Method, path: &str, body: usize| {
        Client::new()
            .request(method, world.web(path))
            .body("x".repeat(body))
            .send()
    };
    for (method, path, body, status, code) in [
        (
            Method::GET,
            "/nothing",
            0,
            StatusCode::NOT_FOUND,
            "not_found",
        ),
        (
            Method::POST,
            "/kr/v1/challenge",
            0,
            StatusCode::METHOD_NOT_ALLOWED,
            "method_not_allowed",
        ),
        (
            Method::OPTIONS,
            "/kr/v1/challenge",
            0,
            StatusCode::METHOD_NOT_ALLOWED,
            "method_not_allowed",
        ),
        (
            Method::POST,
            "/healthz",
            1_025,
            StatusCode::PAYLOAD_TOO_LARGE,
            "too_large",
        ),
    ] {
        let response = ask(method.clone(), path, body).await.unwrap();
        assert_no_cors(&response);
        assert_eq!(response.status(), status, "{method} {path}");
        assert_eq!(
            response.json::<Value>().await.unwrap()["error"],
            code,
            "{method} {path}"
        );
    }
    world.stop(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_never_finishes_its_request_is_cut_off() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::start(
        dir.path(),
        Some(served()),
        &[("KEYTURN_WEB__REQUEST_TIMEOUT", "1s")],
    )
    .await;
    let mut slow = TcpStream::connect(world.keyturn.web_address())
        .await
        .unwrap();
    slow.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n")
        .await
        .unwrap();
    let mut answer = Vec::new();
    timeout(PATIENCE, slow.read_to_end(&mut answer))
        .await
        .unwrap()
        .unwrap();
    assert!(!String::from_utf8_lossy(&answer).contains("200"));
    world.stop(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_core_that_cannot_start_is_reported_and_not_ready() {
    let dir = tempfile::tempdir().unwrap();
    let (ports, _) = oneshot::channel();
    let factory = Handover {
        ports,
        served: None,
        fails: true,
    };
    let keyturn = Keyturn::start(Arc::new(config(dir.path(), &[])), Box::new(factory)).unwrap();
    let error = timeout(PATIENCE, keyturn.started())
        .await
        .unwrap()
        .unwrap_err();
    assert_eq!(error.to_string(), "store: told to");
    let url = |path: &str| format!("http://{}{path}", keyturn.web_address());
    let body: Value = get(url("/readyz")).await.json().await.unwrap();
    assert_eq!(body["checks"]["service"]["state"], "not_ready");
    assert_eq!(
        get(url("/kr/v1/challenge")).await.status(),
        StatusCode::SERVICE_UNAVAILABLE
    );
    drop(keyturn);
}
