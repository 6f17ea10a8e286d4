//! A store that fails where it is told to: by device.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use keyturn_proto::UnixMs;
use keyturn_proto::device::DeviceId;
use keyturn_store::devices::{Answer, Change, DeviceDoc, DeviceStore, Mint};
use keyturn_store::sqlite::SqliteStore;
use keyturn_store::store::{Early, Result, StoreError};
use tokio::sync::watch;

/// What becomes of a look at, or a change of, a device's document.
#[derive(Clone)]
pub(in crate::devices) enum Fault {
    /// It waits until this is true.
    Gate(watch::Receiver<bool>),
    /// So often it fails, in a way that passes.
    Away(u32),
    /// So often a change of it fails, in a way that passes.
    Unwritable(u32),
    /// It panics, once.
    Panic,
    /// It fails for good.
    Damaged,
    /// The first change of this kind is made, and nobody learns of it.
    Loses(fn(&Change) -> bool),
}

/// The store, and what is wrong with it. Clones are told by each other.
#[derive(Clone, Default)]
pub(in crate::devices) struct Faults {
    of: Arc<Mutex<HashMap<DeviceId, Fault>>>,
    /// How often a device with a fault was asked for.
    met: Arc<Mutex<HashMap<DeviceId, u32>>>,
}

pub(in crate::devices) struct Faulty {
    pub(in crate::devices) store: Arc<SqliteStore>,
    pub(in crate::devices) faults: Faults,
}

impl Faults {
    pub(in crate::devices) fn set(&self, id: &DeviceId, fault: Fault) {
        self.of.lock().unwrap().insert(id.clone(), fault);
    }

    /// Closes a gate for this device; dropping or sending `true` by what is returned opens it.
    pub(in crate::devices) fn gate(&self, id: &DeviceId) -> watch::Sender<bool> {
        let (open, gate) = watch::channel(false);
        self.set(id, Fault::Gate(gate));
        open
    }

    pub(in crate::devices) fn mend(&self, id: &DeviceId) {
        self.of.lock().unwrap().remove(id);
    }

    pub(in crate::devices) fn met(&self, id: &DeviceId) -> u32 {
        self.met.lock().unwrap().get(id).copied().unwrap_or(0)
    }

    async fn meet(&self, id: &DeviceId, changing: bool) -> Result<()> {
        let mut gate = {
            let mut faults = self.of.lock().unwrap();
            let Some(fault) = faults.get_mut(id) else {
                return Ok(());
            };
            if matches!(fault, Fault::Unwritable(_)) && !changing {
                return Ok(());
            }
            *self.met.lock().unwrap().entry(id.clone()).or_default() += 1;
            match fault {
                Fault::Gate(gate) => gate.clone(),
                Fault::Away(0) | Fault::Unwritable(0) | Fault::Loses(_) => return Ok(()),
                Fault::Away(times) | Fault::Unwritable(times) => {
                    *times -= 1;
                    return Err(StoreError::Unavailable { cause: "a test" });
                }
                Fault::Damaged => return Err(StoreError::Damaged { what: "device" }),
                Fault::Panic => {
                    faults.remove(id);
                    drop(faults);
                    panic!("on purpose");
                }
            }
        };
        let _ = gate.wait_for(|open| *open).await;
        Ok(())
    }

    fn lose(&self, id: &DeviceId, change: &Change) -> Result<()> {
        let mut faults = self.of.lock().unwrap();
        match faults.get(id) {
            Some(Fault::Loses(which)) if which(change) => {
                faults.remove(id);
                Err(StoreError::Unknown { cause: "a test" })
            }
            _ => Ok(()),
        }
    }
}

#[async_trait]
impl DeviceStore for Faulty {
    async fn change_device(&self, id: &DeviceId, change: Change, now: UnixMs) -> Result<Answer> {
        self.faults.meet(id, true).await?;
        let answer = self.store.change_device(id, change.clone(), now).await?;
        self.faults.lose(id, &change)?;
        Ok(answer)
    }
    async fn issue_at_once(
        &self,
        id: &DeviceId,
        ask: Change,
        confirm: Duration,
        mint: Mint,
        now: UnixMs,
    ) -> Result<Early<Answer>> {
        self.faults.meet(id, true).await?;
        self.store.issue_at_once(id, ask, confirm, mint, now).await
    }
    async fn device(&self, id: &DeviceId) -> Result<Option<DeviceDoc>> {
        self.faults.meet(id, false).await?;
        self.store.device(id).await
    }
    async fn devices(&self, after: Option<&DeviceId>, limit: usize) -> Result<Vec<DeviceDoc>> {
        self.store.devices(after, limit).await
    }
    async fn devices_due(&self, now: UnixMs, limit: usize) -> Result<Vec<DeviceDoc>> {
        self.store.devices_due(now, limit).await
    }
    async fn devices_of(&self, owner: &str, limit: usize) -> Result<Vec<DeviceDoc>> {
        self.store.devices_of(owner, limit).await
    }
}
