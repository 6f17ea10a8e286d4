//! Admission: request → membership → jwt → replay → totp → policy → limits, ending in a [`Permit`].
//!
//! Nothing is generated, stored or sealed without a permit, and only this module can make one. A refusal names its finer reason for the audit
//! trail and only its class for the requester. What a refused request leaves behind is its audit record, the use of its challenge and TOTP
//! step, and the count of a wrong code: nothing else.
//!
//! Read the steps in that order, one file each. Beside them: [`challenge`] (issued to everybody, checked in `jwt`), `jws`, `jwk` and `jwks`
//! (signature, keys, their cache), [`totp_seed`] (seeds at rest), `breaker` (who is not listened to), [`crate::trail`] (how refusals are recorded),
//! [`recovery`] (judging again without proofs).

mod breaker;
pub mod challenge;
mod configured;
mod jwk;
mod jwks;
mod jws;
mod jwt;
mod limits;
pub mod membership;
pub mod opened;
pub mod permit;
mod policy;
pub mod recovery;
mod refused;
mod replay;
pub mod request;
#[cfg(any(test, feature = "test-support"))]
pub mod scenarios;
pub mod settings;
#[cfg(test)]
mod tests;
mod totp;
pub mod totp_seed;

use std::sync::Arc;
use std::time::Duration;

use keyturn_proto::nonce::Challenge;
use keyturn_proto::{ClientId, ErrorClass, RotationId, ServiceRequest, UnixMs, canonical};
use keyturn_store::documents::{Actor, AuditRecord};
use keyturn_store::store::{Decision, Refuse, Store};

pub use challenge::{ChallengeKey, Challenger, NoRandomness};
pub use jwks::{IssuerReport, JwksError, examine as examine_issuer};
pub use membership::Leaf;
pub use opened::{GroupContext, Opened};
pub use permit::{NotAdmitted, Permit, Refusal};
pub use request::hints;
pub use settings::Settings;
pub use totp_seed::SeedKey;

use crate::metrics::{REFUSALS, REQUESTS};
use crate::trail::Trail;
use refused::Refused;

/// The secret keys that admission works with.
pub struct Keys {
    /// Makes and checks challenges; the same on every instance.
    pub challenge: ChallengeKey,
    /// Opens the TOTP seeds.
    pub totp_seed: SeedKey,
}

/// The gate. One per process, shared by every carriage of requests.
pub struct Admission {
    store: Arc<dyn Store>,
    settings: Settings,
    challenger: Challenger,
    seed_key: SeedKey,
    jwks: jwks::Jwks,
    limits: limits::Limits,
    trail: Trail,
}

impl Admission {
    /// Sets the gate up; asks nobody yet.
    ///
    /// # Errors
    /// [`JwksError::Client`] when no HTTP client can be made.
    pub fn new(store: Arc<dyn Store>, settings: Settings, keys: Keys) -> Result<Self, JwksError> {
        let Keys {
            challenge,
            totp_seed,
        } = keys;
        Ok(Self {
            challenger: Challenger::new(challenge, settings.challenge_ttl, settings.issuer.leeway),
            seed_key: totp_seed,
            jwks: jwks::Jwks::new(&settings.issuer)?,
            limits: limits::Limits::new(settings.limits),
            trail: Trail::new(Arc::clone(&store)),
            store,
            settings,
        })
    }

    /// A fresh challenge for `GET /kr/v1/challenge`.
    ///
    /// # Errors
    /// [`NoRandomness`].
    pub fn challenge(&self, now: UnixMs) -> Result<Challenge, NoRandomness> {
        self.challenger.issue(now)
    }

    /// Fetches the issuer's keys now: for readiness and `doctor`.
    ///
    /// # Errors
    /// [`JwksError`].
    pub async fn probe_issuer(&self, now: UnixMs) -> Result<(), JwksError> {
        self.jwks.probe(now).await
    }

    /// Judges one request. A refusal is already audited and counted when this returns it.
    ///
    /// Dropping the future half-way is safe: the same event judged again finds the uses it recorded.
    ///
    /// # Errors
    /// [`NotAdmitted`]: the [`Refusal`] to answer ([`hints`] say whom and about what), or that it is to be judged again.
    pub async fn admit(&self, opened: &Opened, now: UnixMs) -> Result<Permit, NotAdmitted> {
        match self.judge(opened, now).await {
            Ok(permit) => {
                let action = permit.action().as_str();
                metrics::counter!(REQUESTS, "action" => action, "result" => "admitted")
                    .increment(1);
                Ok(permit)
            }
            Err(refused) => Err(self.refused(opened, refused, now).await),
        }
    }

