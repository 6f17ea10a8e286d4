//! Third step: the `jwt_proof` (protocol.md §6.2). Signed by the issuer for this relay, just now, for this sender, and for exactly this
//! request: a proof made for one action carries no other.
//!
//! Times are judged at the moment the request was received, also when it is taken up again after a restart.

use std::time::Duration;

use keyturn_proto::canonical::request_binding;
use keyturn_proto::proof::ProofClaims;
use keyturn_proto::{ServiceRequest, UnixMs, nonce};
use serde::de::IgnoredAny;
use subtle::ConstantTimeEq as _;

use super::challenge::{BadChallenge, Challenger, Checked};
use super::jwks::{Jwks, NoKey};
use super::jws;
use super::opened::Opened;
use super::refused::Refused;
use super::settings::IssuerSettings;

/// What a verified proof says.
pub(super) struct Proof {
    pub(super) challenge: Checked,
    pub(super) expires_at: UnixMs,
    /// Whether `amr` names `totp`; policy decides what that is worth.
    pub(super) totp: bool,
}

/// Verifies the proof in `request`.
pub(super) async fn verify(
    jwks: &Jwks,
    challenger: &Challenger,
    settings: &IssuerSettings,
    opened: &Opened,
    request: &ServiceRequest,
    now: UnixMs,
) -> Result<Proof, Refused> {
    let token = jws::parse(request.jwt_proof.expose(), &settings.algorithms)
        .map_err(Refused::unauthorized)?;
    let key = jwks
        .key(&token.kid, token.algorithm, now)
        .await
        .map_err(no_key)?;
    let payload = token.verify(&key).map_err(Refused::unauthorized)?;
    let claims: ProofClaims = serde_json::from_slice(&payload)
        .map_err(|_| Refused::unauthorized(wrong_claims(&payload)))?;
    judge(&claims, settings, challenger, opened, request).map_err(Refused::unauthorized)
}

/// The claims of a proof whose signature holds.
fn judge(
    claims: &ProofClaims,
    settings: &IssuerSettings,
    challenger: &Challenger,
    opened: &Opened,
    request: &ServiceRequest,
) -> Result<Proof, &'static str> {
    let ProofClaims {
        iss,
        aud,
        iat,
        nbf,
        exp,
        amr,
        npub,
        mls_group,
        nonce,
    } = claims;
    if settings.issuer.is_some() && iss != &settings.issuer {
        return Err("jwt.iss");
    }
    if !aud.contains(&settings.audience) {
        return Err("jwt.aud");
    }
    in_time(*iat, *nbf, *exp, settings, opened.received_at)?;
    if !amr.iter().any(|method| method == "app_attest") {
        return Err("jwt.amr");
    }
    if *npub != opened.sender {
        return Err("jwt.npub");
    }
    if *mls_group != opened.group.mls_group_id {
        return Err("jwt.mls_group");
    }
    let challenge = judge_nonce(nonce, challenger, opened, request)?;
    Ok(Proof {
        challenge,
        expires_at: UnixMs::from_secs(*exp),
        totp: amr.iter().any(|method| method == "totp"),
    })
}

/// `exp`, `nbf`, `iat` at `at`; the lifetime itself gets no leeway.
fn in_time(
    iat: u64,
    nbf: Option<u64>,
    exp: u64,
    settings: &IssuerSettings,
    at: UnixMs,
) -> Result<(), &'static str> {
    let lifetime = exp.checked_sub(iat).ok_or("jwt.lifetime")?;
    if lifetime == 0 || Duration::from_secs(lifetime) > settings.max_lifetime {
        return Err("jwt.lifetime");
    }
    if at >= UnixMs::from_secs(exp).plus(settings.leeway) {
        return Err("jwt.expired");
    }
    let latest = at.plus(settings.leeway);
    if UnixMs::from_secs(iat) > latest {
        return Err("jwt.iat_in_future");
    }
    if nbf.is_some_and(|nbf| UnixMs::from_secs(nbf) > latest) {
        return Err("jwt.not_yet_valid");
    }
    Ok(())
}

/// The nonce: a challenge of ours, and the binding of this very request and leaf.
fn judge_nonce(
    nonce: &str,
    challenger: &Challenger,
    opened: &Opened,
    request: &ServiceRequest,
) -> Result<Checked, &'static str> {
    let (challenge, binding) = nonce::split(nonce).map_err(|_| "nonce.malformed")?;
    let expected = request_binding(
        request.action_type,
        &request.client_id,
        &request.action_id,
        &request.params,
        &opened.group.mls_group_id,
        &opened.leaf_signature_key,
    );
    if !bool::from(binding.ct_eq(&expected)) {
        return Err("nonce.other_request");
    }
    challenger
        .check(challenge, opened.received_at)
        .map_err(|bad| match bad {
            BadChallenge::NotIssued => "nonce.not_issued",
            BadChallenge::Expired => "nonce.expired",
            BadChallenge::FromTheFuture => "nonce.from_the_future",
        })
}

fn no_key(no: NoKey) -> Refused {
    match no {
        NoKey::UnknownKid => Refused::unauthorized("jwt.kid_unknown"),
        NoKey::WrongAlgorithm => Refused::unauthorized("jwt.alg_not_of_key"),
        NoKey::Unavailable { retry_after } => Refused::internal(
            "issuer.unavailable",
            u64::try_from(retry_after.as_millis()).unwrap_or(u64::MAX),
        ),
    }
}

/// Claims that every proof must have, and the word for the audit trail when one is missing.
const REQUIRED: [(&str, &str); 7] = [
    ("aud", "jwt.aud_missing"),
    ("iat", "jwt.iat_missing"),
    ("exp", "jwt.exp_missing"),
    ("amr", "jwt.amr_missing"),
    ("npub", "jwt.npub_missing"),
    ("mls_group", "jwt.mls_group_missing"),
    ("nonce", "nonce.missing"),
];

/// Why signed claims do not parse.
fn wrong_claims(payload: &[u8]) -> &'static str {
    let Ok(claims) =
        serde_json::from_slice::<std::collections::BTreeMap<String, IgnoredAny>>(payload)
    else {
        return "jwt.malformed";
    };
    REQUIRED
        .iter()
        .find(|(claim, _)| !claims.contains_key(*claim))
        .map_or("jwt.claims", |(_, reason)| reason)
}
