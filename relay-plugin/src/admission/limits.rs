//! Last step: how often (protocol.md §6.4). Spent only by requests that passed everything else, so that nobody unauthorised can use up a
//! client's budget. The breaker ([`super::breaker`]) is asked first of all.
//!
//! Admins have one budget for changes, one for protection and one for status: polling never stands in the way of an emergency. A client's
//! budget counts changes only: no admin can spend what another needs to revoke.

use std::collections::{HashSet, VecDeque};
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use governor::clock::Clock;
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::keyed::DashMapStateStore;
use governor::{Quota, RateLimiter};
use keyturn_proto::{Action, ClientId, Npub, UnixMs};

use super::breaker::Breakers;
use super::refused::Refused;
use super::settings::LimitSettings;

/// Which budget an action is taken from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Lane {
    Change,
    Protect,
    Read,
}

impl Lane {
    const fn of(action: Action) -> Self {
        match action {
            Action::Rotation | Action::Rollback => Self::Change,
            Action::Revoke | Action::Emergency | Action::Cancel => Self::Protect,
            Action::Status => Self::Read,
        }
    }
}

/// Time as it is told to us with each request. A clock set back refills later, nothing else.
#[derive(Clone, Default)]
struct ToldClock(Arc<AtomicU64>);

impl Clock for ToldClock {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        Nanos::new(self.0.load(Ordering::Relaxed).saturating_mul(1_000_000))
    }
}

type Keyed<K> = RateLimiter<K, DashMapStateStore<K>, ToldClock, NoOpMiddleware<Nanos>>;

/// Entries after which used-up history is swept.
const SWEEP_AT: usize = 10_000;
/// Events remembered as paid for; more than can be under way at once.
const PAID: usize = 4096;

/// Events that were taken from the budgets. The same event is judged again when something of ours failed after its admission, and an admin must
/// not pay for that. Forgotten with the process, like the budgets.
#[derive(Default)]
struct Paid {
    events: HashSet<String>,
    order: VecDeque<String>,
}

impl Paid {
    fn add(&mut self, event: &str) {
        if !self.events.insert(event.to_owned()) {
            return;
        }
        self.order.push_back(event.to_owned());
        if self.order.len() > PAID
            && let Some(oldest) = self.order.pop_front()
        {
            self.events.remove(&oldest);
        }
    }
}

/// See the module.
pub(super) struct Limits {
    clock: ToldClock,
    clients: Keyed<ClientId>,
    admins: Keyed<(Npub, Lane)>,
    breakers: Breakers,
    paid: Mutex<Paid>,
}

impl Limits {
    pub(super) fn new(settings: LimitSettings) -> Self {
        let clock = ToldClock::default();
        let per_hour = |n: u32| Quota::per_hour(NonZeroU32::new(n).unwrap_or(NonZeroU32::MIN));
        Self {
            clients: RateLimiter::new(
                per_hour(settings.client_per_hour),
                DashMapStateStore::default(),
                clock.clone(),
            ),
            admins: RateLimiter::new(
                per_hour(settings.admin_per_hour),
                DashMapStateStore::default(),
                clock.clone(),
            ),
            clock,
            breakers: Breakers::new(settings),
            paid: Mutex::default(),
        }
    }

    /// Asked before the request is even parsed. `leaf` is the sender's signature key.
    pub(super) fn listen_to(&self, leaf: &[u8], now: UnixMs) -> Result<(), Refused> {
        match self.breakers.sender(leaf, now) {
            Some(pause) => Err(held_back("limits.breaker_open", pause)),
            None => Ok(()),
        }
    }

    /// Asked as soon as the action is known.
    pub(super) fn listen_to_anybody(&self, action: Action, now: UnixMs) -> Result<(), Refused> {
        let protective = matches!(action, Action::Revoke | Action::Emergency);
        match self.breakers.all(now).filter(|_| !protective) {
            Some(pause) => Err(held_back("limits.global_breaker_open", pause)),
            None => Ok(()),
        }
    }

    /// Takes an authorised request from its budgets, once per event.
    pub(super) fn spend(
        &self,
        event: &str,
        client: &ClientId,
        sender: Npub,
        action: Action,
        now: UnixMs,
    ) -> Result<(), Refused> {
        if self.paid().events.contains(event) {
            return Ok(());
        }
        self.clock.0.store(now.0, Ordering::Relaxed);
        if self.clients.len() + self.admins.len() > SWEEP_AT {
            self.clients.retain_recent();
            self.admins.retain_recent();
        }
        let lane = Lane::of(action);
        self.admins
            .check_key(&(sender, lane))
            .map_err(|until| held_back("limits.admin", until.wait_time_from(self.clock.now())))?;
        if lane == Lane::Change {
            self.clients.check_key(client).map_err(|until| {
                held_back("limits.client", until.wait_time_from(self.clock.now()))
            })?;
        }
        self.paid().add(event);
        Ok(())
    }

    fn paid(&self) -> std::sync::MutexGuard<'_, Paid> {
        self.paid.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a refusal towards the breakers. Our own failures, and refusals by a limit, do not count: waiting is no offence.
    pub(super) fn note(&self, leaf: &[u8], refused: &Refused, now: UnixMs) {
        let ours = refused.refusal.class == keyturn_proto::ErrorClass::InternalError;
        if !ours && !refused.refusal.reason.starts_with("limits.") {
            self.breakers.note(leaf, now);
        }
    }
}

