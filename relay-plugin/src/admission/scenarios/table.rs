//! The list. Each line is one thing that is wrong, the class that the requester sees and the reason that the audit trail keeps.

use keyturn_proto::ErrorClass::{self, PolicyViolation, UnauthorizedRequest};
use keyturn_proto::{Params, UnixMs};
use serde_json::{Map, Value};

use super::attempt::{Attempt, Code, Nonce, Sender};
use super::issuer::{Forgery, Signer};
use super::{proofs, requests};

/// How the last attempt of a scenario must end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// With a permit.
    Admitted,
    /// With this class, and this reason in the audit trail.
    Refused(ErrorClass, &'static str),
}

/// Attempts in order; only the last one's end is judged.
pub struct Scenario {
    /// What is wrong.
    pub name: &'static str,
    /// In order.
    pub attempts: Vec<Attempt>,
    /// How the last one ends.
    pub expected: Expected,
}

/// A lock-out after this many wrong codes is assumed by the list.
pub const LOCKOUT_AFTER: u32 = 3;

pub(super) type Claims = fn(&mut Map<String, Value>, UnixMs);

pub(super) fn scenario(name: &'static str, attempts: Vec<Attempt>, expected: Expected) -> Scenario {
    Scenario {
        name,
        attempts,
        expected,
    }
}

pub(super) fn refused(name: &'static str, reason: &'static str, attempt: Attempt) -> Scenario {
    scenario(
        name,
        vec![attempt],
        Expected::Refused(UnauthorizedRequest, reason),
    )
}

pub(super) fn forged(
    name: &'static str,
    reason: &'static str,
    signer: Signer,
    forgery: Forgery,
) -> Scenario {
    refused(
        name,
        reason,
        Attempt {
            signer,
            forgery,
            ..Attempt::good()
        },
    )
}

pub(super) fn claims(name: &'static str, reason: &'static str, claims: Claims) -> Scenario {
    refused(
        name,
        reason,
        Attempt {
            claims,
            ..Attempt::good()
        },
    )
}

pub(super) fn nonce(name: &'static str, reason: &'static str, nonce: Nonce) -> Scenario {
    refused(
        name,
        reason,
        Attempt {
            nonce,
            ..Attempt::good()
        },
    )
}

pub(super) fn sender(name: &'static str, reason: &'static str, sender: Sender) -> Scenario {
    refused(
        name,
        reason,
        Attempt {
            sender,
            ..Attempt::good()
        },
    )
}

pub(super) fn text(
    name: &'static str,
    reason: &'static str,
    text: fn(String) -> String,
) -> Scenario {
    let attempt = Attempt {
        text,
        ..Attempt::good()
    };
    scenario(
        name,
        vec![attempt],
        Expected::Refused(PolicyViolation, reason),
    )
}

pub(super) fn params(name: &'static str, reason: &'static str, params: Params) -> Scenario {
    let params = Params {
        rotation_reason: "scenario".to_owned(),
        ..params
    };
    let attempt = Attempt {
        params,
        ..Attempt::good()
    };
    scenario(
        name,
        vec![attempt],
        Expected::Refused(PolicyViolation, reason),
    )
}

pub(super) fn coded(code: Code) -> Attempt {
    Attempt {
        code,
        ..Attempt::good()
    }
}

/// Every scenario. They are independent: each runs in a world of its own. Assumed of it: TOTP policy `either`, `iss` "test-issuer",
/// [`LOCKOUT_AFTER`], a maximum grace of 30 days, and limits and breakers out of the way.
#[must_use]
pub fn scenarios() -> Vec<Scenario> {
    [
        requests::good(),
        proofs::signatures(),
        proofs::claim_sets(),
        proofs::nonces(),
        requests::members(),
        requests::codes(),
        requests::texts(),
        requests::policies(),
    ]
    .into_iter()
    .flatten()
    .collect()
}
