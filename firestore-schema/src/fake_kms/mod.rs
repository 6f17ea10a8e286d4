//! A server on loopback with the documented REST methods of Cloud KMS that a MAC key needs, for tests of the real client.
//!
//! It does what Google documents: `macSign` and `macVerify` with real HMAC-SHA-256, checksums checked and returned, int64 as text, bytes as base64, errors as
//! `{"error": {code, message, status, details}}`, states and permissions enforced; and it fails as told ([`Failure`]), counting every call. What it must never
//! do is be kinder than the real service: a request that Google would refuse is refused here.

mod keys;
mod methods;
mod server;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use self::keys::Key;
pub use self::keys::{Algorithm, Purpose, State};
use crate::mac::cloud_kms::KeyName;

/// What is asked of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Method {
    /// `:macSign`.
    Sign,
    /// `:macVerify`.
    Verify,
    /// `GET …/cryptoKeys/K`.
    GetKey,
    /// `GET …/cryptoKeys/K/cryptoKeyVersions`.
    ListVersions,
}

/// How a call goes wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The request's checksums were not used, as if they had not arrived.
    Unverified,
    /// Only the MAC's checksum was not used.
    MacUnverified,
    /// The answer's MAC and its checksum differ.
    CorruptMac,
    /// The answer has no checksum.
    NoChecksum,
    /// The answer's name is another version's.
    OtherName,
    /// `success` and `verifiedSuccessIntegrity` differ.
    Contradiction,
    /// A refusal as Google words it.
    Status {
        /// HTTP status.
        http: u16,
        /// google.rpc.Code.
        code: &'static str,
        /// google.rpc.RetryInfo.
        retry_after: Option<Duration>,
    },
    /// An HTTP status with a body of a proxy.
    Proxy(u16),
    /// The right answer, late.
    Slow(Duration),
    /// No answer.
    Hang,
    /// The connection is reset instead of an answer.
    Reset,
    /// 200, and no JSON.
    Garbage,
    /// 200, and JSON that breaks off.
    Truncated,
    /// An error whose message repeats the request, as a careless service or proxy might.
    Echo,
    /// 307 to another address.
    Redirect(String),
}

/// The server. Dropping it ends it.
pub struct FakeKms {
    address: SocketAddr,
    key: KeyName,
    inner: Arc<Inner>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct Inner {
    state: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    keys: BTreeMap<String, Key>,
    /// Taken first, one for each call.
    next: VecDeque<Failure>,
    /// What every call meets once those are used up, by method; `None` stands for all.
    standing: BTreeMap<Option<Method>, Failure>,
    denied: BTreeSet<&'static str>,
    calls: BTreeMap<Method, u64>,
    authorization: Option<String>,
    /// Full names of versions that were sent a payload.
    asked: Vec<String>,
}

impl FakeKms {
    /// Starts on a free port, with one key for MACs that has one version.
    ///
    /// # Errors
    /// The operating system's.
    pub async fn start() -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let inner = Arc::new(Inner::default());
        let task = tokio::spawn(server::serve(listener, Arc::clone(&inner)));
        let name = "projects/test/locations/europe-west3/keyRings/ring/cryptoKeys/pepper";
        let key: KeyName = name.parse().map_err(io::Error::other)?;
        let server = Self {
            address,
            key,
            inner,
            task,
        };
        server.create_key(&server.key, Purpose::Mac, Algorithm::HmacSha256);
        server.add_version(&server.key);
        Ok(server)
    }

    /// For `mac.endpoint`.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The key that is there from the start.
    #[must_use]
    pub const fn key(&self) -> &KeyName {
        &self.key
    }

    /// Another key, without versions.
    pub fn create_key(&self, name: &KeyName, purpose: Purpose, algorithm: Algorithm) {
        let key = Key::new(purpose, algorithm);
        self.inner.lock().keys.insert(name.as_str().to_owned(), key);
    }

    /// A further version with random material; its number.
    pub fn add_version(&self, key: &KeyName) -> NonZeroU64 {
        let mut material = [0; 32];
        // Test keys: a generator that fails leaves one that still differs by its number.
        let _ = getrandom::fill(&mut material);
        self.add_version_of(key, &material)
    }

    /// A further version with material of the caller's choice; its number.
    pub fn add_version_of(&self, key: &KeyName, material: &[u8; 32]) -> NonZeroU64 {
        let mut held = self.inner.lock();
        let added = held.keys.get_mut(key.as_str()).map(|key| key.add(material));
        added.unwrap_or(NonZeroU64::MIN)
    }

    /// Changes what a version is good for.
    pub fn set_state(&self, key: &KeyName, number: NonZeroU64, state: State) {
        if let Some(key) = self.inner.lock().keys.get_mut(key.as_str()) {
            key.set(number, state);
        }
    }

    /// Takes a right away, by its IAM name.
    pub fn deny(&self, permission: &'static str) {
        self.inner.lock().denied.insert(permission);
    }

    /// Gives a right back.
    pub fn allow(&self, permission: &'static str) {
        self.inner.lock().denied.remove(permission);
    }

    /// Lets the next calls fail so, one after the other.
    pub fn fail_next(&self, failures: impl IntoIterator<Item = Failure>) {
        self.inner.lock().next.extend(failures);
    }

    /// Lets every call fail so until [`Self::heal`].
    pub fn fail(&self, failure: Failure) {
        self.inner.lock().standing.insert(None, failure);
    }

    /// The same for one method.
    pub fn fail_on(&self, method: Method, failure: Failure) {
        self.inner.lock().standing.insert(Some(method), failure);
    }

    /// From now on everything works, but for what is denied.
    pub fn heal(&self) {
        let mut held = self.inner.lock();
        held.next.clear();
        held.standing.clear();
    }

    /// Calls of a method, failed ones included.
    #[must_use]
    pub fn calls(&self, method: Method) -> u64 {
        self.inner.lock().calls.get(&method).copied().unwrap_or(0)
    }

    /// The last `authorization` header.
    #[must_use]
    pub fn authorization(&self) -> Option<String> {
        self.inner.lock().authorization.clone()
    }

    /// Full names of the versions that payloads were sent to, in order.
    #[must_use]
    pub fn asked(&self) -> Vec<String> {
        self.inner.lock().asked.clone()
    }
}

impl Drop for FakeKms {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Held> {
        // Every change is made in one step.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    fn failure(&mut self, method: Method) -> Option<Failure> {
        let standing = || {
            let of_method = self.standing.get(&Some(method));
            of_method.or_else(|| self.standing.get(&None)).cloned()
        };
        match self.next.front() {
            Some(_) => self.next.pop_front(),
            None => standing(),
        }
    }
}
