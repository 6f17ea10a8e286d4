//! Every document type: where it lies, and what is stored beside its own fields so that queries can find it.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::codec::{self, Fields, null, text_value, time_operand};
use super::paths::Path;
use crate::approle::{AppRoleDoc, SecretIdDoc};
use crate::devices::DeviceDoc;
use crate::documents::{
    ActionDoc, AdminDoc, AdminGroupDoc, AuditChainDoc, AuditEntry, ClientDoc, LeaseDoc, NonceDoc,
    OutboxDoc, RotationDoc, VersionDoc,
};
use crate::lifecycle::due;
use crate::store::{Result, StoreError};

/// A document type of the store.
pub(super) trait Document: Serialize + DeserializeOwned + Send {
    /// Which kind of document, for errors.
    const WHAT: &'static str;

    /// Where it lies. A document found elsewhere is damaged.
    fn path(&self) -> Result<Path>;

    /// Fields that only queries use.
    fn helpers(&self) -> Fields {
        Fields::new()
    }
}

impl Document for ClientDoc {
    const WHAT: &'static str = "client";
    fn path(&self) -> Result<Path> {
        Path::client(&self.client_id)
    }
}

impl Document for VersionDoc {
    const WHAT: &'static str = "version";
    fn path(&self) -> Result<Path> {
        Path::version(&self.client_id, &self.version_id)
    }
    /// `due_at`: when it is to be retired.
    fn helpers(&self) -> Fields {
        due_at(due::version_due_at(self))
    }
}

impl Document for RotationDoc {
    const WHAT: &'static str = "rotation";
    fn path(&self) -> Result<Path> {
        Path::rotation(&self.rotation_id)
    }
    /// `due_at`: when the timer must look at it next.
    fn helpers(&self) -> Fields {
        due_at(due::rotation_due_at(self))
    }
}

impl Document for ActionDoc {
    const WHAT: &'static str = "action";
    fn path(&self) -> Result<Path> {
        Path::action(&self.action_id)
    }
}

impl Document for OutboxDoc {
    const WHAT: &'static str = "outbox";
    fn path(&self) -> Result<Path> {
        Path::outbox(&self.event_id)
    }
}

impl Document for AdminDoc {
    const WHAT: &'static str = "admin";
    fn path(&self) -> Result<Path> {
        Path::admin(&self.npub)
    }
}

impl Document for AdminGroupDoc {
    const WHAT: &'static str = "admin group";
    fn path(&self) -> Result<Path> {
        Path::group(&self.alias)
    }
}

impl Document for NonceDoc {
    const WHAT: &'static str = "nonce";
    fn path(&self) -> Result<Path> {
        Path::nonce(&self.nonce_hash)
    }
}

impl Document for LeaseDoc {
    const WHAT: &'static str = "lease";
    fn path(&self) -> Result<Path> {
        Path::lease(&self.name)
    }
}

impl Document for AuditEntry {
    const WHAT: &'static str = "audit";
    fn path(&self) -> Result<Path> {
        Path::audit(&self.id)
    }
}

impl Document for AuditChainDoc {
    const WHAT: &'static str = "audit chain";
    fn path(&self) -> Result<Path> {
        Path::chain(&self.id)
    }
}

impl Document for DeviceDoc {
    const WHAT: &'static str = "device";
    fn path(&self) -> Result<Path> {
        Path::device(&self.device_id)
    }
    /// `worked_on_by`: the relay whose restart has to look after it.
    fn helpers(&self) -> Fields {
        let relay = self.worked_on_by().unwrap_or_default();
        Fields::from([("worked_on_by".to_owned(), text_value(relay))])
    }
}

impl Document for AppRoleDoc {
    const WHAT: &'static str = "role";
    fn path(&self) -> Result<Path> {
        Path::approle_role(&self.role)
    }
}

impl Document for SecretIdDoc {
    const WHAT: &'static str = "secret_id";
    fn path(&self) -> Result<Path> {
        Path::secret_id(&self.accessor)
    }
}

fn due_at(time: Option<keyturn_proto::UnixMs>) -> Fields {
    // One of the document's own times, which the codec has let through.
    Fields::from([("due_at".to_owned(), time.map_or_else(null, time_operand))])
}

/// All fields of a document as they are stored.
pub(super) fn fields<T: Document>(document: &T) -> Result<Fields> {
    let mut fields =
        codec::encode(document).map_err(|_| StoreError::Unrepresentable { what: T::WHAT })?;
    fields.extend(document.helpers());
    Ok(fields)
}

/// Whether what queries find it by is what its content says: one that says another time than it is kept under would be due for ever, or never.
pub(super) fn agrees<T: Document>(document: &T, fields: &Fields) -> bool {
    let helpers = document.helpers();
    helpers
        .iter()
        .all(|(name, value)| fields.get(name) == Some(value))
}

/// For those that queries find by their own fields.
pub(super) fn any<T: Document>(_: &T, _: &Fields) -> bool {
    true
}

/// The document that was found at `path`.
pub(super) fn parse<T: Document>(path: &Path, fields: Fields) -> Result<T> {
    let damaged = StoreError::Damaged { what: T::WHAT };
    let document: T = codec::decode(fields).map_err(|_| damaged.clone())?;
    if document.path().as_ref() == Ok(path) {
        Ok(document)
    } else {
        Err(damaged)
    }
}
