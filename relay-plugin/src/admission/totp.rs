//! Fifth step: the second factor (protocol.md §6.3). The issuer vouches for it in `amr`, or the relay verifies an RFC 6238 code itself;
//! policy says which.
//!
//! A code counts within one step around the time of receipt, and each step once: its use is recorded create-once here, for every action, and
//! the reserve transaction moves `last_step` on. A wrong code is counted, and locks, in one transaction with its audit record
//! and the refusal of its event.

use std::time::Duration;

use keyturn_proto::canonical::length_prefixed;
use keyturn_proto::{ErrorClass, Npub, ServiceRequest, UnixMs};
use keyturn_store::documents::{AdminDoc, AuditRecord};
use keyturn_store::store::{BurnNonce, Burned, Store};
use sha2::{Digest as _, Sha256};

use super::jwt::Proof;
use super::opened::Opened;
use super::refused::Refused;
use super::settings::{TotpPolicy, TotpSettings};
use super::totp_seed::{STEP_SECS, SeedKey};

/// How long the use of a step is remembered; its code is dead after two minutes.
const KEPT: Duration = Duration::from_secs(24 * 3600);

/// Why a wrong code is refused.
const WRONG: &str = "totp.wrong";
/// The audit word of a use.
const USED: &str = "totp.used";

/// What the check works on.
pub(super) struct SecondFactor<'a> {
    pub(super) store: &'a dyn Store,
    pub(super) settings: TotpSettings,
    pub(super) seed_key: &'a SeedKey,
    pub(super) opened: &'a Opened,
    pub(super) admin: &'a AdminDoc,
}

impl SecondFactor<'_> {
    /// The step that a verified code belongs to, or `None` when the proof alone satisfies policy. `audit` makes the record of a refusal or a use, for a reason.
    pub(super) async fn check(
        &self,
        request: &ServiceRequest,
        proof: &Proof,
        audit: impl Fn(&'static str) -> AuditRecord,
        now: UnixMs,
    ) -> Result<Option<u64>, Refused> {
        let code_is_checkable = request.totp.is_some() && self.admin.totp.is_some();
        let (proof_must_say, code_needed) = match self.settings.policy {
            TotpPolicy::Proof => (true, false),
            TotpPolicy::Relay => (false, true),
            TotpPolicy::Both => (true, true),
            TotpPolicy::Either => (false, !proof.totp || code_is_checkable),
        };
        if proof_must_say && !proof.totp {
            return Err(Refused::unauthorized("jwt.amr"));
        }
        if !code_needed {
            return Ok(None);
        }
        let code = request
            .totp
            .as_ref()
            .ok_or(Refused::unauthorized("totp.missing"))?;
        let step = self.verify(code.expose(), &audit, now).await?;
        self.use_up(step, audit, now).await?;
        Ok(Some(step))
    }

    /// The step the code belongs to.
    async fn verify(
        &self,
        code: &str,
        audit: impl Fn(&'static str) -> AuditRecord,
        now: UnixMs,
    ) -> Result<u64, Refused> {
        let state = self
            .admin
            .totp
            .as_ref()
            .ok_or(Refused::unauthorized("totp.not_enrolled"))?;
        // While locked nothing is compared and nothing is counted: a flood can neither guess nor prolong the lock.
        if let Some(until) = state.locked_until.filter(|until| *until > now) {
            return Err(locked(until, now));
        }
        let seed = self
            .seed_key
            .open(&state.seed_ciphertext, &self.admin.npub)
            .map_err(|_| Refused::internal("totp.seed_unreadable", 60_000))?;
        let here = self.opened.received_at.as_secs() / STEP_SECS;
        let window = here.saturating_sub(1)..=here.saturating_add(1);
        if let Some(step) = seed.matching_step(code, window) {
            return Ok(step);
        }
        let after = self
            .store
            .totp_failed(
                self.admin.npub,
                self.settings.max_failures,
                u64::try_from(self.settings.lock.as_millis()).unwrap_or(u64::MAX),
                now,
                audit(WRONG),
                Some(super::refuse(
                    self.opened,
                    ErrorClass::UnauthorizedRequest,
                    WRONG,
                    now,
                )),
            )
            .await?;
        let refused = Refused::unauthorized(WRONG).audited();
        Err(
            match after
                .totp
                .and_then(|totp| totp.locked_until)
                .filter(|until| *until > now)
            {
                Some(until) => refused.retry_after(until.0 - now.0),
                None => refused,
            },
        )
    }

    /// RFC 6238 §5.2: each step once. The record names the event, so that a resumed event finds its own use and goes on.
    async fn use_up(
        &self,
        step: u64,
        audit: impl Fn(&'static str) -> AuditRecord,
        now: UnixMs,
    ) -> Result<(), Refused> {
        const REPLAYED: Refused = Refused::unauthorized("totp.replayed");
        let burnt = self
            .store
            .burn_nonce(BurnNonce {
                nonce_hash: hex::encode(step_id(&self.admin.npub, step)),
                owner_event: self.opened.event_id.clone(),
                expires_at: now.plus(KEPT),
                now,
                audit: AuditRecord {
                    event: USED.to_owned(),
                    ..audit("accepted")
                },
            })
            .await?;
        if burnt == Burned::Reused {
            return Err(REPLAYED);
        }
        // `last_step` equal to ours with the use recorded as ours: this very event was reserved before a crash. The store knows it as a repeat.
        let last = self.admin.totp.as_ref().and_then(|totp| totp.last_step);
        if last.is_some_and(|last| step < last) {
            return Err(REPLAYED);
        }
        Ok(())
    }
}

fn locked(until: UnixMs, now: UnixMs) -> Refused {
    Refused::unauthorized("totp.locked").retry_after(until.0.saturating_sub(now.0))
}

/// Names the use of one step in the store's create-once records, apart from every challenge.
fn step_id(npub: &Npub, step: u64) -> [u8; 32] {
    let fields = length_prefixed(&[b"keyturn/totp-step/1", npub.as_bytes(), &step.to_be_bytes()]);
    Sha256::digest(fields.as_slice()).into()
}
