//! Connections: HTTP/1.1, one method call at a time, and the ways in which a connection itself goes wrong.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, LOCATION, RETRY_AFTER};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::methods::{self, Answer, Call};
use super::{Failure, Inner};

/// Far more than any request of ours.
const MAX_BODY: usize = 1 << 20;
/// The longest google.protobuf.Duration, seconds.
const LONGEST: u64 = 315_576_000_000;

/// A connection that was given up; what hyper needs to drop it without an answer.
#[derive(Debug, thiserror::Error)]
#[error("the connection was given up")]
struct GivenUp;

pub(super) async fn serve(listener: TcpListener, inner: Arc<Inner>) {
    // With the task every connection ends.
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                if let Ok((stream, _)) = accepted {
                    connections.spawn(connection(stream, Arc::clone(&inner)));
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connection(stream: TcpStream, inner: Arc<Inner>) {
    let Ok(stream) = stream.into_std() else {
        return;
    };
    // A second handle on the same socket, to reset it under hyper's hands.
    let Ok(socket) = stream.try_clone().map(OwnedFd::from) else {
        return;
    };
    let Ok(stream) = TcpStream::from_std(stream) else {
        return;
    };
    let socket = Arc::new(socket);
    let service = service_fn(move |request| {
        let (inner, socket) = (Arc::clone(&inner), Arc::clone(&socket));
        async move { answer(request, &inner, &socket).await }
    });
    // It ends with an error whenever a failure was asked for.
    let _ = http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

async fn answer(
    request: Request<Incoming>,
    inner: &Inner,
    socket: &OwnedFd,
) -> Result<Response<Body>, GivenUp> {
    let (head, body) = request.into_parts();
    let body = to_bytes(Body::new(body), MAX_BODY)
        .await
        .map_err(|_| GivenUp)?;
    if let Some(value) = head.headers.get(AUTHORIZATION) {
        inner.lock().authorization = value.to_str().ok().map(str::to_owned);
    }
    let Some(call) = Call::parse(&head.method, &head.uri) else {
        return Ok(json(&methods::error(
            404,
            "NOT_FOUND",
            "no such method",
            None,
        )));
    };
    let failure = {
        let mut held = inner.lock();
        *held.calls.entry(call.method).or_default() += 1;
        held.failure(call.method)
    };
    match failure {
        Some(Failure::Hang) => std::future::pending().await,
        Some(Failure::Slow(by)) => {
            tokio::time::sleep(by).await;
            Ok(json(&methods::carry_out(
                &call,
                &body,
                None,
                &mut inner.lock(),
            )))
        }
        Some(Failure::Reset) => {
            // Closed with a reset instead of an end, as soon as the last handle goes.
            let linger = Some(Duration::ZERO);
            let _ = rustix::net::sockopt::set_socket_linger(socket, linger);
            Err(GivenUp)
        }
        Some(Failure::Garbage) => Ok(text(StatusCode::OK, "<html>it is not JSON</html>")),
        Some(Failure::Truncated) => Ok(text(StatusCode::OK, r#"{"name": "projects/te"#)),
        Some(Failure::Proxy(status)) => Ok(text(
            StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY),
            "<html>a proxy's page</html>",
        )),
        Some(Failure::Echo) => {
            let said = String::from_utf8_lossy(&body);
            Ok(json(&methods::error(500, "INTERNAL", &said, None)))
        }
        Some(Failure::Redirect(to)) => {
            let mut response = text(StatusCode::TEMPORARY_REDIRECT, "");
            let to = format!("{to}{}", head.uri);
            if let Ok(to) = to.parse() {
                response.headers_mut().insert(LOCATION, to);
            }
            Ok(response)
        }
        Some(Failure::Status {
            http,
            code,
            retry_after,
        }) => {
            // What no google.protobuf.Duration holds is said by the header alone, as by a proxy.
            let detail = retry_after.filter(|delay| delay.as_secs() <= LONGEST);
            let mut response = json(&methods::error(http, code, "as the test asked", detail));
            if let Some(seconds) = retry_after.map(|delay| delay.as_secs()) {
                response.headers_mut().insert(RETRY_AFTER, seconds.into());
            }
            Ok(response)
        }
        failure => Ok(json(&methods::carry_out(
            &call,
            &body,
            failure.as_ref(),
            &mut inner.lock(),
        ))),
    }
}

fn json(answer: &Answer) -> Response<Body> {
    let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = text(status, &answer.body.to_string());
    let kind = hyper::header::HeaderValue::from_static("application/json; charset=UTF-8");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

fn text(status: StatusCode, body: &str) -> Response<Body> {
    let mut response = Response::new(Body::from(body.to_owned()));
    *response.status_mut() = status;
    response
}
