//! Sixth step: what an authorised request may ask for (protocol.md §6.4). Pure.
//!
//! Judged here is what the request itself decides. What depends on the client's present state and can be a repeat of something already
//! recorded (a rotation under way, the minimum interval) is judged inside the reserve transaction, which knows repeats; the permit carries
//! the interval there.

use std::time::Duration;

use keyturn_proto::{Action, Params, UnixMs};
use keyturn_store::documents::{ClientDoc, ClientStatus, RotationDoc};

use super::refused::Refused;
use super::settings::{DELAY_CEILING, GRACE_CEILING, PolicySettings};

/// How much earlier than the minimum delay a requested `not_before` may lie: the requester counted from its own clock, before the request
/// travelled. The judged value never goes below the minimum.
const TRAVEL: Duration = Duration::from_secs(60);

/// The judged terms of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Terms {
    pub(super) grace_ms: u64,
    pub(super) not_before: UnixMs,
    pub(super) min_interval_ms: u64,
}

/// Judges a new request.
pub(super) fn judge(
    settings: &PolicySettings,
    client: &ClientDoc,
    action: Action,
    params: &Params,
    received_at: UnixMs,
    now: UnixMs,
) -> Result<Terms, Refused> {
    allowed(settings, client, action)?;
    let immediate = Terms {
        grace_ms: 0,
        not_before: now,
        min_interval_ms: 0,
    };
    match action {
        Action::Rotation => Ok(Terms {
            grace_ms: grace(settings, client, params.grace_duration_ms)?,
            not_before: not_before(settings.min_delay, params.not_before, received_at, now)?,
            min_interval_ms: client
                .policy
                .min_interval_ms
                .unwrap_or(millis(settings.min_interval)),
        }),
        // Emergency: Δ 0, grace 0, and no interval holds it up (protocol.md §3).
        Action::Emergency | Action::Cancel | Action::Rollback | Action::Revoke | Action::Status => {
            Ok(immediate)
        }
    }
}

/// Judges a recorded reservation again, after a restart. `not_before` and the interval were judged when it was recorded.
pub(super) fn judge_again(
    settings: &PolicySettings,
    client: &ClientDoc,
    rotation: &RotationDoc,
) -> Result<(), Refused> {
    allowed(settings, client, rotation.action)?;
    grace(settings, client, Some(rotation.grace_duration_ms)).map(drop)
}

/// The client's status and the denylist.
fn allowed(settings: &PolicySettings, client: &ClientDoc, action: Action) -> Result<(), Refused> {
    let makes_secrets_live = match action {
        Action::Rotation | Action::Emergency | Action::Rollback => true,
        // Taking something back, or looking, is never denied to an admin.
        Action::Cancel | Action::Revoke | Action::Status => false,
    };
    if makes_secrets_live && settings.denylist.contains(&client.client_id) {
        return Err(Refused::policy("policy.denylisted"));
    }
    match client.status {
        ClientStatus::Active => Ok(()),
        ClientStatus::Suspended if client.policy.held && makes_secrets_live => {
            Err(Refused::policy("policy.client_held"))
        }
        // Suspended by a revoke: a rotation is how it gets a living secret again.
        ClientStatus::Suspended => Ok(()),
        ClientStatus::Revoked if makes_secrets_live => {
            Err(Refused::policy("policy.client_revoked"))
        }
        ClientStatus::Revoked => Ok(()),
    }
}

/// The grace window: the request's, or the default, within the maximum. The client's overrides go before the relay's values; nothing goes
/// past the ceiling of the protocol.
fn grace(
    settings: &PolicySettings,
    client: &ClientDoc,
    requested: Option<u64>,
) -> Result<u64, Refused> {
    let max = client
        .policy
        .grace_max_ms
        .unwrap_or(millis(settings.max_grace))
        .min(millis(GRACE_CEILING));
    let default = client
        .policy
        .grace_default_ms
        .unwrap_or(millis(settings.default_grace))
        .min(max);
    match requested {
        None => Ok(default),
        Some(grace) if grace <= max => Ok(grace),
        Some(_) => Err(Refused::policy("policy.grace_over_max")),
    }
}

