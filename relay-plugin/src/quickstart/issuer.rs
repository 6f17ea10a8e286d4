//! A development token issuer: one Ed25519 key, a JWKS on loopback, and proofs for whoever asks in this process.
//!
//! It stands in for the real issuer (which checks app attestation and TOTP first) in `quickstart` and in tests. It is never configured by
//! `serve`, and it can only be reached through the value that started it.

use std::net::SocketAddr;

use axum::Json;
use axum::routing::get;
use ed25519_dalek::SigningKey;
use ed25519_dalek::pkcs8::EncodePrivateKey as _;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use keyturn_proto::UnixMs;
use keyturn_proto::encoding::b64url;
use keyturn_proto::request::Bearer;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use zeroize::Zeroizing;

/// Why the development issuer could not start or sign.
#[derive(Debug, thiserror::Error)]
pub enum IssuerError {
    /// No random bytes.
    #[error("the operating system's random generator failed")]
    Random,
    /// The key could not be encoded or used.
    #[error("the signing key is unusable")]
    Key,
    /// The JWKS listener failed.
    #[error("cannot listen on loopback: {0}")]
    Listen(#[from] std::io::Error),
}

/// The running issuer; its listener ends when it is dropped.
pub struct DevIssuer {
    key: EncodingKey,
    kid: String,
    addr: SocketAddr,
    server: JoinHandle<()>,
}

impl DevIssuer {
    /// `iss` of its proofs.
    pub const ISSUER: &'static str = "keyturn-development";
    /// Lifetime of its proofs, seconds.
    pub const LIFETIME_SECS: u64 = 120;

    /// Makes a key and serves its JWKS on an ephemeral loopback port.
    ///
    /// # Errors
    /// [`IssuerError`].
    pub async fn start() -> Result<Self, IssuerError> {
        let mut seed = Zeroizing::new([0u8; 32]);
        getrandom::fill(seed.as_mut()).map_err(|_| IssuerError::Random)?;
        let signing = SigningKey::from_bytes(&seed);
        let public = b64url(signing.verifying_key().as_bytes());
        let der = signing.to_pkcs8_der().map_err(|_| IssuerError::Key)?;
        let kid = format!("dev-{}", &public[..8]);
        let jwks = json!({ "keys": [{
            "kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig", "kid": kid, "x": public,
        }]});

        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let addr = listener.local_addr()?;
        let app = axum::Router::new().route(
            "/.well-known/jwks.json",
            get(move || {
                let jwks = jwks.clone();
                async move { Json(jwks) }
            }),
        );
        let server = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, app).await {
                tracing::error!(%error, "development issuer stopped");
            }
        });
        Ok(Self { key: EncodingKey::from_ed_der(der.as_bytes()), kid, addr, server })
    }

    /// Where the JWKS is.
    #[must_use]
    pub fn jwks_url(&self) -> String {
        format!("http://{}/.well-known/jwks.json", self.addr)
    }

    /// Signs a proof: `claims` (npub, `mls_group`, nonce) plus issuer, audience, times and `amr`. What `claims` sets itself stands, so that tests can
    /// forge.
    ///
    /// # Errors
    /// [`IssuerError::Key`].
    pub fn sign(&self, claims: Value, now: UnixMs) -> Result<Bearer, IssuerError> {
        let iat = now.as_secs();
        let mut all = json!({
            "iss": Self::ISSUER,
            "aud": "rust-nostr-relay",
            "iat": iat,
            "exp": iat + Self::LIFETIME_SECS,
            "amr": ["app_attest", "totp"],
        });
        if let (Some(all), Value::Object(claims)) = (all.as_object_mut(), claims) {
            all.extend(claims);
        }
        let mut header = Header::new(Algorithm::EdDSA);
        header.kid = Some(self.kid.clone());
        jsonwebtoken::encode(&header, &all, &self.key).map(Bearer::new).map_err(|_| IssuerError::Key)
    }
}

impl Drop for DevIssuer {
    fn drop(&mut self) {
        self.server.abort();
    }
}
