//! The `status` action: how the client stands. Changes nothing, and is recorded all the same: somebody was told.

use keyturn_proto::ErrorClass;
use keyturn_proto::notify::NotifyState;
use keyturn_store::documents::{ClientStatus, VersionState};

use super::audit::Entry;
use super::engine::Engine;
use super::failure::Failure;
use super::request::Authorised;

impl Engine {
    pub(super) async fn status(&self, authorised: &Authorised) -> Result<NotifyState, Failure> {
        let id = authorised.permit().client_id();
        let client = self
            .store()
            .client(id)
            .await?
            .ok_or(Failure::refused(ErrorClass::NotFound, "client.unknown"))?;
        let grace = client
            .snapshot
            .iter()
            .find(|version| version.state == VersionState::Grace);
        let client_status = match client.status {
            ClientStatus::Active => "active",
            ClientStatus::Suspended => "suspended",
            ClientStatus::Revoked => "revoked",
        };
        let told = Entry::of_permit(self.now(), authorised.permit(), "status.told");
        self.store().append(told.done()).await?;
        Ok(NotifyState::Status {
            client_status: client_status.to_owned(),
            current_version: client.current_version,
            previous_version: client.previous_version,
            grace_until: grace.and_then(|version| version.not_after),
            active_rotation: client.active_rotation.map(|active| active.rotation_id),
        })
    }
}
