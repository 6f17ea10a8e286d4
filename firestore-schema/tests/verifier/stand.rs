//! A verifier with everything it asks: a source whose answers the test sets, and a MAC key that does as it is told.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use keyturn_proto::{ClientId, PresentedSecret, Secret, UnixMs, VersionId};
use keyturn_store::documents::{ClientStatus, SnapshotEntry, VersionState};
use keyturn_store::mac::MacKey as _;
use keyturn_store::verifier::{
    ClientSnapshot, Settings, SnapshotSource, SourceError, Verified, Verifier, VerifyError, Which,
};

use super::mac::Counting;

pub const NOW: UnixMs = UnixMs(1_760_000_000_000);
pub const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
pub const CLIENT: &str = "ext-totp-svc";

pub fn after(ms: u64) -> UnixMs {
    UnixMs(NOW.0 + ms)
}

/// A source whose answer and failures the test sets.
#[derive(Clone, Default)]
pub struct Source(Arc<SourceState>);

#[derive(Default)]
struct SourceState {
    snapshot: Mutex<Option<ClientSnapshot>>,
    reads: AtomicU32,
    down: AtomicBool,
}

#[async_trait]
impl SnapshotSource for Source {
    async fn snapshot(&self, client: &ClientId) -> Result<Option<ClientSnapshot>, SourceError> {
        self.0.reads.fetch_add(1, Ordering::SeqCst);
        if self.0.down.load(Ordering::SeqCst) {
            return Err(SourceError { cause: "down" });
        }
        let snapshot = self.0.snapshot.lock().unwrap().clone();
        Ok(snapshot.filter(|_| client.as_str() == CLIENT))
    }
}

impl Source {
    pub fn set(&self, snapshot: Option<ClientSnapshot>) {
        *self.0.snapshot.lock().unwrap() = snapshot;
    }

    pub fn fails(&self, fails: bool) {
        self.0.down.store(fails, Ordering::SeqCst);
    }
}

/// A verifier with everything it asks.
pub struct Stand {
    pub source: Source,
    pub mac: Counting,
    pub verifier: Arc<Verifier<Source, Counting>>,
}

impl Stand {
    pub fn new(settings: Settings) -> Self {
        let (source, mac) = (Source::default(), Counting::new());
        let verifier = Verifier::new(source.clone(), mac.clone(), settings).unwrap();
        Self {
            source,
            mac,
            verifier: Arc::new(verifier),
        }
    }

    pub fn set(&self, status: ClientStatus, entries: Vec<SnapshotEntry>) {
        let snapshot = snapshot(status, entries);
        self.source.set(Some(snapshot));
        self.verifier.invalidate(&CLIENT.parse().unwrap());
    }

    pub async fn entry(&self, n: u32, state: VersionState, secret: &str) -> SnapshotEntry {
        let version_id = version(n);
        let client = CLIENT.parse().unwrap();
        let made = self.mac.sign(&client, &version_id, secret).await.unwrap();
        let generated = keyturn_proto::encoding::from_b64url_array::<32>("secret", secret).is_ok();
        SnapshotEntry {
            version_id,
            state,
            not_before: UnixMs(0),
            not_after: None,
            secret_hash: made.hash.as_str().to_owned(),
            mac_key_ref: made.key_ref,
            prefilter: generated.then(|| hex::encode(keyturn_proto::derive::prefilter(secret))),
            prehash: None,
        }
    }

    /// Reads of the source so far.
    pub fn reads(&self) -> u32 {
        self.source.0.reads.load(Ordering::SeqCst)
    }

    pub async fn try_at(
        &self,
        client: &str,
        secret: &str,
        now: UnixMs,
    ) -> Result<Verified, VerifyError> {
        let secret = PresentedSecret::new(secret);
        self.verifier.verify(client, &secret, HERE, now).await
    }

    pub async fn at(&self, secret: &str, now: UnixMs) -> Result<Verified, VerifyError> {
        self.try_at(CLIENT, secret, now).await
    }
}

pub fn snapshot(status: ClientStatus, entries: Vec<SnapshotEntry>) -> ClientSnapshot {
    ClientSnapshot {
        status,
        entries,
        revision: 0,
        coverage: None,
    }
}

pub fn version(n: u32) -> VersionId {
    format!("{n:026}").parse().unwrap()
}

pub fn fresh() -> String {
    Secret::generate().unwrap().expose().to_owned()
}

pub fn ok(n: u32, which: Which) -> Result<Verified, VerifyError> {
    Ok(Verified {
        version_id: version(n),
        which,
    })
}

pub const REFUSED: Result<Verified, VerifyError> = Err(VerifyError::Refused);

pub async fn live(s: &Stand, n: u32, now: UnixMs) -> Result<bool, VerifyError> {
    let client = CLIENT.parse().unwrap();
    s.verifier.is_version_live(&client, &version(n), now).await
}
