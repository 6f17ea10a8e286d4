//! One transaction's worth of work: the connection, OpenMLS on top of it, and the groups it touched.
//!
//! What must hold: a loaded group is kept in memory for the next operation only after the transaction that
//! touched it was committed. Whatever fails leaves the next operation to load from the database.

use std::collections::HashMap;

use openmls::group::MlsGroup;
use openmls_rust_crypto::RustCrypto;
use openmls_traits::OpenMlsProvider as _;
use rusqlite::{Connection, TransactionBehavior};

use super::Provider;
use crate::error::StoreError;
use crate::ids::{MlsGroupId, to_openmls};
use crate::member::Identity;

/// Groups as they are in the database, loaded.
pub(crate) type Cache = HashMap<MlsGroupId, MlsGroup>;

pub(crate) struct Work<'w> {
    pub(crate) db: &'w Connection,
    pub(crate) provider: Provider<'w>,
    pub(crate) me: &'w Identity,
    cache: &'w mut Cache,
    touched: Cache,
}

impl Work<'_> {
    /// The group, to be given back with [`Self::keep`]. `None` if OpenMLS has no such group.
    pub(crate) fn take(&mut self, id: &MlsGroupId) -> Result<Option<MlsGroup>, StoreError> {
        if let Some(group) = self.touched.remove(id).or_else(|| self.cache.remove(id)) {
            return Ok(Some(group));
        }
        Ok(MlsGroup::load(self.provider.storage(), &to_openmls(id))?)
    }

    /// Keeps the group in memory, if the transaction is committed.
    pub(crate) fn keep(&mut self, id: &MlsGroupId, group: MlsGroup) {
        self.touched.insert(id.clone(), group);
    }

    /// Drops what memory has of the group: the database has changed under it.
    pub(crate) fn forget(&mut self, id: &MlsGroupId) {
        self.touched.remove(id);
        self.cache.remove(id);
    }
}

/// Runs `body` in a transaction that is committed only if `body` succeeds.
pub(crate) fn transact<T, E: From<StoreError>>(
    connection: &mut Connection,
    crypto: &RustCrypto,
    me: &Identity,
    cache: &mut Cache,
    body: impl FnOnce(&mut Work<'_>) -> Result<T, E>,
) -> Result<T, E> {
    let tx = connection
        .transaction_with_behavior(TransactionBehavior::Immediate)
        .map_err(StoreError::from)?;
    let mut work = Work {
        db: &tx,
        provider: Provider::new(crypto, &tx),
        me,
        cache,
        touched: Cache::new(),
    };
    let value = body(&mut work)?;
    let touched = work.touched;
    tx.commit().map_err(StoreError::from)?;
    cache.extend(touched);
    Ok(value)
}
