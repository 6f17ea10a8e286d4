//! A MAC key that counts, waits and fails as it is told.
#![allow(dead_code, reason = "each test needs some of it")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use keyturn_proto::{ClientId, VersionId};
use keyturn_store::mac::{LocalMacKey, MacError, MacKey, Maced, SecretHash};
use tokio::sync::{RwLock, RwLockWriteGuard};

/// A MAC key that counts, and waits while its gate is shut.
#[derive(Clone)]
pub struct Counting(Arc<CountingState>);

struct CountingState {
    key: LocalMacKey,
    calls: AtomicU32,
    /// Held for writing by a test that wants calls to wait.
    gate: RwLock<()>,
    down: AtomicBool,
}

impl Counting {
    pub fn new() -> Self {
        Self(Arc::new(CountingState {
            key: LocalMacKey::from_keys(&[7; 32], &[]),
            calls: AtomicU32::new(0),
            gate: RwLock::new(()),
            down: AtomicBool::new(false),
        }))
    }
    pub fn calls(&self) -> u32 {
        self.0.calls.load(Ordering::SeqCst)
    }

    /// Calls begun since this was asked last.
    pub fn taken(&self) -> u32 {
        self.0.calls.swap(0, Ordering::SeqCst)
    }

    pub fn fails(&self, fails: bool) {
        self.0.down.store(fails, Ordering::SeqCst);
    }

    /// Calls wait until this is dropped.
    pub async fn shut(&self) -> RwLockWriteGuard<'_, ()> {
        self.0.gate.write().await
    }

    /// Until it has been asked once.
    pub async fn asked(&self) {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
        while self.calls() == 0 {
            assert!(tokio::time::Instant::now() < deadline, "nobody asked");
            tokio::task::yield_now().await;
        }
    }
}

#[async_trait]
impl MacKey for Counting {
    async fn sign(
        &self,
        client: &ClientId,
        version: &VersionId,
        secret: &str,
    ) -> Result<Maced, MacError> {
        self.0.key.sign(client, version, secret).await
    }
    async fn verify(
        &self,
        key_ref: &str,
        client: &ClientId,
        version: &VersionId,
        secret: &str,
        hash: &SecretHash,
    ) -> Result<bool, MacError> {
        self.0.calls.fetch_add(1, Ordering::SeqCst);
        let _open = self.0.gate.read().await;
        if self.0.down.load(Ordering::SeqCst) {
            return Err(MacError::Unavailable {
                cause: "down",
                retryable: true,
            });
        }
        self.0
            .key
            .verify(key_ref, client, version, secret, hash)
            .await
    }
    fn primary_ref(&self) -> String {
        self.0.key.primary_ref()
    }
}