    /// The steps, in order. Cheap ones first: a sender that trips the breaker costs no parsing and no cryptography.
    async fn judge(&self, opened: &Opened, now: UnixMs) -> Result<Permit, Refused> {
        self.limits.listen_to(&opened.leaf_signature_key, now)?;
        let request = request::parse(opened)?;
        self.limits.listen_to_anybody(request.action_type, now)?;
        let store = self.store.as_ref();
        let member = membership::check(store, opened, &request.client_id).await?;
        let issuer = &self.settings.issuer;
        let proof =
            jwt::verify(&self.jwks, &self.challenger, issuer, opened, &request, now).await?;
        let named = (
            Some(request.action_id.clone()),
            Some(request.client_id.clone()),
        );
        let audit = |reason| record(opened, reason, named.clone(), now);
        let burnt = AuditRecord {
            event: replay::BURNT.to_owned(),
            ..audit(request.action_type.as_str())
        };
        replay::burn(store, &proof.challenge, opened, now, burnt).await?;
        let second_factor = totp::SecondFactor {
            store,
            settings: self.settings.totp,
            seed_key: &self.seed_key,
            opened,
            admin: &member.admin,
        };
        let totp_step = second_factor.check(&request, &proof, audit, now).await?;
        let terms = policy::judge(
            &self.settings.policy,
            &member.client,
            request.action_type,
            &request.params,
            opened.received_at,
            now,
        )?;
        self.limits.spend(
            &opened.event_id,
            &request.client_id,
            opened.sender,
            request.action_type,
            now,
        )?;
        Ok(permit(opened, request, member, &proof, totp_step, terms))
    }

    /// Audits and counts a refusal. What is told of it follows from what is recorded.
    async fn refused(&self, opened: &Opened, refused: Refused, now: UnixMs) -> NotAdmitted {
        let Refusal {
            class,
            reason,
            retry_after_ms: _,
        } = refused.refusal;
        let recorded = if refused.audited {
            true
        } else {
            let decision = Decision {
                audit: record(opened, reason, hints(opened), now),
                refuses: Some(refuse(opened, class, reason, now)),
            };
            let (sender, event) = (opened.sender, &opened.event_id);
            if PAUSES.contains(&reason) {
                self.trail.note(sender, reason, event, decision, now).await
            } else {
                let recorded = if class == ErrorClass::InternalError {
                    // No breaker counts what is our failure.
                    let trail = &self.trail;
                    trail
                        .decide_within(sender, reason, event, decision, now)
                        .await
                } else {
                    self.trail.decide(decision).await.map(|()| true)
                };
                let Ok(recorded) = recorded else {
                    return NotAdmitted::Unrecorded;
                };
                recorded
            }
        };
        let action = request::action(opened);
        metrics::counter!(REQUESTS, "action" => action, "result" => class.as_str()).increment(1);
        metrics::counter!(REFUSALS, "reason" => reason).increment(1);
        self.limits.note(&opened.leaf_signature_key, &refused, now);
        if !recorded {
            return NotAdmitted::Counted(refused.refusal);
        }
        // The log follows the trail: a flood fills neither.
        tracing::info!(
            class = class.as_str(), reason, sender = %opened.sender, group = opened.group.alias,
            event = opened.event_id, "request refused"
        );
        NotAdmitted::Refused(refused.refusal)
    }

    /// Writes the summaries of refusals that have no record of their own ([`crate::trail`]). Call it now and then, and with `all` at shutdown.
    pub async fn flush_trail(&self, now: UnixMs, all: bool) {
        self.trail.flush(now, all).await;
    }
}

/// How long a refused event stays refused: as long as stored events are looked at again (marmot.md), and a message that was opened can wait.
const REFUSED_FOR: Duration = Duration::from_secs(45 * 86_400);

/// Refusals of a sender, or of everybody, that is not listened to: nothing was judged, and nothing else limits how many there are.
pub(crate) const PAUSES: [&str; 2] = ["limits.breaker_open", "limits.global_breaker_open"];

/// What makes every instance refuse the event that was refused.
pub(crate) fn refuse(opened: &Opened, class: ErrorClass, reason: &str, now: UnixMs) -> Refuse {
    Refuse {
        event_id: opened.event_id.clone(),
        class,
        reason: reason.to_owned(),
        expires_at: now.plus(REFUSED_FOR),
    }
}

fn permit(
    opened: &Opened,
    request: ServiceRequest,
    member: membership::Member,
    proof: &jwt::Proof,
    totp_step: Option<u64>,
    terms: policy::Terms,
) -> Permit {
    let digest = canonical::request_digest(
        request.action_type,
        &request.client_id,
        &request.action_id,
        &request.params,
        &opened.group.mls_group_id,
    );
    Permit {
        action: request.action_type,
        action_id: request.action_id,
        params: request.params,
        requester: opened.sender,
        client: member.client,
        group: opened.group.clone(),
        event_id: opened.event_id.clone(),
        request_digest: hex::encode(digest),
        totp_step,
        proof_expires_at: proof.expires_at,
        grace_ms: terms.grace_ms,
        not_before: terms.not_before,
        min_interval_ms: terms.min_interval_ms,
    }
}

/// The audit record of a refusal: who, what, when, why. Never a token or a code.
fn record(
    opened: &Opened,
    reason: &'static str,
    (rotation_id, client_id): (Option<RotationId>, Option<ClientId>),
    now: UnixMs,
) -> AuditRecord {
    AuditRecord {
        at: now,
        actor: Actor::Admin {
            npub: opened.sender,
        },
        event: crate::trail::REFUSED.to_owned(),
        reason: reason.to_owned(),
        client_id,
        rotation_id,
        version_id: None,
        group: Some(opened.group.alias.clone()),
        nostr_event: Some(opened.event_id.clone()),
        device: None,
    }
}
