//! The calls: each under the gate, with our token, counted and timed.

use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use reqwest::header::HeaderValue;
use tokio::time::Instant;

use super::gate::Gate;
use super::role_ids::RoleIds;
use super::settings::VaultSettings;
use super::token::{Flight, Held};
use super::transport::{Answer, Call, Failure, Transport, VaultSetupError};
use super::wire::{self, RoleId, SealStatus};
use crate::devices::issuer::{Reason, RoleName};
use crate::metrics::{ISSUER_CALLS, ISSUER_SECONDS};

pub(super) struct Client {
    pub(super) settings: Arc<VaultSettings>,
    pub(super) held: RwLock<Option<Arc<Held>>>,
    pub(super) flight: tokio::sync::Mutex<Flight>,
    transport: Transport,
    gate: Gate,
    role_ids: Mutex<RoleIds>,
    /// One look-up at a time: a storm of devices asks for the same id.
    role_flight: tokio::sync::Mutex<()>,
}

impl Client {
    pub(super) fn new(settings: VaultSettings) -> Result<Self, VaultSetupError> {
        let settings = Arc::new(settings);
        Ok(Self {
            transport: Transport::new(Arc::clone(&settings))?,
            gate: Gate::new(settings.max_in_flight, settings.max_wait),
            held: RwLock::default(),
            flight: tokio::sync::Mutex::default(),
            role_ids: Mutex::default(),
            role_flight: tokio::sync::Mutex::default(),
            settings,
        })
    }

    /// One exchange under the gate. `op` is a metric's label.
    pub(super) async fn exchange(
        &self,
        op: &'static str,
        call: &Call,
        token: Option<&HeaderValue>,
    ) -> Result<Answer, Failure> {
        let result = match self.gate.enter().await {
            Ok(pass) => {
                let started = Instant::now();
                let outcome = self.transport.send(call, token).await;
                let took = started.elapsed().as_secs_f64();
                metrics::histogram!(ISSUER_SECONDS, "op" => op).record(took);
                pass.report(&outcome);
                outcome
            }
            Err(failure) => Err(failure),
        };
        let failure = match &result {
            Ok(answer) => answer.failure(),
            Err(failure) => Some(*failure),
        };
        let word = failure.map_or("ok", |failure| failure.why.word());
        metrics::counter!(ISSUER_CALLS, "op" => op, "result" => word).increment(1);
        if let Some(failure) = failure {
            let status = result.as_ref().map_or(0, |answer| answer.status.as_u16());
            tracing::debug!(
                op,
                reason = failure.why.word(),
                status,
                "a call to the issuer failed"
            );
        }
        result
    }

    /// One exchange with our token; a refusal that the token is to blame for is tried again with a new one.
    pub(super) async fn call(&self, op: &'static str, call: &Call) -> Result<Answer, Failure> {
        let held = self.token().await?;
        let answer = self.exchange(op, call, Some(held.header())).await?;
        if answer.status.as_u16() != 403 {
            return Ok(answer);
        }
        let fresh = self.refused(&held).await?;
        self.exchange(op, call, Some(fresh.header())).await
    }

    /// A path below the role.
    pub(super) fn role_path(&self, role: &RoleName, rest: &str) -> String {
        format!("auth/{}/role/{role}/{rest}", self.settings.mount)
    }

    pub(super) async fn role_id(&self, role: &RoleName) -> Result<String, Failure> {
        if let Some(known) = self.known_role_id(role) {
            return Ok(known);
        }
        let _flight = self.role_flight.lock().await;
        if let Some(known) = self.known_role_id(role) {
            return Ok(known);
        }
        let asked = Instant::now();
        let role_id = self.read_role_id(role).await?;
        self.role_ids().learn(role.clone(), role_id.clone(), asked);
        Ok(role_id)
    }

    /// Past what is remembered: that the role is there now.
    pub(super) async fn read_role_id(&self, role: &RoleName) -> Result<String, Failure> {
        let call = Call::get(self.role_path(role, "role-id"));
        let answer = self.call("role_id", &call).await?.good()?;
        let RoleId { role_id } = wire::data(&answer)?;
        Ok(role_id)
    }

    pub(super) fn forget_role_id(&self, role: &RoleName) {
        self.role_ids().forget(role);
    }

    fn known_role_id(&self, role: &RoleName) -> Option<String> {
        let known = self.role_ids();
        known.known(role, Instant::now()).map(str::to_owned)
    }

    fn role_ids(&self) -> std::sync::MutexGuard<'_, RoleIds> {
        self.role_ids.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether Vault itself could serve us. Asked past the gate, so that it says something while the circuit is open.
    pub(super) async fn server_health(&self) -> Result<(), Failure> {
        let health = Call {
            namespaced: false,
            ..Call::get("sys/health".to_owned())
        };
        let answer = self.transport.send(&health, None).await?;
        match answer.status.as_u16() {
            // A standby forwards, or redirects, what we ask it.
            429 | 473 => Ok(()),
            // Not every server of this interface has it.
            404 => {
                let status = Call {
                    namespaced: false,
                    ..Call::get("sys/seal-status".to_owned())
                };
                let answer = self.transport.send(&status, None).await?.good()?;
                let SealStatus { sealed } =
                    serde_json::from_slice(&answer.body).map_err(|_| Failure::garbled())?;
                if sealed {
                    return Err(Failure::retryable(Reason::Sealed, Duration::from_secs(10)));
                }
                Ok(())
            }
            _ => answer.good().map(drop),
        }
    }
}
