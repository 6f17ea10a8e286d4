//! Checking a secret_id of our own: what `POST /kr/v1/approle/login` asks.
//!
//! What must always hold: an unknown role, an unknown secret_id, a wrong one and one that has ended get the same answer by the same local path, and a guess costs no
//! operation of the MAC key; a use is counted in the transaction that allows it; who guesses is slowed down before anything is looked up.

use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use governor::clock::{Clock as _, DefaultClock};
use governor::{DefaultDirectRateLimiter, DefaultKeyedRateLimiter, Quota, RateLimiter};
use keyturn_proto::derive::prefilter;
use keyturn_proto::{UnixMs, VersionId};
use keyturn_store::approle::{SecretIdDoc, Spent};
use keyturn_store::documents::AuditRecord;
use keyturn_store::mac::SecretHash;
use keyturn_store::store::AuditTrail;
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use super::{Parts, mac_owner};
use crate::devices::issuer::Cidr;
use crate::metrics::{APPROLE_LOGINS, AUDIT_FAILED, JUNK_NOT_RECORDED};
use crate::rotation::audit::Entry;

/// Sources after which those that have been quiet are forgotten.
const SWEEP_AT: usize = 10_000;
/// Logins of one source that may always come at once.
const BURST: u32 = 60;
/// Refusals of secret_ids that exist, written down in one minute; more are only counted.
const RECORDED_PER_MINUTE: u32 = 60;

/// How often logins may be tried.
#[derive(Clone, Copy, Debug)]
pub struct LoginLimits {
    /// By one source (an IPv4 address, or an IPv6 /64) in a minute.
    pub per_source: NonZeroU32,
    /// By all together in a second.
    pub in_all: NonZeroU32,
}

/// What a good login says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoggedIn {
    /// Its role.
    pub role: String,
    /// The device the secret_id was issued to.
    pub device: String,
    /// Names the secret_id.
    pub accessor: VersionId,
    /// How long it still lives.
    pub ttl: Duration,
    /// Logins left; `None` for any number.
    pub uses_left: Option<u32>,
}

/// Why a login is refused. The asker hears no more than this.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoginError {
    /// Not (any longer) a secret_id of that role, or not from there.
    #[error("invalid role or secret ID")]
    Invalid,
    /// Too many tries.
    #[error("too many logins; try again later")]
    TooMany {
        /// How long to wait.
        retry_after: Duration,
    },
    /// The store or the key failed.
    #[error("logins cannot be checked at the moment")]
    Unavailable,
}

/// Judges logins.
pub struct AppRoleLogin {
    parts: Parts,
    trail: Arc<dyn AuditTrail>,
    /// Looked up for a text that names no accessor.
    nobody: VersionId,
    by_source: DefaultKeyedRateLimiter<IpAddr>,
    in_all: DefaultDirectRateLimiter,
    recorded: DefaultDirectRateLimiter,
}

impl AppRoleLogin {
    /// Over the same store and key as the issuer; refusals are written to `trail`.
    #[must_use]
    pub fn new(parts: Parts, trail: Arc<dyn AuditTrail>, limits: LoginLimits) -> Self {
        #[expect(clippy::expect_used, reason = "26 zeros are a ULID")]
        let nobody = "00000000000000000000000000".parse().expect("a ULID");
        let per_minute = NonZeroU32::new(RECORDED_PER_MINUTE).unwrap_or(NonZeroU32::MIN);
        Self {
            parts,
            trail,
            nobody,
            by_source: RateLimiter::keyed(source_quota(limits.per_source)),
            in_all: RateLimiter::direct(Quota::per_second(limits.in_all)),
            recorded: RateLimiter::direct(Quota::per_minute(per_minute)),
        }
    }

    /// Judges one login, and takes a use if it is good.
    ///
    /// # Errors
    /// [`LoginError`].
    pub async fn log_in(
        &self,
        role_id: &str,
        secret_id: &Zeroizing<String>,
        source: IpAddr,
    ) -> Result<LoggedIn, LoginError> {
        let judged = match self.listen_to(source) {
            Ok(()) => self.judge(role_id, secret_id, source).await,
            Err(error) => Err(error),
        };
        let result = match &judged {
            Ok(_) => "ok",
            Err(LoginError::Invalid) => "invalid",
            Err(LoginError::TooMany { .. }) => "too_many",
            Err(LoginError::Unavailable) => "unavailable",
        };
        metrics::counter!(APPROLE_LOGINS, "result" => result).increment(1);
        judged
    }

    fn listen_to(&self, source: IpAddr) -> Result<(), LoginError> {
        if self.by_source.len() > SWEEP_AT {
            self.by_source.retain_recent();
        }
        let now = DefaultClock::default().now();
        let wait = match self.by_source.check_key(&network(source)) {
            Ok(()) => match self.in_all.check() {
                Ok(()) => return Ok(()),
                Err(until) => until.wait_time_from(now),
            },
            Err(until) => until.wait_time_from(now),
        };
        Err(LoginError::TooMany {
            retry_after: wait.max(Duration::from_secs(1)),
        })
    }

