//! Which keys of a JWK set are taken, and which are passed over.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use serde_json::{Value, json};

use super::*;
use crate::admission::scenarios::{Signer, TestIssuer};

fn verdict(jwk: &Value) -> Result<ProofAlgorithm, &'static str> {
    usable(&jwk.to_string()).map(|(_, key)| key.algorithm)
}

fn with(jwk: &Value, changes: &[(&str, Value)]) -> Value {
    let mut jwk = jwk.clone();
    for (field, value) in changes {
        jwk[*field] = value.clone();
    }
    jwk
}

#[test]
fn a_key_signs_with_the_one_algorithm_of_its_type() {
    let issuer = TestIssuer::new();
    let [rsa, ec, ed] = [Signer::Rsa, Signer::Ec, Signer::Ed].map(|signer| issuer.jwk(signer));
    assert_eq!(verdict(&rsa), Ok(ProofAlgorithm::Rs256));
    assert_eq!(verdict(&ec), Ok(ProofAlgorithm::Es256));
    assert_eq!(verdict(&ed), Ok(ProofAlgorithm::EdDsa));
    for (jwk, other) in [
        (&rsa, "PS256"),
        (&rsa, "HS256"),
        (&ec, "EdDSA"),
        (&ed, "ES256"),
    ] {
        assert_eq!(
            verdict(&with(jwk, &[("alg", json!(other))])),
            Err("for another algorithm")
        );
    }
}

#[test]
fn keys_that_may_not_sign_proofs_are_left_out() {
    let ed = TestIssuer::new().jwk(Signer::Ed);
    let secret = json!({ "kty": "oct", "kid": "k", "alg": "HS256", "k": "AAAA" });
    let cases = [
        (secret, "of a type that signs no proofs"),
        (
            with(&ed, &[("crv", json!("X25519"))]),
            "of a type that signs no proofs",
        ),
        (with(&ed, &[("use", json!("enc"))]), "not for signatures"),
        (
            with(&ed, &[("key_ops", json!(["sign"]))]),
            "not for verification",
        ),
        (
            with(&ed, &[("d", json!("AAAA"))]),
            "a private key was published",
        ),
        (with(&ed, &[("kid", Value::Null)]), "without kid"),
        (with(&ed, &[("kid", json!(""))]), "without kid"),
        (with(&ed, &[("x", json!("AAAA"))]), "OKP with a malformed x"),
        (
            json!({ "kty": "EC", "kid": "k", "crv": "P-384", "x": "AAAA", "y": "AAAA" }),
            "of a type that signs no proofs",
        ),
        (
            json!({ "kty": "EC", "kid": "k", "crv": "P-256", "x": "AAAA", "y": "AAAA" }),
            "EC with a malformed point",
        ),
        (json!({ "kid": "k" }), "malformed"),
        (json!("text"), "malformed"),
    ];
    for (jwk, why) in cases {
        assert_eq!(verdict(&jwk), Err(why), "{jwk}");
    }
    assert_eq!(
        verdict(&with(&ed, &[("key_ops", json!(["verify"]))])),
        Ok(ProofAlgorithm::EdDsa)
    );
}

#[test]
fn rsa_has_2048_bits_or_more() {
    let rsa = TestIssuer::new().jwk(Signer::Rsa);
    let modulus = |bits: usize| {
        let mut n = vec![0xff; bits.div_ceil(8)];
        n[0] = if bits.is_multiple_of(8) {
            0xff
        } else {
            (1 << (bits % 8)) - 1
        };
        keyturn_proto::encoding::b64url(&n)
    };
    let why = Err("RSA shorter than 2048 or longer than 8192 bits");
    for bits in [512, 1024, 2047, 8193] {
        assert_eq!(
            verdict(&with(&rsa, &[("n", json!(modulus(bits)))])),
            why,
            "{bits}"
        );
    }
    for bits in [2048, 4096, 8192] {
        assert!(
            verdict(&with(&rsa, &[("n", json!(modulus(bits)))])).is_ok(),
            "{bits}"
        );
    }
    // Leading zeros add nothing.
    let mut padded = vec![0; 128];
    padded.extend([0xff; 128]);
    let padded = keyturn_proto::encoding::b64url(&padded);
    assert_eq!(verdict(&with(&rsa, &[("n", json!(padded))])), why);
    for e in ["AQ", "AAAA", "Ag", ""] {
        assert_eq!(
            verdict(&with(&rsa, &[("e", json!(e))])),
            Err("RSA with an unusable exponent"),
            "{e}"
        );
    }
}

#[test]
fn a_set_needs_a_usable_key_and_the_first_of_a_double_stays() {
    let [first, second] = [
        TestIssuer::new().jwk(Signer::Ed),
        TestIssuer::new().jwk(Signer::Ed),
    ];
    for unusable in [
        "",
        "[]",
        "{}",
        "{\"keys\":[]}",
        "{\"keys\":[{\"kty\":\"oct\"}]}",
        "{\"keys\":7}",
    ] {
        assert!(KeySet::parse(unusable.as_bytes()).is_err(), "{unusable}");
    }
    let double = json!({ "keys": [{ "kty": "new" }, first, second] }).to_string();
    let set = KeySet::parse(double.as_bytes()).unwrap();
    let key = set.find("ed", ProofAlgorithm::EdDsa).unwrap();
    let x = from_b64url("x", first["x"].as_str().unwrap()).unwrap();
    assert_eq!(key.key.as_bytes(), x.as_slice());
    assert!(set.knows("ed") && set.find("ed", ProofAlgorithm::Rs256).is_none());
    assert!(!set.knows("nobody"));
}
