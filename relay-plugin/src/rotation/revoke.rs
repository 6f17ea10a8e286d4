//! The `revoke` action: takes effect here, in one transaction, and waits for no ack and no MLS (protocol.md §3). The `emergency` action is
//! this revocation inside the reserve transaction of a rotation without delay and grace, see [`super::reserve`].

use keyturn_proto::notify::{NotifyState, Outcome};
use keyturn_store::store::Revoke;

use super::audit::Entry;
use super::engine::Engine;
use super::failure::Failure;
use super::request::Authorised;

impl Engine {
    pub(super) async fn revoke(&self, authorised: Authorised) -> Result<NotifyState, Failure> {
        let permit = authorised.permit();
        let now = self.now();
        let mut audit = Entry::of_permit(now, permit, "version.revoked");
        if let Some(version) = permit.params().version_id {
            audit = audit.version(version);
        }
        let result = self
            .store()
            .revoke(Revoke {
                client_id: permit.client_id().clone(),
                version_id: permit.params().version_id,
                action_id: permit.action_id().clone(),
                request_digest: permit.request_digest().to_owned(),
                totp_step: permit.totp_step().map(|step| (permit.requester(), step)),
                retention_ms: self.settings().retention_ms(),
                fence: authorised.fence(),
                now,
                audit: audit.done(),
            })
            .await?;
        self.acted(result, permit.client_id(), Outcome::Revoked)
            .await
    }
}
