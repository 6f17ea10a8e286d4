//! Step 8: at the end of its grace the old version is retired; and when the retention is over, the ciphertext goes, here and in the relay.

use keyturn_proto::notify::NotifyState;
use keyturn_proto::{ClientId, ServiceNotify, VersionId};
use keyturn_store::documents::OutboxDoc;

use super::audit::Entry;
use super::engine::Engine;
use super::failure::Failure;
use crate::crash;

impl Engine {
    /// Retires a version whose grace is over. The admins are told once: they have known the moment since the promotion.
    pub(super) async fn retire(
        &self,
        client_id: &ClientId,
        version: &VersionId,
    ) -> Result<(), Failure> {
        let now = self.now();
        let audit = Entry::by_relay(now, "version.retired", "grace.over")
            .client(client_id)
            .version(*version);
        let client = self
            .store()
            .retire(client_id, version, self.fenced()?, now, audit.done())
            .await?;
        crash::point(crash::Point::AfterRetire).await;
        metrics::counter!(crate::metrics::RETIRED).increment(1);
        let notify = ServiceNotify {
            action_id: None,
            client_id: Some(client_id.clone()),
            in_reply_to: None,
            at: now,
            body: NotifyState::Retired {
                version_id: *version,
            },
        };
        for alias in &client.admin_groups {
            self.tell_once(alias, &notify).await;
        }
        Ok(())
    }

    /// Deletes ciphertext past its retention: first from the relay, then the record of it, so that a crash in between repeats the deletion.
    /// Where other relays hold it as well, its id stays on record until theirs is gone too.
    pub(super) async fn purge(&self, events: &[OutboxDoc]) -> Result<(), Failure> {
        let ids: Vec<String> = events.iter().map(|event| event.event_id.clone()).collect();
        self.distributor().withdraw(&ids).await?;
        let now = self.now();
        let keep_until = self.settings().keep_withdrawn.map(|keep| now.plus(keep));
        self.store().purge(&ids, keep_until, now).await?;
        Ok(())
    }
}
