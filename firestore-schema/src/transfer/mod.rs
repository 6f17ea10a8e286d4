//! Moving everything from one store to another: what a backend must offer for it, and the copy itself ([`copy`]).
//!
//! What must always hold:
//! - a document that cannot be read stops the copy; none is skipped;
//! - a document is created, never replaced: what lies at the destination already is equal, or nothing is written;
//! - the audit trail goes over as it is, so that its chains verify at the destination;
//! - errors name kinds of documents and counts, never values.

mod compare;
mod run;

use async_trait::async_trait;

use crate::approle::{AppRoleDoc, SecretIdDoc};
use crate::collections::{
    ACTIONS, ADMINS, APPROLE_ROLES, APPROLE_SECRET_IDS, AUDIT, CHAINS, CLIENTS, DEVICES, GROUPS,
    LEASES, NONCES, OUTBOX, ROTATIONS, VERSIONS,
};
use crate::devices::DeviceDoc;
use crate::documents::{
    ActionDoc, AdminDoc, AdminGroupDoc, AuditChainDoc, AuditEntry, ClientDoc, LeaseDoc, NonceDoc,
    OutboxDoc, RotationDoc, VersionDoc,
};
use crate::store::{AuditTrail, Result};

pub use run::{Copied, CopyError, Options, Progress, Report, copy};

/// What is copied, in this order: no document comes before the one that it lies under or names as its own. Leases are first, so that nobody who begins
/// to work at the destination gets a fencing number that was used. Left out: `revisions`, which guard commits by their update time and may begin anew.
pub const COLLECTIONS: [&str; 14] = [
    LEASES,
    GROUPS,
    ADMINS,
    CLIENTS,
    VERSIONS,
    ROTATIONS,
    ACTIONS,
    NONCES,
    DEVICES,
    APPROLE_ROLES,
    APPROLE_SECRET_IDS,
    OUTBOX,
    AUDIT,
    CHAINS,
];

/// One document of any of [`COLLECTIONS`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the document of that name")]
#[expect(
    clippy::large_enum_variant,
    reason = "a page of them is short-lived, and most are of the larger kind"
)]
pub enum Item {
    Lease(LeaseDoc),
    Group(AdminGroupDoc),
    Admin(AdminDoc),
    Client(ClientDoc),
    Version(VersionDoc),
    Rotation(RotationDoc),
    Action(ActionDoc),
    Nonce(NonceDoc),
    Device(DeviceDoc),
    AppRole(AppRoleDoc),
    SecretId(SecretIdDoc),
    Outbox(OutboxDoc),
    Audit(AuditEntry),
    Chain(AuditChainDoc),
}

/// The same expression for whatever document it is.
macro_rules! each {
    ($item:expr, $doc:ident => $body:expr) => {
        match $item {
            $crate::transfer::Item::Lease($doc) => $body,
            $crate::transfer::Item::Group($doc) => $body,
            $crate::transfer::Item::Admin($doc) => $body,
            $crate::transfer::Item::Client($doc) => $body,
            $crate::transfer::Item::Version($doc) => $body,
            $crate::transfer::Item::Rotation($doc) => $body,
            $crate::transfer::Item::Action($doc) => $body,
            $crate::transfer::Item::Nonce($doc) => $body,
            $crate::transfer::Item::Device($doc) => $body,
            $crate::transfer::Item::AppRole($doc) => $body,
            $crate::transfer::Item::SecretId($doc) => $body,
            $crate::transfer::Item::Outbox($doc) => $body,
            $crate::transfer::Item::Audit($doc) => $body,
            $crate::transfer::Item::Chain($doc) => $body,
        }
    };
}
pub(crate) use each;

/// Makes an [`Item`] of a collection out of whatever `read` makes of its source.
macro_rules! item_of {
    ($collection:expr, $read:expr) => {{
        use $crate::collections as c;
        use $crate::transfer::Item;
        match $collection {
            c::LEASES => $read.map(Item::Lease),
            c::GROUPS => $read.map(Item::Group),
            c::ADMINS => $read.map(Item::Admin),
            c::CLIENTS => $read.map(Item::Client),
            c::VERSIONS => $read.map(Item::Version),
            c::ROTATIONS => $read.map(Item::Rotation),
            c::ACTIONS => $read.map(Item::Action),
            c::NONCES => $read.map(Item::Nonce),
            c::DEVICES => $read.map(Item::Device),
            c::APPROLE_ROLES => $read.map(Item::AppRole),
            c::APPROLE_SECRET_IDS => $read.map(Item::SecretId),
            c::OUTBOX => $read.map(Item::Outbox),
            c::AUDIT => $read.map(Item::Audit),
            c::CHAINS => $read.map(Item::Chain),
            _ => Err($crate::store::StoreError::Damaged { what: "collection" }),
        }
    }};
}
pub(crate) use item_of;

/// A page of a collection.
#[derive(Clone, Debug)]
pub struct Page {
    /// In the order of the backend's keys.
    pub items: Vec<Item>,
    /// Where the next page begins; `None` after the last one.
    pub next: Option<String>,
}

/// What became of one document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Import {
    /// It was not there.
    Created,
    /// It was there, equal.
    Same,
    /// Another one lies in its place, and was left alone.
    Different,
}

/// A backend that documents can be copied out of and into.
#[async_trait]
pub trait Transfer: AuditTrail {
    /// The next documents of a collection, in key order.
    ///
    /// # Errors
    /// [`crate::store::StoreError::Damaged`] for a document that cannot be read.
    async fn export(
        &self,
        collection: &'static str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Page>;

    /// What lies in the places of these documents.
    ///
    /// # Errors
    /// As [`Self::export`].
    async fn look_up(&self, items: &[Item]) -> Result<Vec<Option<Item>>>;

    /// Creates those that are not there.
    ///
    /// # Errors
    /// As [`Self::export`].
    async fn import(&self, items: &[Item]) -> Result<Vec<Import>>;
}
