//! What is wrong with a proof: its signature, its claims, its nonce.

use serde_json::json;

use super::attempt::{Attempt, Nonce};
use super::issuer::{Forgery, Signer};
use super::table::{Expected, Scenario, claims, forged, nonce, scenario};
use keyturn_proto::ErrorClass::UnauthorizedRequest;

pub(super) fn signatures() -> Vec<Scenario> {
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

pub(super) fn claim_sets() -> Vec<Scenario> {
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

pub(super) fn nonces() -> Vec<Scenario> {
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
