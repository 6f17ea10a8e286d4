//! The sections that decide who may rotate what: `[issuer]`, `[admission]`, `[policy]`.

use std::{path::PathBuf, time::Duration};

use super::{
    error::ConfigError,
    secret::SecretRef,
    sections::{DAY, Environment, HOUR, MINUTE},
    source::Keys,
};

/// Ceiling of protocol §6.2 for `exp - iat` of a proof.
const PROOF_LIFETIME: Duration = Duration::from_secs(300);

fn conflict(key: &str, reason: &str) -> ConfigError {
    ConfigError::Conflict {
        key: key.to_owned(),
        reason: reason.to_owned(),
    }
}

/// `[issuer]`: whose `jwt_proof` is accepted.
#[derive(Debug)]
pub struct Issuer {
    /// Where its keys come from.
    pub jwks: JwksSource,
    /// `aud` demanded of a proof.
    pub audience: String,
    /// `iss` demanded of a proof; not looked at when absent.
    pub issuer: Option<String>,
    /// Accepted `alg` values.
    pub algorithms: Vec<Algorithm>,
    /// Clock skew allowed for `nbf`, `iat`, `exp`.
    pub leeway: Duration,
    /// How long fetched keys are used without asking again.
    pub cache_ttl: Duration,
    /// How long beyond that they are still used while the issuer cannot be reached.
    pub stale_for: Duration,
    /// Least time between two fetches, also when an unknown `kid` asks for one.
    pub refresh_min_interval: Duration,
    /// How long a fetch may take.
    pub fetch_timeout: Duration,
}

/// Where the issuer's JWKS comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JwksSource {
    /// Fetched over HTTPS (plain http only in development).
    Url(String),
    /// A file, read again when `cache_ttl` is over.
    File(PathBuf),
}

/// The fixed allow-list of protocol §6.2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    Rs256,
    /// ECDSA P-256 with SHA-256.
    Es256,
    /// Ed25519.
    EdDsa,
}

impl Algorithm {
    fn parse(text: &str) -> Option<Self> {
        match text {
            "RS256" => Some(Self::Rs256),
            "ES256" => Some(Self::Es256),
            "EdDSA" => Some(Self::EdDsa),
            _ => None,
        }
    }
}

impl Issuer {
    pub(super) fn read(keys: &mut Keys, environment: Environment) -> Result<Self, ConfigError> {
        const ALGORITHMS: &str = "a list of \"RS256\", \"ES256\", \"EdDSA\"";
        let scheme = match environment {
            Environment::Production => "an https:// address",
            Environment::Development => "an http:// or https:// address",
        };
        let url = keys.text("issuer.jwks_url", scheme, |text| {
            let allowed = text.starts_with("https://")
                || (environment == Environment::Development && text.starts_with("http://"));
            allowed.then(|| text.to_owned())
        })?;
        let jwks = match (
            url,
            keys.path("issuer.jwks_file", "the path of a JWKS file")?,
        ) {
            (Some(url), None) => JwksSource::Url(url),
            (None, Some(path)) => JwksSource::File(path),
            (Some(_), Some(_)) => {
                return Err(conflict(
                    "issuer.jwks_url",
                    "given together with issuer.jwks_file; give one",
                ));
            }
            (None, None) => {
                let expected = format!("{scheme}, or a file in issuer.jwks_file");
                return Err(ConfigError::Missing {
                    key: "issuer.jwks_url".to_owned(),
                    expected,
                });
            }
        };
        let algorithms = keys.list("issuer.algorithms", ALGORITHMS, Algorithm::parse)?;
        if algorithms.as_ref().is_some_and(Vec::is_empty) {
            return Err(conflict(
                "issuer.algorithms",
                "is empty, so no proof could ever be accepted",
            ));
        }
        Ok(Self {
            jwks,
            audience: keys
                .text("issuer.audience", "a text", non_empty)?
                .unwrap_or_else(|| "rust-nostr-relay".to_owned()),
            issuer: keys.text("issuer.issuer", "a text", non_empty)?,
            algorithms: algorithms
                .unwrap_or_else(|| vec![Algorithm::Rs256, Algorithm::Es256, Algorithm::EdDsa]),
            leeway: keys.duration(
                "issuer.leeway",
                Duration::ZERO..=MINUTE,
                Duration::from_secs(5),
            )?,
            cache_ttl: keys.duration("issuer.cache_ttl", MINUTE..=DAY, MINUTE * 10)?,
            stale_for: keys.duration("issuer.stale_for", Duration::ZERO..=DAY, HOUR)?,
            refresh_min_interval: keys.duration(
                "issuer.refresh_min_interval",
                Duration::from_secs(1)..=HOUR,
                Duration::from_secs(30),
            )?,
            fetch_timeout: keys.duration(
                "issuer.fetch_timeout",
                Duration::from_secs(1)..=MINUTE,
                Duration::from_secs(5),
            )?,
        })
    }
}

/// Which second factor a request must bring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TotpPolicy {
    /// `amr` of the proof says so.
    Proof,
    /// The relay verifies a code that the request carries.
    Relay,
    /// Both of these.
    Both,
    /// One of these.
    Either,
}

