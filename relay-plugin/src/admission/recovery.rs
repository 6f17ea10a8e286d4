//! Judging again, without proofs: a reservation found after a restart, and the leaves a secret is about to be sealed for.
//!
//! The proofs of a recorded reservation were verified and used up; what may have changed since is who is enrolled, who is in the group, what
//! the group and the client may do. Nothing is audited here: the caller acts on the answer and audits the act with the reason given.

use keyturn_proto::{ErrorClass, Npub};
use keyturn_store::documents::{ClientDoc, GroupState, RotationDoc};

use super::membership::{self, Leaf};
use super::permit::Refusal;
use super::refused::Refused;
use super::{Admission, policy};

impl Admission {
    /// Whether a recorded reservation may still go on: requester enrolled, in scope, and in the group's present `roster` with a proven key;
    /// the group served and still one of the client's; the client and its grace within policy. Returns the client as it is now.
    ///
    /// # Errors
    /// The [`Refusal`] that a new request would get.
    pub async fn recheck(
        &self,
        rotation: &RotationDoc,
        roster: &[Leaf],
    ) -> Result<ClientDoc, Refusal> {
        self.judge_again(rotation, roster)
            .await
            .map_err(|refused| refused.refusal)
    }

    async fn judge_again(
        &self,
        rotation: &RotationDoc,
        roster: &[Leaf],
    ) -> Result<ClientDoc, Refused> {
        let admin = self.store.admin(&rotation.requested_by).await?;
        let groups = self.store.groups().await?;
        let client = self.store.client(&rotation.client_id).await?;

        let alias = rotation.mls_group.as_str();
        let served = groups.iter().any(|group| {
            group.alias == alias
                && group.mls_group_id.is_some()
                && group.status == GroupState::Active
        });
        if !served {
            return Err(Refused::unauthorized("group.not_served"));
        }
        let mut leaves = roster
            .iter()
            .filter(|leaf| leaf.npub == rotation.requested_by)
            .peekable();
        if leaves.peek().is_none() {
            return Err(Refused::unauthorized("group.requester_gone"));
        }
        let mut verdict = Err(Refused::unauthorized("admin.key_not_proven"));
        for leaf in leaves {
            verdict = membership::leaf(admin.as_ref(), &leaf.signature_key);
            if verdict.is_ok() {
                break;
            }
        }
        let admin = verdict?;
        let client = client.ok_or(Refused::new(ErrorClass::NotFound, "client.unknown"))?;
        membership::entitled(admin, &client, alias)?;
        policy::judge_again(&self.settings.policy, &client, rotation)?;
        Ok(client)
    }

    /// Whether one leaf may receive, or ack, this client's secret in the group `alias`: enrolled, its key proven, the client in scope. The
    /// service's own leaf is the caller's business.
    ///
    /// # Errors
    /// The [`Refusal`] that says why not, for the alarm and the audit record.
    pub async fn authorise_leaf(
        &self,
        client: &ClientDoc,
        alias: &str,
        leaf: &Leaf,
    ) -> Result<(), Refusal> {
        let judge = async {
            let admin = self.store.admin(&leaf.npub).await?;
            let admin = membership::leaf(admin.as_ref(), &leaf.signature_key)?;
            membership::entitled(admin, client, alias)
        };
        judge.await.map_err(|refused: Refused| refused.refusal)
    }

    /// [`Self::authorise_leaf`] for everybody a notify would be sealed for, with one look at the registry. Returns the readers, each npub once.
    ///
    /// # Errors
    /// The first leaf that may not read, and why.
    pub async fn authorise_roster(
        &self,
        client: &ClientDoc,
        alias: &str,
        leaves: &[Leaf],
    ) -> Result<Vec<Npub>, (Option<Npub>, Refusal)> {
        let admins = self
            .store
            .admins()
            .await
            .map_err(|error| (None, Refused::from(error).refusal))?;
        let admins: std::collections::HashMap<_, _> =
            admins.iter().map(|admin| (admin.npub, admin)).collect();
        let mut readers = std::collections::BTreeSet::new();
        for leaf in leaves {
            membership::leaf(admins.get(&leaf.npub).copied(), &leaf.signature_key)
                .and_then(|admin| membership::entitled(admin, client, alias))
                .map_err(|refused| (Some(leaf.npub), refused.refusal))?;
            readers.insert(leaf.npub);
        }
        Ok(readers.into_iter().collect())
    }
}
