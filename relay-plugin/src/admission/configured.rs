//! From the operator's configuration to what admission works with. The only file here that knows the configuration.

use keyturn_proto::ClientId;

use super::settings::{
    IssuerSettings, JwksSource, LimitSettings, PolicySettings, ProofAlgorithm, Settings,
    TotpPolicy, TotpSettings,
};
use super::{ChallengeKey, Keys, SeedKey};
use crate::config::{self, ConfigError, ValidatedConfig};

/// Refusals of all senders together that open the common breaker, as a multiple of one sender's.
const GLOBAL_BREAKER_FACTOR: u32 = 10;

impl Settings {
    /// Takes over what the configuration says.
    ///
    /// # Errors
    /// [`ConfigError`] for a denylist entry that is no client id.
    pub fn from_config(config: &ValidatedConfig) -> Result<Self, ConfigError> {
        let ValidatedConfig {
            issuer,
            admission,
            policy,
            ..
        } = config;
        Ok(Self {
            issuer: IssuerSettings {
                jwks: match &issuer.jwks {
                    config::JwksSource::Url(url) => JwksSource::Url(url.clone()),
                    config::JwksSource::File(path) => JwksSource::File(path.clone()),
                },
                audience: issuer.audience.clone(),
                issuer: issuer.issuer.clone(),
                algorithms: issuer.algorithms.iter().copied().map(algorithm).collect(),
                leeway: issuer.leeway,
                max_lifetime: admission.max_proof_lifetime,
                cache_ttl: issuer.cache_ttl,
                stale_for: issuer.stale_for,
                refresh_min_interval: issuer.refresh_min_interval,
                fetch_timeout: issuer.fetch_timeout,
            },
            totp: TotpSettings {
                policy: match admission.totp {
                    config::TotpPolicy::Proof => TotpPolicy::Proof,
                    config::TotpPolicy::Relay => TotpPolicy::Relay,
                    config::TotpPolicy::Both => TotpPolicy::Both,
                    config::TotpPolicy::Either => TotpPolicy::Either,
                },
                max_failures: admission.lockout_attempts,
                lock: admission.lockout_duration,
            },
            challenge_ttl: admission.challenge_ttl,
            policy: PolicySettings {
                default_grace: policy.default_grace,
                max_grace: policy.max_grace,
                min_delay: policy.min_not_before_delay,
                min_interval: policy.min_interval,
                denylist: denylist(&policy.denylist)?,
            },
            limits: LimitSettings {
                client_per_hour: policy.client_requests_per_hour,
                admin_per_hour: policy.admin_requests_per_hour,
                breaker_refusals: policy.breaker_refusals,
                global_breaker_refusals: policy
                    .breaker_refusals
                    .saturating_mul(GLOBAL_BREAKER_FACTOR),
                breaker_window: policy.breaker_window,
                breaker_pause: policy.breaker_pause,
            },
        })
    }
}

impl Keys {
    /// Reads the two keys from where the configuration says they are.
    ///
    /// # Errors
    /// [`ConfigError`] naming the key that cannot be had.
    pub fn from_config(config: &ValidatedConfig) -> Result<Self, ConfigError> {
        Ok(Self {
            challenge: ChallengeKey::new(config.admission.challenge_key.key32()?.expose()),
            totp_seed: SeedKey::new(config.admission.totp_seed_key.key32()?.expose()),
        })
    }
}

const fn algorithm(configured: config::Algorithm) -> ProofAlgorithm {
    match configured {
        config::Algorithm::Rs256 => ProofAlgorithm::Rs256,
        config::Algorithm::Es256 => ProofAlgorithm::Es256,
        config::Algorithm::EdDsa => ProofAlgorithm::EdDsa,
    }
}

/// An entry that can be no client's name would deny nothing: better not to start.
fn denylist(entries: &[String]) -> Result<Vec<ClientId>, ConfigError> {
    let parse = |entry: &String| {
        entry.parse().map_err(|_| ConfigError::Conflict {
            key: "policy.denylist".to_owned(),
            reason: format!("`{entry}` cannot be a client id"),
        })
    };
    entries.iter().map(parse).collect()
}