/// `[admission]`.
#[derive(Debug)]
pub struct Admission {
    /// Which second factor is demanded.
    pub totp: TotpPolicy,
    /// MACs the challenges; the same on every instance.
    pub challenge_key: SecretRef,
    /// How long a challenge can be used.
    pub challenge_ttl: Duration,
    /// Ceiling of `exp - iat` of a proof.
    pub max_proof_lifetime: Duration,
    /// Wrong codes in a row until an admin is locked out.
    pub lockout_attempts: u32,
    /// How long the lock-out lasts.
    pub lockout_duration: Duration,
    /// Encrypts the TOTP seeds in the store.
    pub totp_seed_key: SecretRef,
}

impl Admission {
    pub(super) fn read(keys: &mut Keys) -> Result<Self, ConfigError> {
        let second = Duration::from_secs(1);
        let totp = keys.text(
            "admission.totp",
            "\"proof\", \"relay\", \"both\" or \"either\"",
            |text| match text {
                "proof" => Some(TotpPolicy::Proof),
                "relay" => Some(TotpPolicy::Relay),
                "both" => Some(TotpPolicy::Both),
                "either" => Some(TotpPolicy::Either),
                _ => None,
            },
        )?;
        Ok(Self {
            totp: totp.unwrap_or(TotpPolicy::Either),
            challenge_key: keys.secret("admission.challenge_key", "64 hex digits")?,
            challenge_ttl: keys.duration(
                "admission.challenge_ttl",
                second * 10..=MINUTE * 15,
                MINUTE * 5,
            )?,
            max_proof_lifetime: keys.duration(
                "admission.max_proof_lifetime",
                second..=PROOF_LIFETIME,
                PROOF_LIFETIME,
            )?,
            lockout_attempts: keys.number("admission.lockout_attempts", 1..=100, 5)? as u32,
            lockout_duration: keys.duration(
                "admission.lockout_duration",
                second..=DAY,
                MINUTE * 15,
            )?,
            totp_seed_key: keys.secret("admission.totp_seed_key", "64 hex digits")?,
        })
    }
}

/// `[policy]`: what an authorised request may ask for. Clients may have their own, stricter values in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Grace of the old secret when the request names none.
    pub default_grace: Duration,
    /// Longest grace a request may name.
    pub max_grace: Duration,
    /// Least time between request and `not_before` (Δ).
    pub min_not_before_delay: Duration,
    /// Without a quorum by then the rotation expires.
    pub ack_deadline: Duration,
    /// Least time between two rotations of a client.
    pub min_interval: Duration,
    /// Clients that may not be rotated.
    pub denylist: Vec<String>,
    /// Acks needed.
    pub quorum: u32,
    /// At least one ack must prove that the acker holds the secret.
    pub require_proven_ack: bool,
    /// Whether the ack of the admin who asked counts as that proven one.
    pub requester_ack_counts: bool,
    /// Requests per client within an hour.
    pub client_requests_per_hour: u32,
    /// Requests per admin within an hour.
    pub admin_requests_per_hour: u32,
    /// Refusals within `breaker_window` that open the circuit breaker for their sender; ten times as many, of all senders together, hold
    /// back everything but revoke and emergency.
    pub breaker_refusals: u32,
    /// See `breaker_refusals`.
    pub breaker_window: Duration,
    /// How long the breaker stays open.
    pub breaker_pause: Duration,
}

impl Policy {
    pub(super) fn read(keys: &mut Keys, environment: Environment) -> Result<Self, ConfigError> {
        let (second, month) = (Duration::from_secs(1), DAY * 30);
        let least_delay = match environment {
            Environment::Production => second,
            Environment::Development => Duration::ZERO,
        };
        let policy = Self {
            default_grace: keys.duration(
                "policy.default_grace",
                Duration::ZERO..=month,
                DAY * 7,
            )?,
            max_grace: keys.duration("policy.max_grace", Duration::ZERO..=month, month)?,
            min_not_before_delay: keys.duration(
                "policy.min_not_before_delay",
                least_delay..=DAY,
                MINUTE * 10,
            )?,
            ack_deadline: keys.duration("policy.ack_deadline", second..=DAY, MINUTE * 30)?,
            min_interval: keys.duration("policy.min_interval", Duration::ZERO..=month, HOUR)?,
            denylist: keys
                .list("policy.denylist", "a list of client ids", non_empty)?
                .unwrap_or_default(),
            quorum: keys.number("policy.quorum", 1..=100, 1)? as u32,
            require_proven_ack: keys.boolean("policy.require_proven_ack", true)?,
            requester_ack_counts: keys.boolean("policy.requester_ack_counts", false)?,
            client_requests_per_hour: keys.number(
                "policy.client_requests_per_hour",
                1..=100_000,
                12,
            )? as u32,
            admin_requests_per_hour: keys.number(
                "policy.admin_requests_per_hour",
                1..=100_000,
                60,
            )? as u32,
            breaker_refusals: keys.number("policy.breaker_refusals", 1..=100_000, 10)? as u32,
            breaker_window: keys.duration("policy.breaker_window", second..=DAY, MINUTE * 5)?,
            breaker_pause: keys.duration("policy.breaker_pause", second..=DAY, MINUTE * 15)?,
        };
        if policy.default_grace > policy.max_grace {
            return Err(conflict(
                "policy.default_grace",
                "is longer than policy.max_grace",
            ));
        }
        if environment == Environment::Production && !policy.require_proven_ack {
            return Err(conflict(
                "policy.require_proven_ack",
                "must be true in production (profile.environment)",
            ));
        }
        if environment == Environment::Production && policy.requester_ack_counts {
            return Err(conflict(
                "policy.requester_ack_counts",
                "must be false in production (profile.environment)",
            ));
        }
        Ok(policy)
    }
}

fn non_empty(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}
