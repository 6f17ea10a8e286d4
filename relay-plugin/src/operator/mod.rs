//! What an operator changes by hand: admins, clients, groups. The command line is a thin shell around these functions; so is quickstart.
//!
//! What must always hold: every change writes its audit record as [`Actor::Operator`] in the same transaction; a TOTP seed leaves this module
//! once, when it is made; no secret, no hash and no seed can be listed.

pub mod admins;
pub mod clients;
pub mod devices;
pub mod groups;
pub mod import;
pub mod proofs;
pub mod qr;
pub mod trail;

use std::sync::Arc;

use keyturn_proto::{ClientId, UnixMs};
use keyturn_store::audit::Instance;
use keyturn_store::documents::{Actor, AuditRecord};
use keyturn_store::mac::MacKey;
use keyturn_store::store::{Store, StoreError};

use crate::admission::totp_seed::SeedError;
use crate::config::{ConfigError, ValidatedConfig};
use crate::store::{self, OpenError};

/// Why the operator's command changed nothing.
#[derive(Debug, thiserror::Error)]
pub enum OperatorError {
    /// A value that cannot be one.
    #[error("{0}")]
    Value(#[from] keyturn_proto::Invalid),
    /// No such thing.
    #[error("there is no {what} `{name}`")]
    Unknown {
        /// What.
        what: &'static str,
        /// Its name as given.
        name: String,
    },
    /// It exists already.
    #[error("{what} `{name}` exists already")]
    Exists {
        /// What.
        what: &'static str,
        /// Its name as given.
        name: String,
    },
    /// A proof of an MLS key that proves nothing for this admin.
    #[error("{file}: {why}")]
    Proof {
        /// The file it was read from.
        file: String,
        /// What is wrong with it.
        why: String,
    },
    /// The TOTP seed.
    #[error("TOTP seed: {0}")]
    Seed(#[from] SeedError),
    /// The QR code.
    #[error("the otpauth URI does not fit into a QR code")]
    Qr,
    /// A key that the configuration names.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The store cannot be opened.
    #[error("cannot open the store: {0}")]
    Open(#[from] OpenError),
    /// The store refused or failed.
    #[error("the store did not take it: {0}")]
    Store(#[from] StoreError),
    /// The audit trail was touched; the report is on standard output.
    #[error("the audit trail is not whole: {0} findings")]
    Touched(usize),
    /// Entries that could not be exported.
    #[error("{0} entries of the audit trail cannot be read: `keyturn audit verify` names them")]
    Unreadable(usize),
    /// A file of the operator's.
    #[error("{}: {cause}", path.display())]
    File {
        /// Which.
        path: std::path::PathBuf,
        /// Why it cannot be read.
        cause: std::io::Error,
    },
    /// What was to be imported cannot be read; never repeats it.
    #[error("{0}")]
    NotReadable(String),
    /// What was to be imported is no secret and no hash.
    #[error(transparent)]
    Material(#[from] import::MaterialError),
    /// One client was not imported.
    #[error("not imported: {0}")]
    NotImported(#[from] import::Refused),
    /// Some lines of a file were not imported; the report says which and why.
    #[error("{refused} of {lines} lines were not imported")]
    LinesLeft {
        /// How many.
        refused: usize,
        /// Of how many.
        lines: usize,
    },
    /// The MAC key.
    #[error("MAC key: {0}")]
    MacKey(#[from] keyturn_store::mac::KeyFileError),
    /// A device that cannot be put on the list like that.
    #[error("{device}: {reason}")]
    Device {
        /// Which.
        device: String,
        /// What is wrong.
        reason: String,
    },
    /// A line of an import of devices.
    #[error("line {line}: {reason}")]
    Import {
        /// Which.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// A copy of a store.
    #[error(transparent)]
    Copy(#[from] keyturn_store::transfer::CopyError),
    /// A copy onto itself.
    #[error("source and destination are the same store")]
    SameStore,
    /// The async runtime.
    #[error("cannot start the runtime: {0}")]
    Runtime(std::io::Error),
    /// Standard output.
    #[error("cannot write the result: {0}")]
    Output(#[from] std::io::Error),
    /// A result that cannot be shown as JSON.
    #[error("cannot write the result: {0}")]
    Json(#[from] serde_json::Error),
}

/// The store that the configuration names. It may be in use by a running relay.
///
/// # Errors
/// [`OperatorError::Open`].
pub async fn open_store(config: &ValidatedConfig) -> Result<Arc<dyn Store>, OperatorError> {
    Ok(store::open(&config.store, &Instance::operator()).await?)
}

/// The MAC key that the configuration names.
///
/// # Errors
/// [`OperatorError::MacKey`].
pub fn open_mac(config: &ValidatedConfig) -> Result<Arc<dyn MacKey>, OperatorError> {
    Ok(crate::mac::Opened::open(&config.mac)?.key())
}

/// How often a change is made again that somebody else came before.
const AGAIN: u32 = 8;

/// An audit record of the operator's.
fn audit(event: &str, reason: &str, now: UnixMs) -> AuditRecord {
    AuditRecord {
        at: now,
        actor: Actor::Operator,
        event: event.to_owned(),
        reason: reason.to_owned(),
        client_id: None,
        rotation_id: None,
        version_id: None,
        group: None,
        nostr_event: None,
        device: None,
    }
}

fn about_client(record: AuditRecord, client: &ClientId) -> AuditRecord {
    AuditRecord {
        client_id: Some(client.clone()),
        ..record
    }
}

fn about_group(record: AuditRecord, alias: &str) -> AuditRecord {
    AuditRecord {
        group: Some(alias.to_owned()),
        ..record
    }
}

#[cfg(test)]
mod tests;
