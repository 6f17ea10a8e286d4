//! Compact JWS (RFC 7515 §3.1), verified the strict way round: our allow-list decides, the token only names its choice.
//!
//! The header is parsed by us into [`ProofAlgorithm`], which cannot express `none` or an HMAC; a key knows the one algorithm it is for; and
//! the verifier is built from the key, never from the token. So an HS256 token "signed" with an RSA public key has no code to run through.
//! Key material inside the token (`jwk`, `jku`, `x5u`, `x5c`) is never looked at.

use jsonwebtoken::crypto::aws_lc::DEFAULT_PROVIDER;
use jsonwebtoken::{Algorithm, DecodingKey};
use keyturn_proto::encoding::from_b64url;
use serde::Deserialize;
use serde::de::IgnoredAny;
use zeroize::Zeroizing;

use super::settings::ProofAlgorithm;

/// A token taken apart, with nothing verified.
pub(super) struct Unverified<'a> {
    pub(super) algorithm: ProofAlgorithm,
    pub(super) kid: String,
    signing_input: &'a str,
    payload: &'a str,
    signature: Vec<u8>,
}

/// One public key of the issuer, for exactly one algorithm.
#[derive(Clone)]
pub(super) struct IssuerKey {
    pub(super) algorithm: ProofAlgorithm,
    pub(super) key: DecodingKey,
}

/// Longest `kid`.
const MAX_KID: usize = 256;

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    crit: Option<IgnoredAny>,
}

/// Takes a token apart and holds its header against the allow-list. The error is a word for the audit trail.
pub(super) fn parse<'a>(
    token: &'a str,
    allowed: &[ProofAlgorithm],
) -> Result<Unverified<'a>, &'static str> {
    let (signing_input, signature) = token.rsplit_once('.').ok_or("jwt.malformed")?;
    let (header, payload) = signing_input.split_once('.').ok_or("jwt.malformed")?;
    if payload.contains('.') {
        return Err("jwt.malformed");
    }
    let header = from_b64url("jwt header", header).map_err(|_| "jwt.malformed")?;
    let Header { alg, kid, crit } = serde_json::from_slice(&header).map_err(|_| "jwt.malformed")?;
    let algorithm = ProofAlgorithm::from_jose(&alg)
        .filter(|algorithm| allowed.contains(algorithm))
        .ok_or("jwt.alg_not_allowed")?;
    // RFC 7515 §4.1.11: an extension we do not understand makes the token invalid, and we understand none.
    if crit.is_some() {
        return Err("jwt.critical_header");
    }
    let kid = kid
        .filter(|kid| (1..=MAX_KID).contains(&kid.len()))
        .ok_or("jwt.kid_missing")?;
    let signature = from_b64url("jwt signature", signature).map_err(|_| "jwt.malformed")?;
    Ok(Unverified {
        algorithm,
        kid,
        signing_input,
        payload,
        signature: signature.to_vec(),
    })
}

impl Unverified<'_> {
    /// The payload, if the signature holds under `key`.
    pub(super) fn verify(&self, key: &IssuerKey) -> Result<Zeroizing<Vec<u8>>, &'static str> {
        if key.algorithm != self.algorithm {
            return Err("jwt.alg_not_of_key");
        }
        let algorithm = match key.algorithm {
            ProofAlgorithm::Rs256 => Algorithm::RS256,
            ProofAlgorithm::Es256 => Algorithm::ES256,
            ProofAlgorithm::EdDsa => Algorithm::EdDSA,
        };
        // Named, not the process-wide default: another crate's feature choice must not be able to take it away.
        let verifier = (DEFAULT_PROVIDER.verifier_factory)(&algorithm, &key.key)
            .map_err(|_| "jwt.alg_not_of_key")?;
        verifier
            .verify(self.signing_input.as_bytes(), &self.signature)
            .map_err(|_| "jwt.signature")?;
        from_b64url("jwt payload", self.payload).map_err(|_| "jwt.malformed")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: [ProofAlgorithm; 3] = [
        ProofAlgorithm::Rs256,
        ProofAlgorithm::Es256,
        ProofAlgorithm::EdDsa,
    ];

    fn token(header: &str) -> String {
        let part = keyturn_proto::encoding::b64url;
        format!(
            "{}.{}.{}",
            part(header.as_bytes()),
            part(b"{}"),
            part(&[7; 64])
        )
    }

    fn verdict(header: &str, allowed: &[ProofAlgorithm]) -> Result<ProofAlgorithm, &'static str> {
        parse(&token(header), allowed).map(|token| token.algorithm)
    }

    proptest! {
        #[test]
        fn no_token_panics(text in "\\PC{0,200}") {
            let _ = parse(&text, &ALL);
        }

        #[test]
        fn no_header_panics(header in "\\PC{0,120}") {
            let _ = verdict(&header, &ALL);
        }

        #[test]
        fn invariant_only_three_names_are_algorithms(alg in "[A-Za-z0-9]{0,6}") {
            let known = ["RS256", "ES256", "EdDSA"].contains(&alg.as_str());
            let header = format!("{{\"alg\":\"{alg}\",\"kid\":\"k\"}}");
            prop_assert_eq!(verdict(&header, &ALL).is_ok(), known);
        }
    }

    #[test]
    fn the_configured_list_narrows_the_fixed_one() {
        let header = r#"{"alg":"RS256","kid":"k"}"#;
        assert_eq!(verdict(header, &ALL), Ok(ProofAlgorithm::Rs256));
        assert_eq!(
            verdict(header, &[ProofAlgorithm::EdDsa]),
            Err("jwt.alg_not_allowed")
        );
        assert_eq!(verdict(header, &[]), Err("jwt.alg_not_allowed"));
    }

    #[test]
    fn a_header_says_each_thing_once_and_names_a_key() {
        for (header, why) in [
            (r#"{"alg":"EdDSA","alg":"none","kid":"k"}"#, "jwt.malformed"),
            (r#"{"alg":["EdDSA"],"kid":"k"}"#, "jwt.malformed"),
            (r#"{"kid":"k"}"#, "jwt.malformed"),
            (r#"{"alg":"EdDSA","kid":""}"#, "jwt.kid_missing"),
            (r#"{"alg":"EdDSA","kid":null}"#, "jwt.kid_missing"),
            (
                r#"{"alg":"EdDSA","kid":"k","crit":[]}"#,
                "jwt.critical_header",
            ),
        ] {
            assert_eq!(verdict(header, &ALL), Err(why), "{header}");
        }
        let long = format!(r#"{{"alg":"EdDSA","kid":"{}"}}"#, "k".repeat(257));
        assert_eq!(verdict(&long, &ALL), Err("jwt.kid_missing"));
        for shape in [
            "",
            ".",
            "..",
            "a.b",
            "a.b.c.d",
            &format!("{}.x", token("{}")),
        ] {
            assert_eq!(parse(shape, &ALL).err(), Some("jwt.malformed"), "{shape}");
        }
    }
}
