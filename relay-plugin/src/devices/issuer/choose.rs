//! From the configuration to the issuer: the one place where an adapter is chosen.

use std::sync::Arc;

use keyturn_store::store::AuditTrail;

use super::embedded::login::{AppRoleLogin, LoginLimits};
use super::embedded::{EmbeddedIssuer, Parts};
use super::vault::{VaultAuth, VaultIssuer, VaultSettings, VaultSetupError};
use super::{SecretIdIssuer, vault};
use crate::config::{DeviceIssuer, IssuerKind, VaultLogin, VaultSection};

/// The issuer, and what else comes with it.
pub struct Chosen {
    /// Issues secret_ids.
    pub issuer: Arc<dyn SecretIdIssuer>,
    /// Checks them, when they are our own.
    pub login: Option<Arc<AppRoleLogin>>,
}

/// Why there is no issuer.
#[derive(Debug, thiserror::Error)]
pub enum ChooseError {
    /// The client of Vault cannot be set up.
    #[error(transparent)]
    Vault(#[from] VaultSetupError),
}

/// The issuer that the configuration names; `None` when devices are not served. `parts` are what an embedded one stands on; `instance` names this relay to
/// Vault. Needs a runtime.
///
/// # Errors
/// [`ChooseError`].
pub fn choose(
    config: &DeviceIssuer,
    instance: &str,
    parts: Parts,
    trail: Arc<dyn AuditTrail>,
) -> Result<Option<Chosen>, ChooseError> {
    Ok(match &config.kind {
        IssuerKind::None => None,
        IssuerKind::Embedded {
            logins_per_minute,
            logins_per_second,
        } => {
            let limits = LoginLimits {
                per_source: *logins_per_minute,
                in_all: *logins_per_second,
            };
            Some(Chosen {
                issuer: Arc::new(EmbeddedIssuer::start(parts.clone())),
                login: Some(Arc::new(AppRoleLogin::new(parts, trail, limits))),
            })
        }
        IssuerKind::Vault(section) => Some(Chosen {
            issuer: Arc::new(VaultIssuer::start(settings(section, instance))?),
            login: None,
        }),
    })
}

/// What the client needs to know, from the configuration.
#[must_use]
pub fn settings(section: &VaultSection, instance: &str) -> VaultSettings {
    let VaultSection {
        address,
        namespace,
        mount,
        ca_file,
        auth,
        timeout,
        max_in_flight,
        max_wait,
    } = section;
    vault::VaultSettings {
        address: address.clone(),
        namespace: namespace.clone(),
        mount: mount.clone(),
        ca_file: ca_file.clone(),
        auth: match auth {
            VaultLogin::Token(token) => VaultAuth::Token(Arc::clone(token)),
            VaultLogin::AppRole {
                mount,
                role_id,
                secret_id,
            } => VaultAuth::AppRole {
                mount: mount.clone(),
                role_id: role_id.clone(),
                secret_id: Arc::clone(secret_id),
            },
        },
        timeout: *timeout,
        max_in_flight: *max_in_flight,
        max_wait: *max_wait,
        instance: instance.to_owned(),
    }
}