/// The earliest promotion. The request is judged by when it was received; the delay counts from now, also for one taken up late.
fn not_before(
    min_delay: Duration,
    requested: Option<UnixMs>,
    received_at: UnixMs,
    now: UnixMs,
) -> Result<UnixMs, Refused> {
    let earliest = now.plus(min_delay);
    let Some(requested) = requested else {
        return Ok(earliest);
    };
    if requested.plus(TRAVEL) < received_at.plus(min_delay) {
        return Err(Refused::policy("policy.not_before_too_soon"));
    }
    if requested > received_at.plus(DELAY_CEILING) {
        return Err(Refused::policy("policy.not_before_too_late"));
    }
    Ok(requested.max(earliest))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use keyturn_store::documents::PolicyOverrides;

    use super::*;

    const NOW: UnixMs = UnixMs(1_760_000_000_000);
    const DAY: u64 = 24 * 3_600_000;
    const MINUTE: u64 = 60_000;

    fn settings() -> PolicySettings {
        PolicySettings {
            default_grace: Duration::from_secs(7 * 24 * 3600),
            max_grace: Duration::from_secs(30 * 24 * 3600),
            min_delay: Duration::from_secs(600),
            min_interval: Duration::from_secs(3600),
            denylist: vec!["frozen".parse().unwrap()],
        }
    }

    fn client(status: ClientStatus) -> ClientDoc {
        ClientDoc {
            client_id: "c".parse().unwrap(),
            current_version: None,
            previous_version: None,
            status,
            admin_groups: vec![],
            updated_at: NOW,
            last_rotation_at: None,
            policy: PolicyOverrides::default(),
            active_rotation: None,
            fence: 0,
            snapshot: vec![],
        }
    }

    fn rotate(client: &ClientDoc, params: &Params) -> Result<Terms, &'static str> {
        judge(&settings(), client, Action::Rotation, params, NOW, NOW)
            .map_err(|refused| refused.refusal.reason)
    }

    #[test]
    fn a_rotation_gets_the_defaults() {
        let terms = rotate(&client(ClientStatus::Active), &Params::default()).unwrap();
        assert_eq!(terms.grace_ms, 7 * DAY);
        assert_eq!(terms.not_before.0, NOW.0 + 10 * MINUTE);
        assert_eq!(terms.min_interval_ms, 60 * MINUTE);
    }

    #[test]
    fn overrides_go_before_but_never_past_thirty_days() {
        let mut own = client(ClientStatus::Active);
        own.policy.grace_default_ms = Some(90 * DAY);
        own.policy.grace_max_ms = Some(365 * DAY);
        own.policy.min_interval_ms = Some(1);
        let terms = rotate(&own, &Params::default()).unwrap();
        assert_eq!((terms.grace_ms, terms.min_interval_ms), (30 * DAY, 1));
        own.policy.grace_max_ms = Some(DAY);
        for (asked, verdict) in [(DAY, Ok(DAY)), (DAY + 1, Err("policy.grace_over_max"))] {
            let params = Params {
                grace_duration_ms: Some(asked),
                ..Params::default()
            };
            assert_eq!(rotate(&own, &params).map(|terms| terms.grace_ms), verdict);
        }
    }

    #[test]
    fn the_delay_is_never_below_the_minimum() {
        let earliest = NOW.0 + 10 * MINUTE;
        let ok = |at: u64| Ok(UnixMs(at));
        let cases = [
            (0, Err("policy.not_before_too_soon")),
            (earliest - MINUTE - 1, Err("policy.not_before_too_soon")),
            (earliest - MINUTE, ok(earliest)),
            (earliest + 5, ok(earliest + 5)),
            (NOW.0 + 30 * DAY, ok(NOW.0 + 30 * DAY)),
            (NOW.0 + 30 * DAY + 1, Err("policy.not_before_too_late")),
            (u64::MAX, Err("policy.not_before_too_late")),
        ];
        for (asked, verdict) in cases {
            let params = Params {
                not_before: Some(UnixMs(asked)),
                ..Params::default()
            };
            let terms = rotate(&client(ClientStatus::Active), &params);
            assert_eq!(terms.map(|terms| terms.not_before), verdict, "{asked}");
        }
    }

    #[test]
    fn a_request_taken_up_late_is_judged_by_its_receipt_and_delayed_from_now() {
        let late = UnixMs(NOW.0 + 60 * MINUTE);
        let params = Params {
            not_before: Some(UnixMs(NOW.0 + 10 * MINUTE)),
            ..Params::default()
        };
        let client = client(ClientStatus::Active);
        let terms = judge(&settings(), &client, Action::Rotation, &params, NOW, late).unwrap();
        assert_eq!(terms.not_before.0, late.0 + 10 * MINUTE);
    }

    #[test]
    fn an_emergency_waits_for_nothing() {
        let client = client(ClientStatus::Suspended);
        let terms = judge(
            &settings(),
            &client,
            Action::Emergency,
            &Params::default(),
            NOW,
            NOW,
        )
        .unwrap();
        assert_eq!(
            terms,
            Terms {
                grace_ms: 0,
                not_before: NOW,
                min_interval_ms: 0
            }
        );
    }

    #[test]
    fn who_is_gone_or_denied_gets_no_live_secret_but_can_be_looked_at_and_revoked() {
        let mut denied = client(ClientStatus::Active);
        denied.client_id = "frozen".parse().unwrap();
        let gone = client(ClientStatus::Revoked);
        let mut held = client(ClientStatus::Suspended);
        held.policy.held = true;
        for (client, reason) in [
            (&denied, "policy.denylisted"),
            (&gone, "policy.client_revoked"),
            (&held, "policy.client_held"),
        ] {
            let verdict = |action| {
                judge(&settings(), client, action, &Params::default(), NOW, NOW)
                    .map(drop)
                    .map_err(|refused| refused.refusal.reason)
            };
            for action in [Action::Rotation, Action::Emergency, Action::Rollback] {
                assert_eq!(verdict(action), Err(reason), "{action:?}");
            }
            for action in [Action::Cancel, Action::Revoke, Action::Status] {
                assert_eq!(verdict(action), Ok(()), "{action:?}");
            }
        }
    }
}