fn held_back(reason: &'static str, wait: Duration) -> Refused {
    // Rounded up: whoever waits as long as told must not come too early.
    let ms = u64::try_from(wait.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX);
    Refused::policy(reason).retry_after(ms)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;

    const NOW: UnixMs = UnixMs(1_760_000_000_000);
    const ALICE: Npub = Npub::from_bytes([1; 32]);
    const LEAF: &[u8] = &[1; 32];
    const BOB: Npub = Npub::from_bytes([2; 32]);

    fn limits() -> Limits {
        Limits::new(LimitSettings {
            client_per_hour: 2,
            admin_per_hour: 3,
            breaker_refusals: 3,
            global_breaker_refusals: 4,
            breaker_window: Duration::from_secs(300),
            breaker_pause: Duration::from_secs(900),
        })
    }

    fn spend(
        limits: &Limits,
        client: &str,
        who: Npub,
        action: Action,
        at: UnixMs,
    ) -> Result<(), (&'static str, u64)> {
        // Another event each time.
        static EVENTS: AtomicU64 = AtomicU64::new(0);
        let event = EVENTS.fetch_add(1, Ordering::Relaxed).to_string();
        limits
            .spend(&event, &client.parse().unwrap(), who, action, at)
            .map_err(|refused| {
                (
                    refused.refusal.reason,
                    refused.refusal.retry_after_ms.unwrap(),
                )
            })
    }

    #[test]
    fn a_client_budget_is_shared_by_its_admins_and_refills() {
        let limits = limits();
        spend(&limits, "c", ALICE, Action::Rotation, NOW).unwrap();
        spend(&limits, "c", BOB, Action::Rotation, NOW).unwrap();
        let (reason, wait) = spend(&limits, "c", BOB, Action::Rotation, NOW).unwrap_err();
        assert_eq!((reason, wait), ("limits.client", 1_800_000));
        spend(&limits, "other", BOB, Action::Rotation, NOW).unwrap();
        spend(&limits, "c", ALICE, Action::Rotation, UnixMs(NOW.0 + wait)).unwrap();
    }

    #[test]
    fn an_event_is_paid_for_once_however_often_it_is_judged() {
        let limits = limits();
        let client = "c".parse().unwrap();
        for _ in 0..10 {
            let spent = limits.spend("event", &client, ALICE, Action::Rotation, NOW);
            assert!(spent.is_ok());
        }
        for event in 0..2 * PAID {
            limits.paid().add(&event.to_string());
        }
        let paid = limits.paid();
        assert_eq!((paid.events.len(), paid.order.len()), (PAID, PAID));
    }

    #[test]
    fn polling_and_changing_leave_room_for_protection() {
        let limits = limits();
        for _ in 0..3 {
            spend(&limits, "c", ALICE, Action::Status, NOW).unwrap();
        }
        assert_eq!(
            spend(&limits, "c", ALICE, Action::Status, NOW)
                .unwrap_err()
                .0,
            "limits.admin"
        );
        for _ in 0..2 {
            spend(&limits, "c", ALICE, Action::Rotation, NOW).unwrap();
        }
        assert_eq!(
            spend(&limits, "c", BOB, Action::Rotation, NOW)
                .unwrap_err()
                .0,
            "limits.client"
        );
        for action in [Action::Emergency, Action::Revoke, Action::Cancel] {
            spend(&limits, "c", ALICE, action, NOW).unwrap();
        }
        assert_eq!(
            spend(&limits, "c", ALICE, Action::Revoke, NOW)
                .unwrap_err()
                .0,
            "limits.admin"
        );
    }

    #[test]
    fn only_offences_count_towards_the_breaker() {
        let limits = limits();
        for _ in 0..10 {
            limits.note(LEAF, &Refused::internal("store.unavailable", 1), NOW);
            limits.note(LEAF, &Refused::policy("limits.client"), NOW);
        }
        limits.listen_to(LEAF, NOW).unwrap();
        for _ in 0..3 {
            limits.note(LEAF, &Refused::unauthorized("jwt.signature"), NOW);
        }
        let refused = limits.listen_to(LEAF, NOW).unwrap_err();
        assert_eq!(refused.refusal.reason, "limits.breaker_open");
        assert_eq!(refused.refusal.retry_after_ms, Some(900_000));
        limits.listen_to(&[2; 32], NOW).unwrap();
    }

    #[test]
    fn the_common_breaker_never_holds_back_revoke_and_emergency() {
        let limits = limits();
        for sender in 0..4 {
            limits.note(&[sender; 32], &Refused::unauthorized("jwt.exp"), NOW);
        }
        for action in [
            Action::Rotation,
            Action::Rollback,
            Action::Cancel,
            Action::Status,
        ] {
            assert!(limits.listen_to_anybody(action, NOW).is_err(), "{action:?}");
        }
        for action in [Action::Revoke, Action::Emergency] {
            limits.listen_to_anybody(action, NOW).unwrap();
        }
    }
}
