//! `revisions/{collection}`: changes whenever a collection does whose documents are judged together (no MLS key for two admins, no group under two aliases). A
//! commit can demand that documents it knows are unchanged, not that no other one has come; this document stands for the whole collection.

use keyturn_proto::UnixMs;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::paths::Path;
use super::reading::Reading;
use super::stored::Document;
use crate::store::{Result, StoreError};

/// How often a collection was changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Revision {
    /// Document id: the collection.
    collection: String,
    /// One more with every change.
    revision: u64,
    /// Last change.
    updated_at: UnixMs,
}

impl Document for Revision {
    const WHAT: &'static str = "revision";
    fn path(&self) -> Result<Path> {
        Path::revision(&self.collection)
    }
}

/// The revision of a collection; 0 before its first change.
pub(super) async fn now(reading: &mut Reading<'_>, collection: &'static str) -> Result<u64> {
    let known: Option<Revision> = reading.get(Path::revision(collection)?).await?;
    Ok(known.map_or(0, |known| known.revision))
}

/// The next revision of a collection, to be written with the change. Must be asked for before the collection is read.
pub(super) async fn next(
    reading: &mut Reading<'_>,
    collection: &'static str,
    now: UnixMs,
) -> Result<Revision> {
    let known: Option<Revision> = reading.get(Path::revision(collection)?).await?;
    let revision = known.map_or(0, |known| known.revision).checked_add(1);
    Ok(Revision {
        collection: collection.to_owned(),
        revision: revision.ok_or(StoreError::Damaged { what: "revision" })?,
        updated_at: now,
    })
}
