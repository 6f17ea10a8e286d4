//! Vault or OpenBao AppRole over its documented HTTP API.
//!
//! Read in this order: [`settings`] → [`issue`](self) and `accessors` (what is asked of Vault) → `client` (one call with our token) → `token` (our own credential) →
//! `gate` and `circuit` (how much at once) → `transport` (one exchange, and what its failure means) → `wire` (the shapes).
//!
//! With response wrapping the device gets a single-use token and only the device ever sees the secret_id. Vault names the secret_id it wrapped by
//! `wrap_info.wrapped_accessor` (since 1.9, OpenBao always); where that is missing, the accessor is found by the nonce hash in the metadata.

mod accessors;
mod circuit;
mod client;
mod examine;
mod gate;
mod issue;
mod role_ids;
pub mod settings;
mod token;
mod transport;
mod wire;

use std::sync::Arc;

use async_trait::async_trait;
use tokio_util::sync::{CancellationToken, DropGuard};

pub use examine::{VaultReport, examine};
pub use settings::{VaultAddress, VaultAuth, VaultSettings};
pub use transport::VaultSetupError;

use self::{client::Client, transport::Failure};
use super::{
    Accessor, Destroyed, Found, Intent, IssueRequest, Issued, IssuerError, MountPath, RoleName,
    SecretIdIssuer,
};

/// [`SecretIdIssuer::name`]: the path of the auth method, as Vault itself writes it. Without the address, for one Vault has many: each relay may go through an agent
/// of its own, and a name in the DNS may change.
#[must_use]
pub fn name(namespace: Option<&MountPath>, mount: &MountPath) -> String {
    match namespace {
        Some(namespace) => format!("vault:{namespace}/auth/{mount}"),
        None => format!("vault:auth/{mount}"),
    }
}

/// The issuer behind Vault's AppRole. Keeps its own token alive until it is dropped.
pub struct VaultIssuer {
    client: Arc<Client>,
    name: String,
    _keeper: DropGuard,
}

impl VaultIssuer {
    /// Sets the client up and starts looking after its token. Needs a runtime; does not wait for Vault.
    ///
    /// # Errors
    /// [`VaultSetupError`].
    pub fn start(settings: VaultSettings) -> Result<Self, VaultSetupError> {
        let client = Arc::new(Client::new(settings)?);
        let stopping = CancellationToken::new();
        tokio::spawn(Arc::clone(&client).keep_token(stopping.clone()));
        Ok(Self {
            name: name(client.settings.namespace.as_ref(), &client.settings.mount),
            client,
            _keeper: stopping.drop_guard(),
        })
    }
}

#[async_trait]
impl SecretIdIssuer for VaultIssuer {
    fn name(&self) -> &str {
        &self.name
    }

    async fn issue(&self, request: IssueRequest<'_>) -> Result<Issued, IssuerError> {
        self.client.issue(&request).await
    }

    async fn destroy(
        &self,
        role: &RoleName,
        accessor: &Accessor,
    ) -> Result<Destroyed, IssuerError> {
        let destroyed = self.client.destroy(role, accessor).await;
        destroyed.map_err(Failure::harmless)
    }

    async fn find(
        &self,
        role: &RoleName,
        intents: &[Intent],
        known: &[Accessor],
    ) -> Result<Vec<Found>, IssuerError> {
        let found = self.client.find(role, intents, known).await;
        found.map_err(Failure::harmless)
    }

    async fn health(&self) -> Result<(), IssuerError> {
        self.client
            .server_health()
            .await
            .map_err(Failure::harmless)?;
        self.client
            .token()
            .await
            .map(drop)
            .map_err(Failure::harmless)
    }

    async fn close(&self) {
        self.client.give_back().await;
    }
}
