//! The webhook for brokers that show a certificate: a TLS listener with this one path.
//!
//! What must always hold: nobody without a certificate of the configured CA that bears one of the configured names reaches the handler; a handshake takes a bounded
//! time, and what is refused is counted and recorded like a wrong secret.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::{Router, extract::State, http::StatusCode, middleware::map_response, routing::post};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use super::routes::{guard, problem};
use super::{serve, webhook};
use crate::config::{ConfigError, WebhookTls};
use crate::devices::Devices;

/// Why the listener cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum DoorError {
    /// A file cannot be read, or holds no PEM of that kind.
    #[error("{key}: {} holds no {what} in PEM, or cannot be read", path.display())]
    File {
        /// The configuration key.
        key: &'static str,
        /// Which file.
        path: PathBuf,
        /// What was looked for.
        what: &'static str,
    },
    /// The key's own secret cannot be read.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The key is not PEM.
    #[error("mqtt.webhook_certificate_key: expected a private key in PEM")]
    Key,
    /// Certificate and key do not belong together, or cannot be used.
    #[error("mqtt.webhook_certificate_file: {0}")]
    Certificate(rustls::Error),
    /// No usable CA.
    #[error("mqtt.webhook_client_ca_file: {0}")]
    ClientCa(String),
    /// The address cannot be listened on.
    #[error("mqtt.webhook_listen: cannot listen on {address}: {cause}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        #[source]
        cause: io::Error,
    },
}

/// The listener, open, with nobody behind it yet.
pub struct CertificateDoor {
    listener: TcpListener,
    keeper: Keeper,
    address: SocketAddr,
}

/// Whom the door opens for.
#[derive(Clone)]
struct Keeper {
    acceptor: TlsAcceptor,
    names: Arc<[ServerName<'static>]>,
}

impl CertificateDoor {
    /// Reads the files and listens.
    ///
    /// # Errors
    /// [`DoorError`].
    pub fn open(config: &WebhookTls) -> Result<Self, DoorError> {
        let keeper = Keeper::read(config)?;
        let failed = |cause| DoorError::Listen {
            address: config.listen,
            cause,
        };
        let listener = TcpListener::bind(config.listen).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        tracing::info!(%address, "brokers with a certificate are heard");
        Ok(Self {
            listener,
            keeper,
            address,
        })
    }

    /// Looks at the files without listening, for `keyturn doctor`.
    ///
    /// # Errors
    /// [`DoorError`].
    pub fn examine(config: &WebhookTls) -> Result<(), DoorError> {
        Keeper::read(config).map(drop)
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stopping`.
    pub async fn serve(
        self,
        devices: Arc<Devices>,
        limits: serve::Limits,
        stopping: CancellationToken,
    ) {
        let router = Router::new()
            .route(webhook::PATH, post(receive))
            .fallback(|| async {
                problem(
                    StatusCode::NOT_FOUND,
                    "not_found",
                    "there is nothing at this path",
                )
            })
            .layer(map_response(guard))
            .with_state(Arc::clone(&devices));
        let keeper = self.keeper;
        let welcome = move |stream: TcpStream| {
            let (keeper, devices) = (keeper.clone(), Arc::clone(&devices));
            async move {
                let admitted = keeper.admit(stream).await;
                if let Err(Refused::Stranger) = admitted {
                    devices.stranger("webhook.unauthenticated").await;
                }
                admitted.ok()
            }
        };
        if let Err(error) = serve::serve(self.listener, router, limits, welcome, stopping).await {
            tracing::error!(%error, "the listener for brokers with a certificate stopped");
        }
    }
}

/// Why a connection goes no further.
enum Refused {
    /// The other side said something, and no good certificate.
    Stranger,
    /// The connection ended by itself; health checks do that all the time.
    Gone,
}

impl Keeper {
    fn read(config: &WebhookTls) -> Result<Self, DoorError> {
        let WebhookTls {
            listen: _,
            certificate_file,
            certificate_key,
            client_ca_file,
            client_names,
        } = config;
        let chain = certificates("mqtt.webhook_certificate_file", certificate_file)?;
        let key = certificate_key.text()?;
        let key =
            PrivateKeyDer::from_pem_slice(key.expose().as_bytes()).map_err(|_| DoorError::Key)?;
        let mut roots = RootCertStore::empty();
        for ca in certificates("mqtt.webhook_client_ca_file", client_ca_file)? {
            roots
                .add(ca)
                .map_err(|error| DoorError::ClientCa(error.to_string()))?;
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
                .build()
                .map_err(|error| DoorError::ClientCa(error.to_string()))?;
        let server = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(DoorError::Certificate)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)
            .map_err(DoorError::Certificate)?;
        let names = client_names
            .iter()
            .filter_map(|name| ServerName::try_from(name.clone()).ok());
        Ok(Self {
            acceptor: TlsAcceptor::from(Arc::new(server)),
            names: names.collect(),
        })
    }

    async fn admit(&self, stream: TcpStream) -> Result<TlsStream<TcpStream>, Refused> {
        let stream = self.acceptor.accept(stream).await.map_err(|error| {
            // rustls says so of what it read; everything else is the connection's own end.
            if error.kind() == io::ErrorKind::InvalidData {
                Refused::Stranger
            } else {
                Refused::Gone
            }
        })?;
        let shown = stream.get_ref().1.peer_certificates();
        let shown = shown.and_then(<[_]>::first);
        if shown.is_some_and(|certificate| self.knows(certificate)) {
            Ok(stream)
        } else {
            Err(Refused::Stranger)
        }
    }

    fn knows(&self, certificate: &CertificateDer<'_>) -> bool {
        webpki::EndEntityCert::try_from(certificate).is_ok_and(|certificate| {
            let bears = |name| certificate.verify_is_valid_for_subject_name(name).is_ok();
            self.names.iter().any(bears)
        })
    }
}

fn certificates(key: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, DoorError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) | Err(_) => Err(DoorError::File {
            key,
            path: path.to_owned(),
            what: "certificate",
        }),
    }
}

/// Whoever gets here has shown a certificate.
async fn receive(
    State(devices): State<Arc<Devices>>,
    body: axum::body::Bytes,
) -> axum::response::Response {
    webhook::deliver(&devices, &body).await
}
