//! A request that was granted before: this instance died after the commit, or another one did.
//!
//! What must always hold: what the store has recorded of a request is its outcome, whatever admission would say today; nothing is decided here.

use keyturn_proto::notify::{NotifyState, Outcome};
use keyturn_proto::{Action, ServiceRequest, canonical};
use keyturn_store::documents::{ActionDoc, Actor, RotationDoc};
use keyturn_store::lifecycle::Known;

use super::engine::{Answer, Engine};
use super::failure::Failure;
use crate::admission::Opened;

/// What the store has recorded of one request.
enum Recorded<'a> {
    Rotation(&'a RotationDoc),
    Action(&'a ActionDoc),
}

/// What is recorded under the id of this request, if it was this request: the same sender and the same content.
fn recorded<'a>(opened: &Opened, known: &'a Known) -> Option<Recorded<'a>> {
    if known.rotation.is_none() && known.action.is_none() {
        return None;
    }
    let request: ServiceRequest = serde_json::from_str(&opened.json).ok()?;
    let digest = hex::encode(canonical::request_digest(
        request.action_type,
        &request.client_id,
        &request.action_id,
        &request.params,
        &opened.group.mls_group_id,
    ));
    if let Some(rotation) = &known.rotation {
        let same = rotation.requested_by == opened.sender && rotation.request_digest == digest;
        return same.then_some(Recorded::Rotation(rotation));
    }
    let action = known.action.as_ref()?;
    let sender = Actor::Admin {
        npub: opened.sender,
    };
    let same = action.requester == sender && action.request_digest == digest;
    same.then_some(Recorded::Action(action))
}

/// Whether this request has its rotation.
#[must_use]
pub fn is_reserved(opened: &Opened, known: &Known) -> bool {
    matches!(recorded(opened, known), Some(Recorded::Rotation(_)))
}

/// Whether this request has had its effect.
#[must_use]
pub fn is_recorded(opened: &Opened, known: &Known) -> bool {
    recorded(opened, known).is_some()
}

impl Engine {
    /// The answer to a request that was granted before; `None` for one that was not.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn granted_before(
        &self,
        opened: &Opened,
        known: &Known,
    ) -> Result<Option<Answer>, Failure> {
        let action = match recorded(opened, known) {
            None => return Ok(None),
            Some(Recorded::Rotation(rotation)) => {
                let claim = self.claim(&rotation.rotation_id);
                let claim = claim.ok_or(Failure::Again("rotation.claimed"))?;
                return self.reserved_before(claim, rotation).await.map(Some);
            }
            Some(Recorded::Action(action)) => action,
        };
        self.acted_before(action).await.map(Answer::Tell).map(Some)
    }

    async fn acted_before(&self, action: &ActionDoc) -> Result<NotifyState, Failure> {
        let client = &action.client_id;
        match action.action_type {
            Action::Cancel => {
                let found = action.target_rotation_id.is_some();
                self.withdrawn(client, found).await
            }
            Action::Rollback => self.ended(client, Outcome::RolledBack, None).await,
            Action::Revoke => self.ended(client, Outcome::Revoked, None).await,
            // A rotation has its own document, and a status leaves none.
            Action::Rotation | Action::Emergency | Action::Status => {
                Err(Failure::Again("action.without_rotation"))
            }
        }
    }
}
