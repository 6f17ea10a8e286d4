//! A local server that does what the documentation of Vault's HTTP API says, as far as the issuer uses it, and misbehaves on request.
//!
//! Unlike `rvault` it enforces policies (with `+` and `*`), namespaces, wrapping, token lifetimes and renewal, expires secret_ids by itself, and answers errors in
//! Vault's own shape, its surprises included: a destroyed accessor that is destroyed again is a plain 500. Its clock can be stopped and set by hand.

mod approle;
mod fault;
mod policy;
mod state;
mod sys;
mod tokens;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse as _, Response};
use serde_json::{Value, json};

pub use fault::Fault;
pub use state::{Seen, Shape};

use self::state::Vault;
use super::Operator;

pub(super) const ROOT: &str = "hvs.root-of-the-test";

/// A running server. Dropping it ends it.
pub struct Api {
    address: SocketAddr,
    vault: Shared,
    serving: tokio::task::JoinHandle<()>,
}

type Shared = Arc<Mutex<Vault>>;

/// What a handler is asked.
struct Ask<'a> {
    method: &'a str,
    /// Below `/v1/`.
    path: &'a str,
    namespace: &'a str,
    token: &'a str,
    body: Value,
}

/// Status and body.
type Reply = Result<Value, (u16, Vec<String>)>;

fn refuse(status: u16, why: &str) -> (u16, Vec<String>) {
    (status, vec![why.to_owned()])
}

fn denied() -> (u16, Vec<String>) {
    refuse(403, "1 error occurred:\n\t* permission denied\n\n")
}

impl Api {
    pub async fn start() -> Self {
        let vault: Shared = Arc::default();
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0))
            .await
            .unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().fallback(serve).with_state(Arc::clone(&vault));
        let serving = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self {
            address,
            vault,
            serving,
        }
    }

    pub fn address(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Somebody with the root token.
    pub fn operator(&self) -> Operator {
        Operator::new(&self.address(), ROOT, None)
    }

    /// Misbehaves as told, to the next request that matches.
    pub fn fault(&self, fault: Fault) {
        self.with(|vault| vault.faults.push(fault));
    }

    /// No more misbehaviour.
    pub fn behave(&self) {
        self.with(|vault| vault.faults.clear());
    }

    /// From now on time passes here by [`Api::advance`] alone, so that a slow machine ends no lifetime too early.
    pub fn stop_clock(&self) {
        self.with(|vault| vault.clock = Some(vault.now()));
    }

    /// Sets a clock that stands still forward.
    pub fn advance(&self, by: Duration) {
        self.with(|vault| *vault.clock.as_mut().expect("a clock that stands still") += by);
    }

    pub fn seal(&self, sealed: bool) {
        self.with(|vault| vault.sealed = sealed);
    }

    /// From now on a standby that sends everybody to `active`.
    pub fn standby_of(&self, active: &str) {
        self.with(|vault| vault.active = Some(active.to_owned()));
    }

    /// Like a server before 1.9: wraps without saying which accessor.
    pub fn hide_wrapped_accessors(&self) {
        self.with(|vault| vault.names_wrapped = false);
    }

    /// Answers `sys/capabilities-self` in this shape.
    pub fn show_capabilities(&self, shape: Shape) {
        self.with(|vault| vault.shape = shape);
    }

    /// What was asked so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.with(|vault| vault.seen.clone())
    }

    pub fn forget_seen(&self) {
        self.with(|vault| vault.seen.clear());
    }

    /// Most requests that were under way at once.
    pub fn most_at_once(&self) -> usize {
        self.with(|vault| vault.most_at_once)
    }

    /// Every token, to look for them where they must not be.
    pub fn tokens(&self) -> Vec<String> {
        self.with(|vault| vault.tokens.keys().cloned().collect())
    }

    /// Wrapping tokens that nobody has exchanged and that still can be.
    pub fn wrapped(&self) -> Vec<String> {
        self.with(|vault| {
            let now = vault.now();
            let living = vault.wrapped.iter().filter(|(_, it)| now < it.ends);
            living.map(|(token, _)| token.clone()).collect()
        })
    }

    fn with<T>(&self, work: impl FnOnce(&mut Vault) -> T) -> T {
        work(&mut self.vault.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// Counts what is under way.
struct Present(Shared);

impl Present {
    fn enter(vault: &Shared) -> Self {
        let mut open = vault.lock().unwrap();
        open.present += 1;
        open.most_at_once = open.most_at_once.max(open.present);
        drop(open);
        Self(Arc::clone(vault))
    }
}

impl Drop for Present {
    fn drop(&mut self) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .present -= 1;
    }
}

async fn serve(
    State(vault): State<Shared>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let _present = Present::enter(&vault);
    let text = |name: &str| {
        headers
            .get(name)
            .and_then(|it| it.to_str().ok())
            .unwrap_or_default()
    };
    let path = uri.path().trim_start_matches("/v1/").to_owned();
    let namespace = text("x-vault-namespace").trim_matches('/').to_owned();
    let wrap_ttl: u64 = text("x-vault-wrap-ttl")
        .trim_end_matches('s')
        .parse()
        .unwrap_or(0);
    let (fault, active) = {
        let mut open = vault.lock().unwrap();
        open.seen.push(Seen {
            method: method.to_string(),
            path: path.clone(),
            namespace: namespace.clone(),
            wrap_ttl,
        });
        (open.fault_for(&path), open.active.clone())
    };
    let fault = match fault {
        Some(fault) if fault.delay().is_some() => {
            tokio::time::sleep(fault.delay().unwrap()).await;
            None
        }
        Some(fault) if !fault.after => return fault.misbehave().await,
        fault => fault,
    };
    if let Some(active) = active.filter(|_| path != "sys/health") {
        let location = format!("{active}{}", uri.path());
        return (StatusCode::TEMPORARY_REDIRECT, [("location", location)]).into_response();
    }
    let ask = Ask {
        method: method.as_str(),
        path: &path,
        namespace: &namespace,
        token: text("x-vault-token"),
        body: serde_json::from_slice(&body).unwrap_or(Value::Null),
    };
    let reply = {
        let mut open = vault.lock().unwrap();
        let reply = open.handle(&ask);
        if wrap_ttl > 0 {
            reply.map(|content| open.wrap(&path, content, Duration::from_secs(wrap_ttl)))
        } else {
            reply
        }
    };
    match fault {
        // It was done; only the answer goes astray.
        Some(fault) => fault.misbehave().await,
        None => answer(reply),
    }
}

fn answer(reply: Reply) -> Response {
    match reply {
        Ok(Value::Null) => StatusCode::NO_CONTENT.into_response(),
        Ok(mut content) => {
            let whole = content.as_object_mut().unwrap();
            // Fields that we do not know must not confuse the client.
            whole.insert(
                "request_id".into(),
                json!("7a7e0e1c-0000-0000-0000-000000000000"),
            );
            for (name, value) in [
                ("lease_id", json!("")),
                ("renewable", json!(false)),
                ("lease_duration", json!(0)),
                ("data", Value::Null),
                ("wrap_info", Value::Null),
                ("warnings", Value::Null),
                ("auth", Value::Null),
                ("mount_type", json!("approle")),
            ] {
                whole.entry(name).or_insert(value);
            }
            axum::Json(content).into_response()
        }
        Err((status, errors)) => {
            let status = StatusCode::from_u16(status).unwrap();
            (status, axum::Json(json!({ "errors": errors }))).into_response()
        }
    }
}
