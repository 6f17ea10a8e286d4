//! A gRPC proxy in front of the emulator that lets calls go wrong: before they arrive, after they were done, late, or never.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use h2::client::SendRequest;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::{HeaderMap, Request, Response};
use tokio::net::{TcpListener, TcpStream};

/// What happens to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It arrives, is done, and its answer is lost.
    AnswerLost,
    /// It never arrives, and the caller hears that the connection broke.
    CallLost,
    /// It is kept, and the caller hears nothing. [`Proxy::deliver`] brings it to the emulator.
    Kept,
    /// What was kept is brought to the emulator first, then this one.
    AfterKept,
    /// Nobody ever answers.
    Silence,
    /// Nothing: it is done and answered.
    #[allow(dead_code, reason = "not every test counts up to a fault")]
    Nothing,
    /// The server answers with this gRPC status, and does nothing.
    Status(u32),
    /// It arrives, is done, and somebody in between answers with this gRPC status.
    #[allow(dead_code, reason = "only the tests of the store itself ask for it")]
    DoneBut(u32),
    /// As [`Fault::Status`]; and from then on nothing may be read, until [`Proxy::heal`].
    #[allow(dead_code, reason = "likewise")]
    Blinding(u32),
}

/// gRPC status code.
const PERMISSION_DENIED: u32 = 7;

/// A call as it came.
struct Call {
    parts: http::request::Parts,
    body: Bytes,
}

/// What came back.
struct Answer {
    parts: http::response::Parts,
    body: Bytes,
    trailers: Option<HeaderMap>,
}

#[derive(Default)]
struct Plan {
    commits: VecDeque<Fault>,
    reads: VecDeque<Fault>,
    blind: bool,
    kept: Vec<Call>,
    seen: Vec<Bytes>,
}

/// The proxy. It lives as long as the test.
#[derive(Clone)]
pub struct Proxy {
    address: SocketAddr,
    upstream: SocketAddr,
    plan: Arc<Mutex<Plan>>,
}

