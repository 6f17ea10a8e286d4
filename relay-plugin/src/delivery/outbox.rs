//! Finished events on their way into the relay's database, and out of it again.
//!
//! What must always hold: an event counts as published only when it could be read back by id; publishing again is harmless; whatever the relay
//! says is reduced to a word, because its own words may quote the event.

use std::time::Instant;

use keyturn_store::documents::OutboxDoc;
use nostr::{Event, EventId, JsonUtil};

use super::port::{PublishError, ReadError, RelayPort};
use crate::metrics as names;
use crate::rotation::ports::DeliveryError;

/// Publishes one outbox event, unless it is there already.
///
/// # Errors
/// [`DeliveryError`].
pub async fn publish(relay: &dyn RelayPort, document: &OutboxDoc) -> Result<(), DeliveryError> {
    let event = Event::from_json(&document.event_json)
        .map_err(|_| DeliveryError::Refused("outbox.malformed"))?;
    if event.id.to_hex() != document.event_id {
        return Err(DeliveryError::Refused("outbox.mismatch"));
    }
    send(relay, event).await
}

/// Publishes one event.
///
/// # Errors
/// [`DeliveryError`].
pub async fn send(relay: &dyn RelayPort, event: Event) -> Result<(), DeliveryError> {
    let started = Instant::now();
    let sent = send_once(relay, event).await;
    let result = match &sent {
        Ok(()) => {
            metrics::histogram!(names::PUBLISH_SECONDS).record(started.elapsed().as_secs_f64());
            "stored"
        }
        Err(DeliveryError::Refused(_)) => "refused",
        Err(_) => "failed",
    };
    metrics::counter!(names::PUBLISHED, "result" => result).increment(1);
    sent
}

async fn send_once(relay: &dyn RelayPort, event: Event) -> Result<(), DeliveryError> {
    let id = event.id;
    let Err(error) = relay.publish(event).await else {
        return Ok(());
    };
    tracing::debug!(event = %id, %error, "not published");
    match error {
        PublishError::Invalid { reason: _ } => Err(DeliveryError::Refused("relay.invalid")),
        PublishError::Refused { reason: _ } => Err(DeliveryError::Refused("relay.refused")),
        PublishError::Detached => Err(DeliveryError::Away("relay.detached")),
        PublishError::Read(error) => Err(away(&error)),
        // It may be stored all the same.
        PublishError::NoAnswer(_) | PublishError::NotStored(_) => {
            match relay.stored(id).await.map_err(|error| away(&error))? {
                true => Ok(()),
                false => Err(DeliveryError::Away("relay.no_answer")),
            }
        }
    }
}

/// Whether an event can be read back.
///
/// # Errors
/// [`DeliveryError`].
pub async fn is_stored(relay: &dyn RelayPort, event_id: &str) -> Result<bool, DeliveryError> {
    let id = parse(event_id)?;
    relay.stored(id).await.map_err(|error| away(&error))
}

/// Removes events from the relay's database; absent ones are fine.
///
/// # Errors
/// [`DeliveryError`].
pub async fn withdraw(relay: &dyn RelayPort, event_ids: &[String]) -> Result<(), DeliveryError> {
    let ids = event_ids
        .iter()
        .map(|id| parse(id))
        .collect::<Result<Vec<_>, _>>()?;
    let deleted = relay.delete(ids).await.map_err(|error| away(&error))?;
    metrics::counter!(names::CIPHERTEXTS_DELETED).increment(deleted.removed.len() as u64);
    Ok(())
}

fn parse(event_id: &str) -> Result<EventId, DeliveryError> {
    EventId::from_hex(event_id).map_err(|_| DeliveryError::Refused("outbox.malformed"))
}

fn away(error: &ReadError) -> DeliveryError {
    match error {
        ReadError::Detached => DeliveryError::Away("relay.detached"),
        ReadError::Database(_) => DeliveryError::Away("relay.database"),
    }
}
