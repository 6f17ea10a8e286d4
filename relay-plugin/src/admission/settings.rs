//! What admission is told by the configuration. Plain values, already checked; this module reads no file and no environment.

use std::path::PathBuf;
use std::time::Duration;

use keyturn_proto::ClientId;

/// No override and no configuration goes past this (protocol.md §6.4).
pub const GRACE_CEILING: Duration = Duration::from_secs(30 * 24 * 3600);

/// No `not_before` lies further ahead than this: a rotation parked for longer would only block its client.
pub const DELAY_CEILING: Duration = Duration::from_secs(30 * 24 * 3600);

/// Everything admission needs to know.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Whose proofs count.
    pub issuer: IssuerSettings,
    /// The second factor.
    pub totp: TotpSettings,
    /// How long a challenge may be used.
    pub challenge_ttl: Duration,
    /// What an authorised request may ask for.
    pub policy: PolicySettings,
    /// How often, and how often wrongly.
    pub limits: LimitSettings,
}

/// Whose `jwt_proof` counts (protocol.md §6.2).
#[derive(Clone, Debug)]
pub struct IssuerSettings {
    /// Where its public keys are.
    pub jwks: JwksSource,
    /// `aud` demanded.
    pub audience: String,
    /// `iss` demanded; not looked at when absent.
    pub issuer: Option<String>,
    /// The allow-list.
    pub algorithms: Vec<ProofAlgorithm>,
    /// Clock skew allowed for `exp`, `nbf`, `iat` and challenges.
    pub leeway: Duration,
    /// Longest `exp - iat`.
    pub max_lifetime: Duration,
    /// How long a fetched key set is used without asking again.
    pub cache_ttl: Duration,
    /// How long beyond that it is still used while the issuer is away.
    pub stale_for: Duration,
    /// Least time between two fetches.
    pub refresh_min_interval: Duration,
    /// How long one fetch may take.
    pub fetch_timeout: Duration,
}

/// Where the issuer's JWKS comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JwksSource {
    /// Fetched by GET; redirects are not followed.
    Url(String),
    /// Read from disk.
    File(PathBuf),
}

/// The only signature algorithms there are for us (protocol.md §6.2). Neither `none` nor any HMAC can be written down in this type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProofAlgorithm {
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    Rs256,
    /// ECDSA on P-256 with SHA-256.
    Es256,
    /// Ed25519.
    EdDsa,
}

/// Which second factor a request must bring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TotpPolicy {
    /// The proof's `amr` says so; a code in the request is not looked at.
    Proof,
    /// The request carries a code that the relay verifies.
    Relay,
    /// Both.
    Both,
    /// One of the two. A code that is there and can be verified must be right, also when the proof would do.
    Either,
}

/// The second factor.
#[derive(Clone, Copy, Debug)]
pub struct TotpSettings {
    /// Which one.
    pub policy: TotpPolicy,
    /// Wrong codes in a row until an admin is locked out.
    pub max_failures: u32,
    /// How long the lock-out lasts.
    pub lock: Duration,
}

/// What an authorised request may ask for. A client's own overrides go before.
#[derive(Clone, Debug)]
pub struct PolicySettings {
    /// Grace when the request names none.
    pub default_grace: Duration,
    /// Longest grace.
    pub max_grace: Duration,
    /// Least time between request and promotion (Δ); zero only in development.
    pub min_delay: Duration,
    /// Least time between two promotions of a client. Judged inside the reserve transaction, so that a repeat still gets its answer.
    pub min_interval: Duration,
    /// Clients that may not be rotated.
    pub denylist: Vec<ClientId>,
}

/// Rate limits and the circuit breaker.
#[derive(Clone, Copy, Debug)]
pub struct LimitSettings {
    /// Changes per client within an hour.
    pub client_per_hour: u32,
    /// Requests per admin within an hour, counted apart for changes, protection (revoke, emergency, cancel) and status.
    pub admin_per_hour: u32,
    /// Refusals of one sender within `breaker_window` that open the breaker for that sender.
    pub breaker_refusals: u32,
    /// Refusals of all senders together within `breaker_window` that hold back everything but revoke and emergency.
    pub global_breaker_refusals: u32,
    /// See above.
    pub breaker_window: Duration,
    /// How long a breaker stays open.
    pub breaker_pause: Duration,
}

impl ProofAlgorithm {
    /// By its name in a JOSE header (RFC 7518 §3.1, RFC 8037 §3.1); case-sensitive.
    #[must_use]
    pub fn from_jose(name: &str) -> Option<Self> {
        match name {
            "RS256" => Some(Self::Rs256),
            "ES256" => Some(Self::Es256),
            "EdDSA" => Some(Self::EdDsa),
            _ => None,
        }
    }

    /// Its name in a JOSE header.
    #[must_use]
    pub const fn jose(self) -> &'static str {
        match self {
            Self::Rs256 => "RS256",
            Self::Es256 => "ES256",
            Self::EdDsa => "EdDSA",
        }
    }
}
