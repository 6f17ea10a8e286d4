//! The list. Each line is one thing that is wrong, the class that the requester sees and the reason that the audit trail keeps.

use keyturn_proto::ErrorClass::{self, PolicyViolation, UnauthorizedRequest};
use keyturn_proto::{Action, Params, UnixMs};
use serde_json::{Map, Value, json};

use super::attempt::{Attempt, Code, Nonce, Sender};
use super::issuer::{Forgery, Signer};

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

type Claims = fn(&mut Map<String, Value>, UnixMs);

fn scenario(name: &'static str, attempts: Vec<Attempt>, expected: Expected) -> Scenario {
    Scenario {
        name,
        attempts,
        expected,
    }
}

fn refused(name: &'static str, reason: &'static str, attempt: Attempt) -> Scenario {
    scenario(
        name,
        vec![attempt],
        Expected::Refused(UnauthorizedRequest, reason),
    )
}

fn forged(name: &'static str, reason: &'static str, signer: Signer, forgery: Forgery) -> Scenario {
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

fn claims(name: &'static str, reason: &'static str, claims: Claims) -> Scenario {
    refused(
        name,
        reason,
        Attempt {
            claims,
            ..Attempt::good()
        },
    )
}

fn nonce(name: &'static str, reason: &'static str, nonce: Nonce) -> Scenario {
    refused(
        name,
        reason,
        Attempt {
            nonce,
            ..Attempt::good()
        },
    )
}

fn sender(name: &'static str, reason: &'static str, sender: Sender) -> Scenario {
    refused(
        name,
        reason,
        Attempt {
            sender,
            ..Attempt::good()
        },
    )
}

fn text(name: &'static str, reason: &'static str, text: fn(String) -> String) -> Scenario {
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

fn params(name: &'static str, reason: &'static str, params: Params) -> Scenario {
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

fn coded(code: Code) -> Attempt {
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
        good(),
        signatures(),
        claim_sets(),
        nonces(),
        members(),
        codes(),
        texts(),
        policies(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn good() -> Vec<Scenario> {
    let signed = |name, signer| {
        let attempt = Attempt {
            signer,
            ..Attempt::good()
        };
        scenario(name, vec![attempt], Expected::Admitted)
    };
    let mut list = vec![
        signed("RS256 is accepted", Signer::Rsa),
        signed("ES256 is accepted", Signer::Ec),
        signed("EdDSA is accepted", Signer::Ed),
        scenario(
            "a repeat with fresh proofs is admitted",
            vec![
                Attempt::good(),
                Attempt {
                    same_id: true,
                    ..Attempt::good()
                },
            ],
            Expected::Admitted,
        ),
        scenario(
            "npub in hex, several audiences",
            vec![Attempt {
                claims: |claims, _| {
                    let npub = claims["npub"]
                        .as_str()
                        .unwrap()
                        .parse::<keyturn_proto::Npub>()
                        .unwrap();
                    claims["npub"] = json!(npub.to_hex());
                    claims["aud"] = json!(["other", "rust-nostr-relay"]);
                },
                ..Attempt::good()
            }],
            Expected::Admitted,
        ),
        scenario(
            "a proof of exactly 300 s",
            vec![Attempt {
                claims: |claims, now| claims["exp"] = json!(now.as_secs() + 300),
                ..Attempt::good()
            }],
            Expected::Admitted,
        ),
        scenario(
            "relay-verified code instead of amr totp",
            vec![Attempt {
                code: Code::AtStep(0),
                claims: |claims, _| claims["amr"] = json!(["app_attest"]),
                ..Attempt::good()
            }],
            Expected::Admitted,
        ),
    ];
    for offset in [-1, 0, 1] {
        list.push(scenario(
            "a code one step off",
            vec![coded(Code::AtStep(offset))],
            Expected::Admitted,
        ));
    }
    for action in [
        Action::Cancel,
        Action::Rollback,
        Action::Revoke,
        Action::Emergency,
        Action::Status,
    ] {
        list.push(scenario(
            action.as_str(),
            vec![Attempt {
                action,
                ..Attempt::good()
            }],
            Expected::Admitted,
        ));
    }
    list
}

fn signatures() -> Vec<Scenario> {
    use Forgery as F;
    use Signer::{Ec, Ed, Rsa};
    vec![
        forged("alg none", "jwt.alg_not_allowed", Ed, F::AlgNone),
        forged("alg nOnE", "jwt.alg_not_allowed", Ed, F::AlgNoneMixedCase),
        forged(
            "HS256 with the RSA public key (DER)",
            "jwt.alg_not_allowed",
            Rsa,
            F::HmacWithRsaDer,
        ),
        forged(
            "HS256 with the RSA public key (PEM)",
            "jwt.alg_not_allowed",
            Rsa,
            F::HmacWithRsaPem,
        ),
        forged("RS384", "jwt.alg_not_allowed", Rsa, F::OtherHash),
        forged(
            "kid of a key of another type",
            "jwt.alg_not_of_key",
            Ec,
            F::KidOfAnotherKey,
        ),
        forged("unknown kid", "jwt.kid_unknown", Ed, F::UnknownKid),
        forged("no kid", "jwt.kid_missing", Ed, F::NoKid),
        forged(
            "key embedded in the header",
            "jwt.signature",
            Ed,
            F::EmbeddedKey,
        ),
        forged(
            "critical header",
            "jwt.critical_header",
            Ed,
            F::CriticalHeader,
        ),
        forged(
            "claim changed after signing (RSA)",
            "jwt.signature",
            Rsa,
            F::ChangedClaim,
        ),
        forged(
            "claim changed after signing (EC)",
            "jwt.signature",
            Ec,
            F::ChangedClaim,
        ),
        forged(
            "claim changed after signing (Ed)",
            "jwt.signature",
            Ed,
            F::ChangedClaim,
        ),
        forged("no signature", "jwt.signature", Ed, F::NoSignature),
        forged("padded signature", "jwt.malformed", Ed, F::PaddedSignature),
        forged("not a JWS", "jwt.malformed", Ed, F::Garbage),
    ]
}

fn claim_sets() -> Vec<Scenario> {
    vec![
        claims("wrong aud", "jwt.aud", |claims, _| {
            claims["aud"] = json!("another-service")
        }),
        claims("wrong iss", "jwt.iss", |claims, _| {
            claims["iss"] = json!("https://evil.example")
        }),
        claims("no iss", "jwt.iss", |claims, _| drop(claims.remove("iss"))),
        claims("expired", "jwt.expired", |claims, now| {
            claims["iat"] = json!(now.as_secs() - 200);
            claims["nbf"] = json!(now.as_secs() - 200);
            claims["exp"] = json!(now.as_secs() - 60);
        }),
        claims("lifetime over 300 s", "jwt.lifetime", |claims, now| {
            claims["exp"] = json!(now.as_secs() + 301)
        }),
        claims(
            "expires before it was issued",
            "jwt.lifetime",
            |claims, now| {
                claims["iat"] = json!(now.as_secs() + 3);
                claims["exp"] = json!(now.as_secs() + 2);
            },
        ),
        claims(
            "issued in the future",
            "jwt.iat_in_future",
            |claims, now| {
                claims["iat"] = json!(now.as_secs() + 60);
                claims["exp"] = json!(now.as_secs() + 120);
            },
        ),
        claims("not valid yet", "jwt.not_yet_valid", |claims, now| {
            claims["nbf"] = json!(now.as_secs() + 60)
        }),
        claims("far future numbers", "jwt.iat_in_future", |claims, _| {
            claims["iat"] = json!(u64::MAX - 1);
            claims["exp"] = json!(u64::MAX);
        }),
        claims("exp as text", "jwt.claims", |claims, now| {
            claims["exp"] = json!((now.as_secs() + 100).to_string())
        }),
        claims("amr without app_attest", "jwt.amr", |claims, _| {
            claims["amr"] = json!(["totp"])
        }),
        claims(
            "amr without totp and no code",
            "totp.missing",
            |claims, _| claims["amr"] = json!(["app_attest"]),
        ),
        claims("amr empty", "jwt.amr", |claims, _| {
            claims["amr"] = json!([])
        }),
        claims("npub of somebody else", "jwt.npub", |claims, _| {
            claims["npub"] = json!("07".repeat(32))
        }),
        claims("another group", "jwt.mls_group", |claims, _| {
            claims["mls_group"] = json!("0707")
        }),
        claims("no amr", "jwt.amr_missing", |claims, _| {
            drop(claims.remove("amr"))
        }),
        claims("no aud", "jwt.aud_missing", |claims, _| {
            drop(claims.remove("aud"))
        }),
        claims("no iat", "jwt.iat_missing", |claims, _| {
            drop(claims.remove("iat"))
        }),
        claims("no exp", "jwt.exp_missing", |claims, _| {
            drop(claims.remove("exp"))
        }),
        claims("no npub", "jwt.npub_missing", |claims, _| {
            drop(claims.remove("npub"))
        }),
        claims("no mls_group", "jwt.mls_group_missing", |claims, _| {
            drop(claims.remove("mls_group"))
        }),
        claims("no nonce", "nonce.missing", |claims, _| {
            drop(claims.remove("nonce"))
        }),
    ]
}

fn nonces() -> Vec<Scenario> {
    vec![
        nonce("nonce never issued", "nonce.not_issued", Nonce::NeverIssued),
        nonce(
            "nonce bound to another leaf",
            "nonce.other_request",
            Nonce::OtherLeaf,
        ),
        nonce(
            "nonce bound to another action",
            "nonce.other_request",
            Nonce::OtherAction,
        ),
        nonce("nonce without binding", "nonce.malformed", Nonce::Malformed),
        scenario(
            "nonce reused",
            vec![
                Attempt::good(),
                Attempt {
                    nonce: Nonce::ChallengeOfThePrevious,
                    ..Attempt::good()
                },
            ],
            Expected::Refused(UnauthorizedRequest, "nonce.reused"),
        ),
        scenario(
            "nonce reused for the same request",
            vec![
                Attempt::good(),
                Attempt {
                    nonce: Nonce::ChallengeOfThePrevious,
                    same_id: true,
                    ..Attempt::good()
                },
            ],
            Expected::Refused(UnauthorizedRequest, "nonce.reused"),
        ),
    ]
}

fn members() -> Vec<Scenario> {
    vec![
        sender("not enrolled", "admin.not_enrolled", Sender::Stranger),
        sender(
            "leaf key never proven",
            "admin.key_not_proven",
            Sender::UnprovenLeaf,
        ),
        sender(
            "member of another client's group",
            "group.not_of_client",
            Sender::OtherGroup,
        ),
        sender(
            "enrolled for other clients",
            "admin.out_of_scope",
            Sender::OutOfScope,
        ),
        refused(
            "unknown client",
            "client.unknown",
            Attempt {
                client: Some("no-such-client"),
                ..Attempt::good()
            },
        ),
    ]
}

fn codes() -> Vec<Scenario> {
    let refused = |reason| Expected::Refused(UnauthorizedRequest, reason);
    let after = |attempts: u32, last: Attempt| {
        let mut list = vec![coded(Code::Wrong); attempts as usize];
        list.push(last);
        list
    };
    vec![
        scenario(
            "wrong code",
            vec![coded(Code::Wrong)],
            refused("totp.wrong"),
        ),
        scenario(
            "code two steps old",
            vec![coded(Code::AtStep(-2))],
            refused("totp.wrong"),
        ),
        scenario(
            "code two steps ahead",
            vec![coded(Code::AtStep(2))],
            refused("totp.wrong"),
        ),
        scenario(
            "the same step twice",
            vec![coded(Code::AtStep(0)); 2],
            refused("totp.replayed"),
        ),
        scenario(
            "not locked out yet",
            after(LOCKOUT_AFTER - 1, coded(Code::AtStep(0))),
            Expected::Admitted,
        ),
        scenario(
            "locked out",
            after(LOCKOUT_AFTER, coded(Code::AtStep(0))),
            refused("totp.locked"),
        ),
    ]
}

fn texts() -> Vec<Scenario> {
    vec![
        text("malformed JSON", "request.malformed", |mut text| {
            text.pop();
            text
        }),
        text("a list", "request.malformed", |text| format!("[{text}]")),
        text("empty", "request.malformed", |_| String::new()),
        text(
            "client id that cannot be one",
            "request.malformed",
            |text| text.replacen("\"client_id\":\"", "\"client_id\":\"../", 1),
        ),
        text("another profile", "request.invalid", |text| {
            text.replace("nip-kr/0.1.0", "nip-kr/9.0.0")
        }),
        text("field given twice", "request.malformed", |text| {
            text.replacen('{', "{\"action_type\":\"status\",", 1)
        }),
        text("1 MiB", "request.too_large", |text| {
            text.replacen(
                '{',
                &format!("{{\"padding\":\"{}\",", "x".repeat(1 << 20)),
                1,
            )
        }),
    ]
}

fn policies() -> Vec<Scenario> {
    let days = |days: u64| days * 24 * 3_600_000;
    vec![
        params(
            "grace over the maximum",
            "policy.grace_over_max",
            Params {
                grace_duration_ms: Some(days(30) + 1),
                ..Params::default()
            },
        ),
        params(
            "grace beyond all numbers",
            "policy.grace_over_max",
            Params {
                grace_duration_ms: Some(u64::MAX),
                ..Params::default()
            },
        ),
        params(
            "not_before in the past",
            "policy.not_before_too_soon",
            Params {
                not_before: Some(UnixMs(0)),
                ..Params::default()
            },
        ),
        params(
            "not_before at the end of time",
            "policy.not_before_too_late",
            Params {
                not_before: Some(UnixMs(u64::MAX)),
                ..Params::default()
            },
        ),
        scenario(
            "no reason",
            vec![Attempt {
                params: Params::default(),
                ..Attempt::good()
            }],
            Expected::Refused(PolicyViolation, "request.invalid"),
        ),
    ]
}
