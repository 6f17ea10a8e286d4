//! What the core stands on, as the tests want it: time, the gate, the MAC key.

use super::*;

/// Real time, which a test can put forward.
#[derive(Default)]
pub(in super::super) struct TestClock {
    ahead: AtomicI64,
    moved: Notify,
}

impl TestClock {
    pub(in super::super) fn forward(&self, by: Duration) {
        self.ahead
            .fetch_add(by.as_millis() as i64, Ordering::SeqCst);
        self.moved.notify_waiters();
    }
}

#[async_trait]
impl Clock for TestClock {
    fn now(&self) -> UnixMs {
        let real = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap()
            .as_millis() as i64;
        UnixMs((real + self.ahead.load(Ordering::SeqCst)) as u64)
    }

    async fn sleep_until(&self, at: UnixMs) {
        loop {
            let moved = self.moved.notified();
            let left = at.since(self.now());
            if left.is_zero() {
                return;
            }
            tokio::select! {
                () = moved => {}
                () = tokio::time::sleep(left) => {}
            }
        }
    }
}

/// A request with this reason is refused, and only counted.
pub(in super::super) const COUNTED: &str = "counted";

/// Admission with its proofs left out: membership, enrolment and policy are the real ones.
pub(in super::super) struct OpenGate {
    pub(super) admission: Admission,
    pub(super) store: Arc<dyn Store>,
}

#[async_trait]
impl Gate for OpenGate {
    async fn admit(&self, opened: &Opened, now: UnixMs) -> Result<Permit, NotAdmitted> {
        let request: ServiceRequest = serde_json::from_str(&opened.json).unwrap();
        assert!(
            request.params.rotation_reason != "panic",
            "as the test asked"
        );
        if request.params.rotation_reason == COUNTED {
            return Err(NotAdmitted::Counted(Refusal {
                class: ErrorClass::PolicyViolation,
                reason: "limits.breaker_open",
                retry_after_ms: Some(60_000),
            }));
        }
        let client = self
            .store
            .client(&request.client_id)
            .await
            .unwrap()
            .unwrap();
        let leaf = Leaf {
            npub: opened.sender,
            signature_key: opened.leaf_signature_key.clone(),
        };
        self.admission
            .authorise_leaf(&client, &opened.group.alias, &leaf)
            .await
            .map_err(NotAdmitted::Refused)?;
        let terms = (
            request.params.not_before.unwrap_or(now),
            request
                .params
                .grace_duration_ms
                .unwrap_or(GRACE.as_millis() as u64),
        );
        let expires = opened.received_at.plus(Duration::from_secs(300));
        // What admission writes for a request that it grants.
        let burn = BurnNonce {
            nonce_hash: opened.event_id.clone(),
            owner_event: opened.event_id.clone(),
            expires_at: expires,
            audit: Entry::of_opened(now, opened, "nonce.burnt", "").done(),
            now,
        };
        self.store
            .burn_nonce(burn)
            .await
            .map_err(|_| NotAdmitted::Unrecorded)?;
        Ok(Permit::unproven(opened, request, client, terms, expires))
    }

    async fn recheck(&self, rotation: &RotationDoc, roster: &[Leaf]) -> Result<ClientDoc, Refusal> {
        self.admission.recheck(rotation, roster).await
    }

    async fn authorise_roster(
        &self,
        client: &ClientDoc,
        alias: &str,
        leaves: &[Leaf],
    ) -> Result<Vec<Npub>, (Option<Npub>, Refusal)> {
        self.admission.authorise_roster(client, alias, leaves).await
    }
}

/// A MAC key that can be away.
pub(in super::super) struct MoodyKey {
    pub(super) key: Arc<LocalMacKey>,
    pub(in super::super) away: AtomicBool,
}

#[async_trait]
impl MacKey for MoodyKey {
    async fn sign(
        &self,
        client: &ClientId,
        version: &VersionId,
        secret: &str,
    ) -> Result<Maced, MacError> {
        if self.away.load(Ordering::SeqCst) {
            return Err(MacError::Unavailable {
                cause: "the test said so",
                retryable: true,
            });
        }
        self.key.sign(client, version, secret).await
    }

    async fn verify(
        &self,
        key_ref: &str,
        client: &ClientId,
        version: &VersionId,
        secret: &str,
        hash: &SecretHash,
    ) -> Result<bool, MacError> {
        self.key
            .verify(key_ref, client, version, secret, hash)
            .await
    }

    fn primary_ref(&self) -> String {
        self.key.primary_ref()
    }
}

pub(in super::super) fn admission_settings() -> admission::Settings {
    let hour = Duration::from_secs(3600);
    let second = Duration::from_secs(1);
    admission::Settings {
        issuer: IssuerSettings {
            jwks: JwksSource::File("/nonexistent/jwks.json".into()),
            audience: "rust-nostr-relay".to_owned(),
            issuer: None,
            algorithms: vec![ProofAlgorithm::EdDsa],
            leeway: second,
            max_lifetime: second * 300,
            cache_ttl: hour,
            stale_for: hour,
            refresh_min_interval: second,
            fetch_timeout: second,
        },
        totp: TotpSettings {
            policy: TotpPolicy::Proof,
            max_failures: 5,
            lock: hour,
        },
        challenge_ttl: hour,
        policy: PolicySettings {
            default_grace: GRACE,
            max_grace: hour * 24 * 7,
            min_delay: Duration::ZERO,
            min_interval: Duration::ZERO,
            denylist: Vec::new(),
        },
        limits: LimitSettings {
            client_per_hour: 1000,
            admin_per_hour: 1000,
            breaker_refusals: 1000,
            global_breaker_refusals: 1000,
            breaker_window: hour,
            breaker_pause: hour,
        },
    }
}
