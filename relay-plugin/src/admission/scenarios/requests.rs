//! What is right, and what is wrong with everything but the proof: sender, code, text, terms.

use keyturn_proto::ErrorClass::{PolicyViolation, UnauthorizedRequest};
use keyturn_proto::{Action, Params, UnixMs};
use serde_json::json;

use super::attempt::{Attempt, Code, Sender};
use super::issuer::Signer;
use super::table::{
    Expected, LOCKOUT_AFTER, Scenario, coded, params, refused, scenario, sender, text,
};

pub(super) fn good() -> Vec<Scenario> {
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

pub(super) fn members() -> Vec<Scenario> {
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

pub(super) fn codes() -> Vec<Scenario> {
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
            vec![coded(Code::AtStep(0)), coded(Code::OfThePrevious)],
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

pub(super) fn texts() -> Vec<Scenario> {
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

pub(super) fn policies() -> Vec<Scenario> {
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
