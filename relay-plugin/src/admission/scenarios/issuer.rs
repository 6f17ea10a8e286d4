//! A token issuer for tests: one key of each accepted type, and the forgeries that attackers make of its public keys.

use aws_lc_rs::encoding::AsDer as _;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256,
    RsaKeyPair,
};
use hmac::{Hmac, KeyInit as _, Mac as _};
use keyturn_proto::encoding::b64url;
use serde_json::{Value, json};
use sha2::Sha256;

/// Which of the issuer's keys signs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signer {
    /// RS256, 2048 bits, kid "rsa".
    Rsa,
    /// ES256, kid "ec".
    Ec,
    /// EdDSA, kid "ed".
    Ed,
}

/// What is wrong with a token's header or signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forgery {
    /// Nothing.
    Genuine,
    /// `alg` none, empty signature.
    AlgNone,
    /// `alg` none spelled another way, with a genuine signature.
    AlgNoneMixedCase,
    /// HS256 under the RSA public key in DER, as `kid` "rsa".
    HmacWithRsaDer,
    /// HS256 under the RSA public key in PEM.
    HmacWithRsaPem,
    /// RS384: a real algorithm, outside the allow-list.
    OtherHash,
    /// Names the `kid` of a key of another type.
    KidOfAnotherKey,
    /// A `kid` that the issuer never had.
    UnknownKid,
    /// No `kid`.
    NoKid,
    /// The attacker's own key, offered in the header's `jwk`, under a known `kid`.
    EmbeddedKey,
    /// A critical extension nobody understands.
    CriticalHeader,
    /// One claim changed after signing.
    ChangedClaim,
    /// Signature cut off.
    NoSignature,
    /// Base64 with padding.
    PaddedSignature,
    /// Not a JWS at all.
    Garbage,
}

/// The issuer.
pub struct TestIssuer {
    rsa: RsaKeyPair,
    ec: EcdsaKeyPair,
    ed: Ed25519KeyPair,
    attacker: Ed25519KeyPair,
    random: SystemRandom,
}

impl Default for TestIssuer {
    fn default() -> Self {
        Self::new()
    }
}

impl TestIssuer {
    /// Fresh keys.
    ///
    /// # Panics
    /// When keys cannot be made.
    #[must_use]
    pub fn new() -> Self {
        Self {
            rsa: RsaKeyPair::generate(KeySize::Rsa2048).unwrap(),
            ec: EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap(),
            ed: Ed25519KeyPair::generate().unwrap(),
            attacker: Ed25519KeyPair::generate().unwrap(),
            random: SystemRandom::new(),
        }
    }

    /// Its JWK set.
    #[must_use]
    pub fn jwks(&self) -> Value {
        json!({ "keys": [self.jwk(Signer::Rsa), self.jwk(Signer::Ec), self.jwk(Signer::Ed)] })
    }

    /// One public key.
    #[must_use]
    pub fn jwk(&self, signer: Signer) -> Value {
        match signer {
            Signer::Rsa => {
                let key = self.rsa.public_key();
                let n = b64url(key.modulus().big_endian_without_leading_zero());
                let e = b64url(key.exponent().big_endian_without_leading_zero());
                json!({ "kty": "RSA", "kid": "rsa", "use": "sig", "alg": "RS256", "n": n, "e": e })
            }
            Signer::Ec => {
                let point = self.ec.public_key().as_ref();
                let (x, y) = (b64url(&point[1..33]), b64url(&point[33..]));
                json!({ "kty": "EC", "kid": "ec", "use": "sig", "crv": "P-256", "x": x, "y": y })
            }
            Signer::Ed => {
                let x = b64url(self.ed.public_key().as_ref());
                json!({ "kty": "OKP", "kid": "ed", "alg": "EdDSA", "crv": "Ed25519", "x": x })
            }
        }
    }