    async fn judge(
        &self,
        role_id: &str,
        secret_id: &str,
        source: IpAddr,
    ) -> Result<LoggedIn, LoginError> {
        let store = &self.parts.store;
        let unavailable = |error| {
            tracing::warn!(%error, "a login could not be checked");
            LoginError::Unavailable
        };
        // Both are looked up whatever the first gives.
        let (accessor, secret) = split(secret_id);
        let accessor = accessor.unwrap_or(self.nobody);
        let role = store.role_by_id(role_id).await.map_err(unavailable)?;
        let doc = store.secret_id(&accessor).await.map_err(unavailable)?;
        let now = self.parts.clock.now();
        if !matches_prefilter(doc.as_ref(), secret) {
            // Anybody can name an accessor that was never issued; a wrong secret for a living one is worth a record.
            let guessed = doc.filter(|doc| doc.alive(now));
            return Err(self.refuse(guessed.as_ref(), "secret_id.wrong", now).await);
        }
        let Some(doc) = doc else {
            return Err(self.refuse(None, "secret_id.unknown", now).await);
        };
        if !self.verify(&doc, secret).await? {
            return Err(self.refuse(Some(&doc), "secret_id.wrong", now).await);
        }
        // From here on the asker holds the secret_id.
        if role.is_none_or(|role| role.role != doc.role) {
            return Err(self.refuse(Some(&doc), "role_id.wrong", now).await);
        }
        if !doc.alive(now) {
            return Err(self.refuse(Some(&doc), "secret_id.ended", now).await);
        }
        if !from_there(&doc, source) {
            return Err(self.refuse(Some(&doc), "secret_id.network", now).await);
        }
        let record = about(
            &doc,
            Entry::by_relay(now, "approle.login", "secret_id.good"),
        );
        let spent = store.spend_secret_id(&doc.accessor, now, record).await;
        match spent.map_err(unavailable)? {
            Spent::Allowed(doc) => Ok(LoggedIn {
                ttl: doc.expires_at.since(now),
                role: doc.role,
                device: doc.device,
                accessor: doc.accessor,
                uses_left: doc.uses_left,
            }),
            Spent::Gone => Err(self.refuse(Some(&doc), "secret_id.ended", now).await),
        }
    }

    async fn verify(&self, doc: &SecretIdDoc, secret: &str) -> Result<bool, LoginError> {
        let unusable = |what: &'static str| {
            tracing::error!(what, "a stored secret_id cannot be checked");
            LoginError::Unavailable
        };
        let owner = mac_owner(&doc.role).ok_or_else(|| unusable("role"))?;
        let hash = SecretHash::parse(&doc.secret_hash).map_err(|_| unusable("hash"))?;
        let verified =
            self.parts
                .mac
                .verify(&doc.mac_key_ref, &owner, &doc.accessor, secret, &hash);
        verified.await.map_err(|error| {
            tracing::warn!(%error, "a login could not be checked");
            LoginError::Unavailable
        })
    }

    /// Writes a refusal down when it is about a secret_id that exists, within limits: anybody can cause the others.
    async fn refuse(
        &self,
        doc: Option<&SecretIdDoc>,
        reason: &'static str,
        now: UnixMs,
    ) -> LoginError {
        let Some(doc) = doc.filter(|_| self.recorded.check().is_ok()) else {
            metrics::counter!(JUNK_NOT_RECORDED).increment(1);
            return LoginError::Invalid;
        };
        let record = about(doc, Entry::by_relay(now, "approle.login_refused", reason));
        if let Err(error) = self.trail.append(record).await {
            metrics::counter!(AUDIT_FAILED).increment(1);
            tracing::error!(%error, "a refused login could not be recorded");
        }
        LoginError::Invalid
    }
}

/// A source gets its share evenly: at once a tenth of a minute's, or a whole minute's where that is little, so that one of many cannot take what all have.
pub(super) fn source_quota(per_minute: NonZeroU32) -> Quota {
    let burst = (per_minute.get() / 10).max(per_minute.get().min(BURST));
    let burst = NonZeroU32::new(burst).unwrap_or(NonZeroU32::MIN);
    Quota::per_minute(per_minute).allow_burst(burst)
}

/// A record about a secret_id and the device it was issued to.
fn about(doc: &SecretIdDoc, entry: Entry) -> AuditRecord {
    match doc.device.parse() {
        Ok(device) => entry.device(device, &doc.accessor.to_string()).done(),
        Err(_) => entry.done(),
    }
}

/// An accessor, if there is one, and a secret.
fn split(secret_id: &str) -> (Option<VersionId>, &str) {
    let parts = secret_id
        .split_once('.')
        .and_then(|(accessor, secret)| Some((accessor.parse().ok()?, secret)));
    match parts {
        Some((accessor, secret)) => (Some(accessor), secret),
        None => (None, secret_id),
    }
}

/// Refuses guesses without a MAC operation. Without a document it compares with something else of the same length.
fn matches_prefilter(doc: Option<&SecretIdDoc>, secret: &str) -> bool {
    let mut stored = [0; 4];
    let known = doc.is_some_and(|doc| hex::decode_to_slice(&doc.prefilter, &mut stored).is_ok());
    let same: bool = prefilter(secret).ct_eq(&stored).into();
    same && known
}

fn from_there(doc: &SecretIdDoc, source: IpAddr) -> bool {
    // A block that cannot be read allows nothing.
    let mut blocks = doc
        .cidrs
        .iter()
        .filter_map(|text| text.parse::<Cidr>().ok());
    doc.cidrs.is_empty() || blocks.any(|block| block.contains(source))
}

/// What counts as one source: whoever has one IPv6 address usually has the whole /64.
fn network(source: IpAddr) -> IpAddr {
    match source.to_canonical() {
        IpAddr::V4(v4) => IpAddr::V4(v4),
        IpAddr::V6(v6) => {
            let prefix = v6.to_bits() & (u128::MAX << 64);
            IpAddr::V6(Ipv6Addr::from_bits(prefix))
        }
    }
}
