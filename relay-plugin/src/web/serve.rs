//! Accepting and serving connections, with every wait bounded.

use std::{io, net::TcpListener, sync::Arc, time::Duration};

use axum::{
    Extension, Router,
    extract::{DefaultBodyLimit, Request},
    http::StatusCode,
    middleware::{Next, from_fn},
    response::Response,
};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::Semaphore,
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::routes::problem;

/// Connections served at once; more wait in the kernel's backlog.
const CONNECTIONS: usize = 256;
/// After running out of file descriptors, say.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What one client may take of us.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    request: Duration,
    header: Duration,
    body: usize,
}

impl Limits {
    /// Those of the configuration.
    #[must_use]
    pub const fn of(web: &crate::config::Web) -> Self {
        Self {
            request: web.request_timeout,
            header: web.request_timeout,
            body: web.max_body_bytes,
        }
    }
}

/// Serves until `stopping`; then requests under way finish, and idle connections close. `welcome` makes of a connection what requests come over, or nothing;
/// it may take as long as a request's header.
pub(super) async fn serve<W, Fut, S>(
    listener: TcpListener,
    router: Router,
    limits: Limits,
    welcome: W,
    stopping: CancellationToken,
) -> io::Result<()>
where
    W: Fn(TcpStream) -> Fut,
    Fut: Future<Output = Option<S>> + Send + 'static,
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let router = router
        .layer(DefaultBodyLimit::max(limits.body))
        .layer(from_fn(move |request: Request, next: Next| {
            within(limits, request, next)
        }));
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let permit = tokio::select! {
            permit = Arc::clone(&permits).acquire_owned() => permit.map_err(io::Error::other)?,
            () = stopping.cancelled() => break,
        };
        let (stream, peer) = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            },
            () = stopping.cancelled() => break,
        };
        // Handlers that ask for it learn who is at the other end.
        let router = router.clone().layer(Extension(peer));
        let (service, stopping) = (TowerToHyperService::new(router), stopping.clone());
        let welcomed = welcome(stream);
        connections.spawn(async move {
            let _permit = permit;
            let stream = tokio::select! {
                welcomed = timeout(limits.header, welcomed) => match welcomed {
                    Ok(Some(stream)) => stream,
                    Ok(None) | Err(_) => return,
                },
                () = stopping.cancelled() => return,
            };
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(limits.header)
                .serve_connection(TokioIo::new(stream), service);
            tokio::pin!(connection);
            // How a client's connection ends is its own affair.
            tokio::select! {
                _ = connection.as_mut() => {}
                () = stopping.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    let _ = connection.await;
                }
            }
        });
        while connections.try_join_next().is_some() {}
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
    Ok(())
}

async fn within(limits: Limits, request: Request, next: Next) -> Response {
    let length = request.headers().get(axum::http::header::CONTENT_LENGTH);
    let too_large = length
        .and_then(|v| v.to_str().ok()?.parse::<usize>().ok())
        .is_some_and(|n| n > limits.body);
    if too_large {
        return problem(
            StatusCode::PAYLOAD_TOO_LARGE,
            "too_large",
            "the body is larger than this server takes",
        );
    }
    match timeout(limits.request, next.run(request)).await {
        Ok(response) => response,
        Err(_) => problem(
            StatusCode::GATEWAY_TIMEOUT,
            "timeout",
            "the request took too long",
        ),
    }
}
