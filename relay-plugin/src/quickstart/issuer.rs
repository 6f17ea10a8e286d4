//! A development token issuer: one Ed25519 key, a JWKS on loopback, and proofs for whoever asks in this process.
//!
//! It stands in for the real issuer (which checks app attestation and TOTP first) in `quickstart` and in tests. It is never configured by
//! `serve`, and it can only be reached through the value that started it.

use std::net::SocketAddr;
use std::path::Path;

use async_trait::async_trait;
use axum::Json;
use axum::routing::get;
use ed25519_dalek::SigningKey;
use ed25519_dalek::pkcs8::EncodePrivateKey as _;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use keyturn_admin::clock::{Clock as _, SystemClock};
use keyturn_admin::{ProofError, ProofSource};
use keyturn_proto::UnixMs;
use keyturn_proto::encoding::b64url;
use keyturn_proto::proof::ProofRequest;
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
    /// The key file or the JWKS listener failed.
    #[error("development issuer: {0}")]
    Io(#[from] std::io::Error),
}

/// The running issuer; its listener ends when it is dropped.
pub struct DevIssuer {
    signer: DevSigner,
    addr: SocketAddr,
    server: JoinHandle<()>,
}

impl DevIssuer {
    /// `iss` of its proofs.
    pub const ISSUER: &'static str = "keyturn-development";
    /// Lifetime of its proofs, seconds.
    pub const LIFETIME_SECS: u64 = 120;

    /// Serves the JWKS of `signer` on an ephemeral loopback port.
    ///
    /// # Errors
    /// [`IssuerError::Io`].
    pub async fn start(signer: DevSigner) -> Result<Self, IssuerError> {
        let jwks = signer.jwks();
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
        Ok(Self {
            signer,
            addr,
            server,
        })
    }

    /// Where the JWKS is.
    #[must_use]
    pub fn jwks_url(&self) -> String {
        format!("http://{}/.well-known/jwks.json", self.addr)
    }

    /// Who signs.
    #[must_use]
    pub const fn signer(&self) -> &DevSigner {
        &self.signer
    }
}

impl Drop for DevIssuer {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// The issuer's signing key.
pub struct DevSigner {
    key: EncodingKey,
    kid: String,
    public: String,
}

impl DevSigner {
    /// A fresh key.
    ///
    /// # Errors
    /// [`IssuerError::Random`], [`IssuerError::Key`].
    pub fn generate() -> Result<Self, IssuerError> {
        let mut seed = Zeroizing::new([0u8; 32]);
        getrandom::fill(seed.as_mut()).map_err(|_| IssuerError::Random)?;
        Self::from_seed(&seed)
    }

    /// The key kept in `path`, made there if there is none; so `keyturn quickstart` and its proof command share one.
    ///
    /// # Errors
    /// [`IssuerError`].
    pub fn at(path: &Path) -> Result<Self, IssuerError> {
        super::setup::key_file(path)?;
        let text = Zeroizing::new(std::fs::read_to_string(path)?);
        let mut seed = Zeroizing::new([0u8; 32]);
        hex::decode_to_slice(text.trim(), seed.as_mut()).map_err(|_| IssuerError::Key)?;
        Self::from_seed(&seed)
    }

    fn from_seed(seed: &[u8; 32]) -> Result<Self, IssuerError> {
        let signing = SigningKey::from_bytes(seed);
        let public = b64url(signing.verifying_key().as_bytes());
        let der = signing.to_pkcs8_der().map_err(|_| IssuerError::Key)?;
        Ok(Self {
            key: EncodingKey::from_ed_der(der.as_bytes()),
            kid: format!("dev-{}", &public[..8]),
            public,
        })
    }

    fn jwks(&self) -> Value {
        json!({ "keys": [{
            "kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig", "kid": self.kid, "x": self.public,
        }]})
    }

    /// Signs a proof: `claims` (npub, `mls_group`, nonce) plus issuer, audience, times and `amr`. What `claims` sets itself stands, so that tests can
    /// forge.
    ///
    /// # Errors
    /// [`IssuerError::Key`].
    pub fn sign(&self, claims: Value, now: UnixMs) -> Result<Bearer, IssuerError> {
        let iat = now.as_secs();
        let mut all = json!({
            "iss": DevIssuer::ISSUER,
            "aud": "rust-nostr-relay",
            "iat": iat,
            "exp": iat + DevIssuer::LIFETIME_SECS,
            "amr": ["app_attest", "totp"],
        });
        if let (Some(all), Value::Object(claims)) = (all.as_object_mut(), claims) {
            all.extend(claims);
        }
        let mut header = Header::new(Algorithm::EdDSA);
        header.kid = Some(self.kid.clone());
        jsonwebtoken::encode(&header, &all, &self.key)
            .map(Bearer::new)
            .map_err(|_| IssuerError::Key)
    }
}

#[async_trait]
impl ProofSource for DevSigner {
    async fn prove(&self, request: &ProofRequest) -> Result<Bearer, ProofError> {
        let claims = json!({
            "nonce": request.nonce,
            "npub": request.npub,
            "mls_group": request.mls_group,
            "aud": request.aud,
        });
        self.sign(claims, SystemClock.now())
            .map_err(|error| ProofError::Other(error.to_string()))
    }
}
