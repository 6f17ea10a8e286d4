//! The `rollback` action: within grace the previous version is current again, and the withdrawn one is retired at once.

use keyturn_proto::notify::{NotifyState, Outcome};
use keyturn_proto::{ClientId, ErrorClass};
use keyturn_store::store::{ActionResult, Rollback};

use super::audit::Entry;
use super::engine::Engine;
use super::failure::Failure;
use super::request::Authorised;

impl Engine {
    pub(super) async fn rollback(&self, authorised: Authorised) -> Result<NotifyState, Failure> {
        let permit = authorised.permit();
        let now = self.now();
        let result = self
            .store()
            .rollback(Rollback {
                client_id: permit.client_id().clone(),
                target: permit.params().target_rotation_id.clone(),
                action_id: permit.action_id().clone(),
                request_digest: permit.request_digest().to_owned(),
                totp_step: permit.totp_step().map(|step| (permit.requester(), step)),
                fence: authorised.fence(),
                now,
                audit: Entry::of_permit(now, permit, "rotation.rolled_back").done(),
            })
            .await?;
        self.acted(result, permit.client_id(), Outcome::RolledBack)
            .await
    }

    /// The answer to an action that took effect inside its own transaction.
    pub(super) async fn acted(
        &self,
        result: ActionResult,
        client: &ClientId,
        outcome: Outcome,
    ) -> Result<NotifyState, Failure> {
        match result {
            ActionResult::Done(_) => {
                metrics::counter!(crate::metrics::ACTIONS, "outcome" => outcome.as_str())
                    .increment(1);
                self.wake();
            }
            ActionResult::Repeat(_) => {}
            ActionResult::IdReused => {
                return Err(Failure::refused(ErrorClass::Conflict, "request.id_reused"));
            }
            ActionResult::TotpReplayed => {
                let class = ErrorClass::UnauthorizedRequest;
                return Err(Failure::refused(class, "totp.replayed"));
            }
        }
        self.ended(client, outcome, None).await
    }
}
