//! Our own token: had by login or from a file, renewed long before it ends, replaced when renewing ends.
//!
//! What must always hold: one login at a time, however many calls wait for it; a call that is refused finds out once whether the token or the policy is to blame;
//! the token is in a buffer that is wiped when the last request with it is over.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use axum::body::Bytes;
use reqwest::header::HeaderValue;
use tokio::task::spawn_blocking;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use super::client::Client;
use super::settings::VaultAuth;
use super::transport::{Call, Failure, Wiped};
use super::wire::{self, Empty, LoginBody, TokenProperties};
use crate::config::SecretRef;
use crate::devices::issuer::Reason;
use crate::metrics::ISSUER_TOKEN;

/// How long a failed login answers for those that wait behind it.
const FAILED_FOR: Duration = Duration::from_secs(1);
/// How long a token that proved good is not doubted again.
const TRUSTED_FOR: Duration = Duration::from_secs(5);
/// Between two tries to renew.
const PAUSES: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(30);
/// How often a token without an end is looked at.
const ENDLESS: Duration = Duration::from_secs(3600);

/// A token that worked when it was last used.
pub(super) struct Held {
    header: HeaderValue,
    number: u64,
    renewable: bool,
    /// `None` for one that never ends.
    lease: Option<Lease>,
}

#[derive(Clone, Copy)]
struct Lease {
    /// What it was first granted for.
    full: Duration,
    until: Instant,
    renew_at: Instant,
}

impl Lease {
    fn granted(seconds: u64, full: Option<Duration>) -> Option<Self> {
        let left = Duration::from_secs(seconds);
        let now = Instant::now();
        (seconds > 0).then(|| Self {
            full: full.unwrap_or(left),
            until: now + left,
            renew_at: now + (left * 2 / 3).max(Duration::from_secs(1)),
        })
    }
}

impl Held {
    pub(super) fn header(&self) -> &HeaderValue {
        &self.header
    }

    fn usable(&self) -> bool {
        self.lease.is_none_or(|lease| Instant::now() < lease.until)
    }
}

/// What the one that holds the lock knows.
#[derive(Default)]
pub(super) struct Flight {
    /// Nothing is logged in for any more.
    closed: bool,
    number: u64,
    failed: Option<(Instant, Failure)>,
    trusted: Option<(Instant, u64)>,
}

impl Client {
    /// The token to use now.
    pub(super) async fn token(&self) -> Result<Arc<Held>, Failure> {
        if let Some(held) = self.held() {
            return Ok(held);
        }
        let mut flight = self.flight.lock().await;
        // Whoever held the lock before us may have brought one.
        match self.held() {
            Some(held) => Ok(held),
            None => self.acquire(&mut flight).await,
        }
    }

    /// After a refusal: another token to try with, or the reason why none will help.
    pub(super) async fn refused(&self, with: &Held) -> Result<Arc<Held>, Failure> {
        let mut flight = self.flight.lock().await;
        if let Some(held) = self.held().filter(|held| held.number != with.number) {
            return Ok(held);
        }
        let trusted = flight
            .trusted
            .is_some_and(|(at, number)| number == with.number && at.elapsed() < TRUSTED_FOR);
        if trusted {
            return Err(Failure::permanent(Reason::Denied));
        }
        let call = Call::get("auth/token/lookup-self".to_owned());
        let answer = self
            .exchange("lookup_token", &call, Some(&with.header))
            .await?;
        match answer.failure() {
            None => {
                flight.trusted = Some((Instant::now(), with.number));
                Err(Failure::permanent(Reason::Denied))
            }
            Some(failure) if failure.why == Reason::Denied => {
                let fresh = self.acquire(&mut flight).await?;
                if fresh.header == with.header {
                    self.set(None);
                    return Err(
                        self.failed(&mut flight, Failure::permanent(Reason::Unauthenticated))
                    );
                }
                Ok(fresh)
            }
            Some(failure) => Err(failure),
        }
    }

