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

/// Runs `body` with commits that do not wait for the disk. They become durable with the next commit that does wait, or with a checkpoint. A power
/// failure before that undoes them, whole and in order; a killed process undoes nothing.
pub(crate) fn lazily<T, E: From<StoreError>>(
    connection: &mut Connection,
    body: impl FnOnce(&mut Connection) -> Result<T, E>,
) -> Result<T, E> {
    wait_for_disk(connection, false)?;
    let done = body(connection);
    wait_for_disk(connection, true)?;
    done
}

fn wait_for_disk(connection: &Connection, wait: bool) -> Result<(), StoreError> {
    let mode = if wait { "FULL" } else { "NORMAL" };
    Ok(connection.pragma_update(None, "synchronous", mode)?)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn mode(connection: &Connection) -> i64 {
        connection
            .query_row("PRAGMA synchronous", [], |row| row.get(0))
            .unwrap()
    }

    #[test]
    fn commits_wait_for_the_disk_again_whatever_became_of_the_lazy_one() {
        let mut connection = Connection::open_in_memory().unwrap();
        for fails in [false, true] {
            let done = lazily(&mut connection, |connection| {
                assert_eq!(mode(connection), 1);
                if fails {
                    return Err(StoreError::Corrupt("on purpose"));
                }
                Ok(())
            });
            assert_eq!(done.is_err(), fails);
            assert_eq!(mode(&connection), 2);
        }
    }
}