impl Proxy {
    /// Between the store and the emulator at `endpoint`.
    pub async fn before(endpoint: &str) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let proxy = Self {
            address: listener.local_addr().unwrap(),
            upstream: endpoint.strip_prefix("http://").unwrap().parse().unwrap(),
            plan: Arc::default(),
        };
        let serving = proxy.clone();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(serving.clone().serve(socket));
            }
        });
        proxy
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The next commits go wrong like this, one after the other; those that follow do not.
    pub fn next_commits(&self, faults: impl IntoIterator<Item = Fault>) {
        self.plan.lock().unwrap().commits.extend(faults);
    }

    /// The same for everything else.
    pub fn next_reads(&self, faults: impl IntoIterator<Item = Fault>) {
        self.plan.lock().unwrap().reads.extend(faults);
    }

    /// Forgets what was planned.
    pub fn heal(&self) {
        let mut plan = self.plan.lock().unwrap();
        plan.commits.clear();
        plan.reads.clear();
        plan.blind = false;
    }

    /// Commits that came so far.
    pub fn commits(&self) -> u32 {
        u32::try_from(self.plan.lock().unwrap().seen.len()).unwrap()
    }

    /// The requests of these commits, as they came.
    #[allow(dead_code, reason = "not every test looks into them")]
    pub fn committed(&self) -> Vec<Bytes> {
        self.plan.lock().unwrap().seen.clone()
    }

    /// Brings what was kept to the emulator. Returns the gRPC statuses.
    pub async fn deliver(&self) -> Vec<String> {
        let kept = std::mem::take(&mut self.plan.lock().unwrap().kept);
        let mut statuses = Vec::new();
        for call in kept {
            let answer = forward(connect(self.upstream).await, call).await;
            let status = |headers: &HeaderMap| headers.get("grpc-status").cloned();
            let status =
                status(&answer.parts.headers).or_else(|| answer.trailers.as_ref().and_then(status));
            statuses.push(status.unwrap().to_str().unwrap().to_owned());
        }
        statuses
    }

    async fn serve(self, socket: TcpStream) {
        let Ok(mut connection) = h2::server::handshake(socket).await else {
            return;
        };
        let upstream = connect(self.upstream).await;
        while let Some(Ok((request, respond))) = connection.accept().await {
            tokio::spawn(self.clone().call(request, respond, upstream.clone()));
        }
    }

    async fn call(
        self,
        request: Request<RecvStream>,
        mut respond: SendResponse<Bytes>,
        upstream: SendRequest<Bytes>,
    ) {
        let (parts, body) = request.into_parts();
        let Some(body) = collect(body).await.map(|(body, _)| body) else {
            return;
        };
        let call = Call { parts, body };
        let fault = {
            let mut plan = self.plan.lock().unwrap();
            if call.parts.uri.path().ends_with("/Commit") {
                plan.seen.push(call.body.clone());
                let fault = plan.commits.pop_front();
                plan.blind |= matches!(fault, Some(Fault::Blinding(_)));
                fault
            } else if plan.blind {
                Some(Fault::Status(PERMISSION_DENIED))
            } else {
                plan.reads.pop_front()
            }
        };
        match fault {
            None | Some(Fault::Nothing) => answer(respond, forward(upstream, call).await),
            Some(Fault::AnswerLost) => {
                forward(upstream, call).await;
                respond.send_reset(Reason::INTERNAL_ERROR);
            }
            Some(Fault::CallLost) => respond.send_reset(Reason::INTERNAL_ERROR),
            Some(Fault::AfterKept) => {
                self.deliver().await;
                answer(respond, forward(upstream, call).await);
            }
            Some(fault @ (Fault::Status(code) | Fault::DoneBut(code) | Fault::Blinding(code))) => {
                if matches!(fault, Fault::DoneBut(_)) {
                    forward(upstream, call).await;
                }
                let refusal = Response::builder()
                    .header("content-type", "application/grpc")
                    .header("grpc-status", code)
                    // What a server says can hold anything.
                    .header("grpc-message", "CANARY-STATUS")
                    .body(())
                    .unwrap();
                respond.send_response(refusal, true).ok();
            }
            Some(Fault::Kept) => {
                self.plan.lock().unwrap().kept.push(call);
                hold(respond).await;
            }
            Some(Fault::Silence) => hold(respond).await,
        }
    }
}

/// Keeps the stream open until the caller gives up.
async fn hold(mut respond: SendResponse<Bytes>) {
    std::future::poll_fn(|context| respond.poll_reset(context))
        .await
        .ok();
}

async fn connect(upstream: SocketAddr) -> SendRequest<Bytes> {
    let socket = TcpStream::connect(upstream).await.unwrap();
    let (client, connection) = h2::client::handshake(socket).await.unwrap();
    tokio::spawn(connection);
    client
}

async fn forward(upstream: SendRequest<Bytes>, call: Call) -> Answer {
    let mut upstream = upstream.ready().await.unwrap();
    let request = Request::from_parts(call.parts, ());
    let (response, mut send) = upstream.send_request(request, false).unwrap();
    send.send_data(call.body, true).unwrap();
    let (parts, body) = response.await.unwrap().into_parts();
    let (body, trailers) = collect(body).await.unwrap();
    Answer {
        parts,
        body,
        trailers,
    }
}

fn answer(mut respond: SendResponse<Bytes>, answer: Answer) {
    let alone = answer.trailers.is_none() && answer.body.is_empty();
    let response = Response::from_parts(answer.parts, ());
    // The caller may have gone.
    let Ok(mut send) = respond.send_response(response, alone) else {
        return;
    };
    if !alone {
        let last = answer.trailers.is_none();
        send.send_data(answer.body, last).ok();
    }
    if let Some(trailers) = answer.trailers {
        send.send_trailers(trailers).ok();
    }
}

/// Everything that comes; `None` when it breaks off.
async fn collect(mut body: RecvStream) -> Option<(Bytes, Option<HeaderMap>)> {
    let mut all = Vec::new();
    while let Some(chunk) = body.data().await {
        let chunk = chunk.ok()?;
        body.flow_control().release_capacity(chunk.len()).ok()?;
        all.extend_from_slice(&chunk);
    }
    let trailers = body.trailers().await.ok()?;
    Some((all.into(), trailers))
}