    /// Renews the token in time, until `stopping`.
    pub(super) async fn keep_token(self: Arc<Self>, stopping: CancellationToken) {
        loop {
            let pause = match self.look_after().await {
                Ok(pause) => pause,
                Err(failure) => {
                    metrics::counter!(ISSUER_TOKEN, "result" => "failed").increment(1);
                    tracing::error!(reason = failure.why.word(), "no good token for the issuer");
                    failure.after.clamp(*PAUSES.start(), *PAUSES.end())
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stopping.cancelled() => return,
            }
        }
    }

    /// Revokes the token that we have logged in for, so that it does not outlive us. One that an operator or an agent put into a file is theirs: others may use
    /// it, and the next start needs it. A token that cannot be revoked ends by itself.
    pub(super) async fn give_back(&self) {
        let mut flight = self.flight.lock().await;
        flight.closed = true;
        let (VaultAuth::AppRole { .. }, Some(held)) = (&self.settings.auth, self.held()) else {
            return;
        };
        self.set(None);
        let Ok(body) = wire::body(&Empty {}) else {
            return;
        };
        let call = Call::post("auth/token/revoke-self".to_owned(), body);
        let answer = self.exchange("revoke", &call, Some(&held.header)).await;
        match answer.and_then(super::transport::Answer::good) {
            Ok(_) => tracing::info!("our own token is revoked"),
            Err(failure) => {
                tracing::warn!(
                    reason = failure.why.word(),
                    "our own token could not be revoked; it ends by itself"
                );
            }
        }
    }

    /// Does what is due; returns how long there is nothing to do.
    async fn look_after(&self) -> Result<Duration, Failure> {
        let held = self.token().await?;
        let Some(lease) = held.lease else {
            return Ok(ENDLESS);
        };
        let left = lease.renew_at.saturating_duration_since(Instant::now());
        if !left.is_zero() {
            return Ok(left);
        }
        self.renew(&held, lease).await?;
        Ok(Duration::ZERO)
    }

    async fn renew(&self, held: &Arc<Held>, lease: Lease) -> Result<(), Failure> {
        let mut flight = self.flight.lock().await;
        if held.renewable {
            let call = Call::post("auth/token/renew-self".to_owned(), wire::body(&Empty {})?);
            let answer = self.exchange("renew", &call, Some(&held.header)).await;
            let renewed = answer
                .and_then(super::transport::Answer::good)
                .and_then(|answer| wire::envelope::<serde::de::IgnoredAny>(&answer))
                .and_then(|envelope| envelope.auth.ok_or_else(Failure::garbled));
            match renewed {
                Ok(auth) => {
                    let next = Lease::granted(auth.lease_duration, Some(lease.full));
                    let whole =
                        next.is_none_or(|next| next.until > Instant::now() + lease.full / 2);
                    self.set(Some(Arc::new(Held {
                        header: held.header.clone(),
                        number: held.number,
                        renewable: auth.renewable,
                        lease: next,
                    })));
                    if whole {
                        metrics::counter!(ISSUER_TOKEN, "result" => "renewed").increment(1);
                        return Ok(());
                    }
                    // Its last lease: renewing is over, and only a new token helps.
                }
                // Tried again until it ends, if need be.
                Err(failure) if !failure.permanent => return Err(failure),
                Err(_) => {}
            }
        }
        let fresh = self.acquire(&mut flight).await?;
        if fresh.header == held.header {
            tracing::error!(
                "the issuer's token cannot be renewed any further and its file holds no other one"
            );
            metrics::counter!(ISSUER_TOKEN, "result" => "ending").increment(1);
        }
        Ok(())
    }

    /// Logs in, or reads the file.
    async fn acquire(&self, flight: &mut Flight) -> Result<Arc<Held>, Failure> {
        if flight.closed {
            return Err(Failure::permanent(Reason::Unauthenticated));
        }
        if let Some((at, failure)) = flight.failed
            && at.elapsed() < FAILED_FOR
        {
            return Err(failure);
        }
        let acquired = match self.settings.auth.clone() {
            VaultAuth::Token(file) => self.look_up(file).await,
            VaultAuth::AppRole {
                mount,
                role_id,
                secret_id,
            } => {
                self.log_in(&format!("auth/{mount}/login"), &role_id, secret_id)
                    .await
            }
        };
        let (header, renewable, lease) = match acquired {
            Ok(acquired) => acquired,
            Err(failure) => return Err(self.failed(flight, failure)),
        };
        flight.number += 1;
        flight.failed = None;
        let held = Arc::new(Held {
            header,
            number: flight.number,
            renewable,
            lease,
        });
        self.set(Some(Arc::clone(&held)));
        metrics::counter!(ISSUER_TOKEN, "result" => "obtained").increment(1);
        Ok(held)
    }

    fn failed(&self, flight: &mut Flight, failure: Failure) -> Failure {
        flight.failed = Some((Instant::now(), failure));
        failure
    }

    async fn look_up(
        &self,
        file: Arc<SecretRef>,
    ) -> Result<(HeaderValue, bool, Option<Lease>), Failure> {
        let text = read(file).await?;
        let header = header(&text)?;
        let call = Call::get("auth/token/lookup-self".to_owned());
        let answer = self.exchange("lookup_token", &call, Some(&header)).await?;
        let answer = answer.good().map_err(own_credential)?;
        let token: TokenProperties = wire::data(&answer)?;
        Ok((header, token.renewable, Lease::granted(token.ttl, None)))
    }

    async fn log_in(
        &self,
        path: &str,
        role_id: &str,
        secret_id: Arc<SecretRef>,
    ) -> Result<(HeaderValue, bool, Option<Lease>), Failure> {
        let secret_id = read(secret_id).await?;
        let body = wire::body(&LoginBody {
            role_id,
            secret_id: &secret_id,
        })?;
        let call = Call::post(path.to_owned(), body);
        let answer = self.exchange("login", &call, None).await?;
        let answer = answer.good().map_err(own_credential)?;
        let auth = wire::envelope::<serde::de::IgnoredAny>(&answer)?.auth;
        let auth = auth.ok_or_else(Failure::garbled)?;
        let token = auth.client_token.as_ref().ok_or_else(Failure::garbled)?;
        let lease = Lease::granted(auth.lease_duration, None);
        Ok((header(token)?, auth.renewable, lease))
    }

    fn held(&self) -> Option<Arc<Held>> {
        let held = self.held.read().unwrap_or_else(PoisonError::into_inner);
        held.clone().filter(|held| held.usable())
    }

    fn set(&self, held: Option<Arc<Held>>) {
        *self.held.write().unwrap_or_else(PoisonError::into_inner) = held;
    }
}

/// Whatever Vault has against our own credential, the devices' requests are not to blame.
fn own_credential(failure: Failure) -> Failure {
    match failure.why {
        Reason::Denied | Reason::Rejected | Reason::UnknownRole => {
            Failure::permanent(Reason::Unauthenticated)
        }
        _ => failure,
    }
}

/// Files may lie on a slow disk.
async fn read(secret: Arc<SecretRef>) -> Result<Zeroizing<String>, Failure> {
    let text = spawn_blocking(move || {
        secret
            .text()
            .map(|text| Zeroizing::new(text.expose().to_owned()))
    });
    match text.await {
        Ok(Ok(text)) => Ok(text),
        Ok(Err(error)) => {
            tracing::error!(%error, "our credential for the issuer cannot be read");
            Err(Failure::permanent(Reason::Unauthenticated))
        }
        Err(_) => Err(Failure::permanent(Reason::Unauthenticated)),
    }
}

/// A header that wipes its text and does not show it.
fn header(token: &Zeroizing<String>) -> Result<HeaderValue, Failure> {
    let bytes = Bytes::from_owner(Wiped(Zeroizing::new(token.as_bytes().to_vec())));
    let mut header = HeaderValue::from_maybe_shared(bytes)
        .map_err(|_| Failure::permanent(Reason::Unauthenticated))?;
    header.set_sensitive(true);
    Ok(header)
}