    /// A compact JWS over `claims`, with the forgery asked for.
    ///
    /// # Panics
    /// When signing fails.
    #[must_use]
    pub fn token(&self, claims: &Value, signer: Signer, forgery: Forgery) -> String {
        let (alg, kid) = match signer {
            Signer::Rsa => ("RS256", "rsa"),
            Signer::Ec => ("ES256", "ec"),
            Signer::Ed => ("EdDSA", "ed"),
        };
        let mut header = json!({ "typ": "JWT", "alg": alg, "kid": kid });
        match forgery {
            Forgery::AlgNone => header["alg"] = json!("none"),
            Forgery::AlgNoneMixedCase => header["alg"] = json!("nOnE"),
            Forgery::HmacWithRsaDer | Forgery::HmacWithRsaPem => {
                (header["alg"], header["kid"]) = (json!("HS256"), json!("rsa"));
            }
            Forgery::OtherHash => header["alg"] = json!("RS384"),
            Forgery::KidOfAnotherKey => {
                header["kid"] = json!(if signer == Signer::Rsa { "ec" } else { "rsa" });
            }
            Forgery::UnknownKid => header["kid"] = json!("nobody"),
            Forgery::NoKid => drop(header.as_object_mut().unwrap().remove("kid")),
            Forgery::EmbeddedKey => {
                header = json!({ "typ": "JWT", "alg": "EdDSA", "kid": "ed", "jwk": {
                    "kty": "OKP", "crv": "Ed25519", "x": b64url(self.attacker.public_key().as_ref()),
                }});
            }
            Forgery::CriticalHeader => header["crit"] = json!(["exp"]),
            Forgery::Genuine
            | Forgery::ChangedClaim
            | Forgery::NoSignature
            | Forgery::PaddedSignature
            | Forgery::Garbage => {}
        }
        let input = format!("{}.{}", part(&header), part(claims));
        let signature = match forgery {
            Forgery::AlgNone | Forgery::NoSignature => vec![],
            Forgery::HmacWithRsaDer => hmac(&self.rsa_der(), &input),
            Forgery::HmacWithRsaPem => hmac(&pem(&self.rsa_der()), &input),
            Forgery::EmbeddedKey => self.attacker.sign(input.as_bytes()).as_ref().to_vec(),
            _ => self.sign(signer, input.as_bytes()),
        };
        match forgery {
            Forgery::Garbage => "not.a token".to_owned(),
            Forgery::PaddedSignature => format!("{input}.{}==", b64url(&signature)),
            Forgery::ChangedClaim => {
                let mut changed = claims.clone();
                changed["sub"] = json!("somebody else");
                format!(
                    "{}.{}.{}",
                    part(&header),
                    part(&changed),
                    b64url(&signature)
                )
            }
            _ => format!("{input}.{}", b64url(&signature)),
        }
    }

    fn sign(&self, signer: Signer, input: &[u8]) -> Vec<u8> {
        match signer {
            Signer::Rsa => {
                let mut signature = vec![0; self.rsa.public_modulus_len()];
                self.rsa
                    .sign(&RSA_PKCS1_SHA256, &self.random, input, &mut signature)
                    .unwrap();
                signature
            }
            Signer::Ec => self.ec.sign(&self.random, input).unwrap().as_ref().to_vec(),
            Signer::Ed => self.ed.sign(input).as_ref().to_vec(),
        }
    }

    fn rsa_der(&self) -> Vec<u8> {
        self.rsa.public_key().as_der().unwrap().as_ref().to_vec()
    }
}

fn part(value: &Value) -> String {
    b64url(value.to_string().as_bytes())
}

fn hmac(key: &[u8], input: &str) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
    mac.update(input.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

/// The spelling in which the public key is published most often, and in which the attack is usually tried.
fn pem(der: &[u8]) -> Vec<u8> {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<_> = text
        .as_bytes()
        .chunks(64)
        .map(|line| String::from_utf8_lossy(line))
        .collect();
    format!(
        "-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n",
        lines.join("\n")
    )
    .into_bytes()
}
