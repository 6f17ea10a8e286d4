//! Step 5: the ciphertext goes out, until it can be read back from the relay's database.
//!
//! The rosters were compared immediately before ([`super::recover`]): whoever left a group between sealing and publishing has made the
//! attempt void, and nothing of it is published.

use futures::future::join_all;
use keyturn_store::documents::{OutboxDoc, RotationDoc};

use super::engine::Engine;
use super::failure::Failure;
use super::prepare::Prepared;
use crate::crash;

/// A rotation whose every notify is stored by the relay.
pub struct Distributed {
    pub(super) rotation: RotationDoc,
}

impl Prepared {
    /// A prepared rotation as the store holds it: after a restart, or on another instance.
    pub(super) const fn recorded(rotation: RotationDoc, outbox: Vec<OutboxDoc>) -> Self {
        Self { rotation, outbox }
    }

    /// Publishes what is not published yet; the groups in parallel, since no order binds them.
    ///
    /// # Errors
    /// [`Failure::Again`] while the relay is away; the outbox stays.
    pub async fn distribute(self, engine: &Engine) -> Result<Distributed, Failure> {
        let Self { rotation, outbox } = self;
        let started = engine.now();
        let open = outbox.iter().filter(|event| event.published_at.is_none());
        let results = join_all(open.map(|event| publish(engine, event))).await;
        for result in results {
            result?;
        }
        metrics::histogram!(crate::metrics::DISTRIBUTE_SECONDS)
            .record(engine.now().since(started).as_secs_f64());
        tracing::info!(
            rotation = %rotation.rotation_id, client = %rotation.client_id, groups = outbox.len(), "delivered"
        );
        crash::point(crash::Point::AfterPublish).await;
        Ok(Distributed { rotation })
    }
}

async fn publish(engine: &Engine, event: &OutboxDoc) -> Result<(), Failure> {
    engine.distributor().publish(event).await?;
    crash::point(crash::Point::BeforeMarkPublished).await;
    engine
        .store()
        .mark_published(std::slice::from_ref(&event.event_id), engine.now())
        .await?;
    Ok(())
}
