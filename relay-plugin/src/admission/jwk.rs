//! The issuer's JWK set (RFC 7517): which public keys count, and for which algorithm each.
//!
//! A key gets exactly one algorithm from its own type: RSA → RS256, EC P-256 → ES256, OKP Ed25519 → EdDSA. Symmetric keys do not exist here.
//! Keys that we cannot or must not use are left out, as RFC 7517 §5 asks; a set without any usable key is an error.

use std::collections::HashMap;

use jsonwebtoken::DecodingKey;
use keyturn_proto::encoding::{from_b64url, from_b64url_array};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use super::jws::IssuerKey;
use super::settings::ProofAlgorithm;

/// Largest JWKS document in bytes.
pub(super) const MAX_BYTES: usize = 256 * 1024;
/// Most keys looked at.
const MAX_KEYS: usize = 100;
/// Accepted RSA moduli, bits.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

/// The usable keys by `kid` and algorithm.
pub(super) struct KeySet(HashMap<(String, ProofAlgorithm), IssuerKey>);

#[derive(Deserialize)]
struct Document<'a> {
    #[serde(borrow)]
    keys: Vec<&'a RawValue>,
}

#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    #[serde(rename = "use")]
    usage: Option<String>,
    key_ops: Option<Vec<String>>,
    alg: Option<String>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
    d: Option<IgnoredAny>,
}

impl KeySet {
    /// Reads a JWKS document.
    pub(super) fn parse(text: &[u8]) -> Result<Self, &'static str> {
        Self::parse_and_tell(text).map(|(keys, _)| keys)
    }

    /// As [`KeySet::parse`], and why keys were left out.
    pub(super) fn parse_and_tell(text: &[u8]) -> Result<(Self, Vec<&'static str>), &'static str> {
        let document: Document<'_> =
            serde_json::from_slice(text).map_err(|_| "the answer is not a JWK set")?;
        let mut keys = HashMap::new();
        let mut left_out = Vec::new();
        for raw in document.keys.into_iter().take(MAX_KEYS) {
            match usable(raw.get()) {
                // A `kid` is meant to be unique per key; the first one stays, so that an appended double changes nothing.
                Ok((kid, key)) => {
                    keys.entry((kid, key.algorithm)).or_insert(key);
                }
                Err(why) => {
                    tracing::debug!(why, "a key of the issuer's JWK set is left out");
                    left_out.push(why);
                }
            }
        }
        if keys.is_empty() {
            return Err("the JWK set has no key that may sign proofs");
        }
        Ok((Self(keys), left_out))
    }

    /// Every key: its `kid` and the algorithm it is for.
    pub(super) fn names(&self) -> impl Iterator<Item = (&str, ProofAlgorithm)> {
        self.0
            .keys()
            .map(|(kid, algorithm)| (kid.as_str(), *algorithm))
    }

    /// The key that a token names, if it is there for that algorithm.
    pub(super) fn find(&self, kid: &str, algorithm: ProofAlgorithm) -> Option<&IssuerKey> {
        self.0.get(&(kid.to_owned(), algorithm))
    }

    /// Whether `kid` is there for any algorithm, so that a token with the wrong one does not cause a fetch.
    pub(super) fn knows(&self, kid: &str) -> bool {
        self.0.keys().any(|(known, _)| known == kid)
    }
}

fn usable(raw: &str) -> Result<(String, IssuerKey), &'static str> {
    let jwk: Jwk = serde_json::from_str(raw).map_err(|_| "malformed")?;
    if jwk.d.is_some() {
        return Err("a private key was published");
    }
    if jwk.usage.as_deref().is_some_and(|usage| usage != "sig") {
        return Err("not for signatures");
    }
    if jwk
        .key_ops
        .as_ref()
        .is_some_and(|ops| !ops.iter().any(|op| op == "verify"))
    {
        return Err("not for verification");
    }
    let kid = jwk
        .kid
        .clone()
        .filter(|kid| !kid.is_empty())
        .ok_or("without kid")?;
    let (algorithm, key) = match (jwk.kty.as_str(), jwk.crv.as_deref()) {
        ("RSA", _) => (ProofAlgorithm::Rs256, rsa(&jwk)?),
        ("EC", Some("P-256")) => (ProofAlgorithm::Es256, p256(&jwk)?),
        ("OKP", Some("Ed25519")) => (ProofAlgorithm::EdDsa, ed25519(&jwk)?),
        _ => return Err("of a type that signs no proofs"),
    };
    if jwk
        .alg
        .as_deref()
        .is_some_and(|alg| alg != algorithm.jose())
    {
        return Err("for another algorithm");
    }
    Ok((kid, IssuerKey { algorithm, key }))
}

fn rsa(jwk: &Jwk) -> Result<DecodingKey, &'static str> {
    let (Some(n), Some(e)) = (&jwk.n, &jwk.e) else {
        return Err("RSA without n or e");
    };
    let n = from_b64url("n", n).map_err(|_| "RSA with a malformed n")?;
    let e = from_b64url("e", e).map_err(|_| "RSA with a malformed e")?;
    // RFC 7518 §6.3.1.1 forbids leading zeros, and some issuers send one all the same.
    let n: &[u8] = &n[n.iter().take_while(|byte| **byte == 0).count()..];
    let bits = n
        .first()
        .map_or(0, |top| n.len() * 8 - top.leading_zeros() as usize);
    if !RSA_BITS.contains(&bits) {
        return Err("RSA shorter than 2048 or longer than 8192 bits");
    }
    let odd_and_above_one = e.last().is_some_and(|low| low % 2 == 1) && e.as_slice() != [1];
    if !odd_and_above_one || e.len() > 8 {
        return Err("RSA with an unusable exponent");
    }
    Ok(DecodingKey::from_rsa_raw_components(n, &e))
}

fn p256(jwk: &Jwk) -> Result<DecodingKey, &'static str> {
    let (Some(x), Some(y)) = (&jwk.x, &jwk.y) else {
        return Err("EC without x or y");
    };
    for coordinate in [x, y] {
        from_b64url_array::<32>("x, y", coordinate).map_err(|_| "EC with a malformed point")?;
    }
    DecodingKey::from_ec_components(x, y).map_err(|_| "EC with a malformed point")
}

fn ed25519(jwk: &Jwk) -> Result<DecodingKey, &'static str> {
    let x = jwk.x.as_deref().ok_or("OKP without x")?;
    from_b64url_array::<32>("x", x).map_err(|_| "OKP with a malformed x")?;
    DecodingKey::from_ed_components(x).map_err(|_| "OKP with a malformed x")
}

#[cfg(test)]
mod tests;
