//! Step 4: the pending version, its ack key, its readers and the finished ciphertext are recorded, in one transaction that only the present
//! attempt under the present fence can make. From here any instance can publish.

use keyturn_store::documents::{OutboxDoc, RotationDoc};
use keyturn_store::store::{Prepare, SecretStore};

use super::audit::Entry;
use super::failure::Failure;
use super::seal::Sealed;
use crate::crash;
use keyturn_proto::UnixMs;

/// A rotation whose ciphertext is recorded. A prepared rotation is delivered or cancelled, never forgotten.
pub struct Prepared {
    pub(super) rotation: RotationDoc,
    pub(super) outbox: Vec<OutboxDoc>,
}

impl Sealed {
    /// Records it all.
    ///
    /// # Errors
    /// [`Failure`]; whether the commit happened is settled by looking at the rotation again.
    pub async fn prepare(
        self,
        store: &(impl SecretStore + ?Sized),
        now: UnixMs,
    ) -> Result<Prepared, Failure> {
        let Self {
            reserved,
            version,
            message_id,
            readers,
            outbox,
        } = self;
        let audit = Entry::of_rotation(now, &reserved.rotation, "rotation.prepared", "")
            .version(version.version_id)
            .done();
        let rotation = store
            .prepare(Prepare {
                active: reserved.active,
                version,
                readers,
                distribution_message_id: message_id,
                outbox: outbox.clone(),
                now,
                audit,
            })
            .await?;
        crash::point(crash::Point::AfterPrepare).await;
        Ok(Prepared { rotation, outbox })
    }
}
