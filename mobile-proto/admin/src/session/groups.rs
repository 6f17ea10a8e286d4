//! Admin groups: key packages, making a group, inviting, and the commits behind it.
//!
//! A commit of ours goes staged → published → read back → merged → Welcomes sent. Each step is found again after a crash.

use std::collections::BTreeSet;
use std::time::Duration;

use keyturn_mls::error::{CommitError, PublishError, StoreError};
use keyturn_mls::{
    GroupInfo, GroupSpec, Leaf, StagedCommit, VerifiedKeyPackage, verify_key_package,
};
use keyturn_proto::{MlsGroupId, Npub, UnixMs, kinds};
use nostr::{EventId, Filter, Kind, PublicKey};
use tokio::time::Instant;

use super::{AdminSession, npub, public_key};
use crate::session::sync::SyncError;
use crate::transport::RelayError;

/// How often a commit that lost its epoch to another one is tried again.
const COMMIT_ATTEMPTS: usize = 8;

/// Why a group could not be made, found or changed.
#[derive(Debug, thiserror::Error)]
pub enum GroupError {
    /// Nobody can be invited without a key package.
    #[error(
        "{0} has no usable key package on this relay; let them run `keyturn-admin key-package`"
    )]
    NoKeyPackage(Npub),
    /// No such group.
    #[error("no group is called {0:?}; see `keyturn-admin group list`")]
    Unknown(String),
    /// More than one group fits.
    #[error("more than one group fits; name one of: {}", .0.join(", "))]
    Ambiguous(Vec<String>),
    /// No group at all.
    #[error("this admin is in no group yet; publish a key package and let somebody invite you")]
    NoGroup,
    /// Other commits kept winning the epoch.
    #[error("the group changed again and again meanwhile; try once more")]
    Contended,
    /// Nobody to welcome us.
    #[error("no Welcome from {0} is waiting")]
    NoWelcome(Npub),
    /// A key package could not be made.
    #[error(transparent)]
    KeyPackage(#[from] PublishError),
    /// A commit could not be made.
    #[error(transparent)]
    Commit(#[from] CommitError),
    /// The relay.
    #[error(transparent)]
    Relay(#[from] RelayError),
    /// Catching up.
    #[error(transparent)]
    Sync(Box<SyncError>),
    /// The member database.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<SyncError> for GroupError {
    fn from(error: SyncError) -> Self {
        Self::Sync(Box::new(error))
    }
}

/// A group to be made.
#[derive(Clone, Debug, Default)]
pub struct NewGroup {
    /// For people.
    pub name: String,
    /// Admins to invite; each may invite others.
    pub admins: Vec<Npub>,
    /// Members to invite who may not: the service.
    pub members: Vec<Npub>,
}

impl AdminSession {
    /// Publishes a fresh key package as kinds 30443 and 443; the ids of both events.
    ///
    /// # Errors
    /// [`GroupError::KeyPackage`], [`GroupError::Relay`].
    pub async fn publish_key_package(
        &mut self,
        deadline: Instant,
    ) -> Result<[EventId; 2], GroupError> {
        let relays: Vec<String> = self.relay_urls.iter().map(ToString::to_string).collect();
        // NIP-01 keeps the addressable event with the later second, and of one second the lower id: a successor has to be dated later.
        let latest = self.latest_key_package(deadline).await?;
        let now = latest.map_or(self.clock.now(), |at| {
            self.clock.now().max(at.plus(Duration::from_secs(1)))
        });
        let events = self.member.publish_key_package(&relays, now)?;
        for event in [&events.addressable, &events.legacy] {
            self.relay
                .publish_stored(event, self.step(deadline))
                .await?;
        }
        Ok([events.addressable.id, events.legacy.id])
    }

    /// Makes a group, invites everybody named, and returns it once the Welcomes are stored by the relay.
    ///
    /// # Errors
    /// [`GroupError`]; without a key package of everybody nothing is made.
    pub async fn create_group(
        &mut self,
        spec: NewGroup,
        deadline: Instant,
    ) -> Result<GroupInfo, GroupError> {
        let NewGroup {
            name,
            admins,
            members,
        } = spec;
        let everybody: BTreeSet<Npub> = admins.iter().chain(&members).copied().collect();
        let invitees = self.key_packages(&everybody, deadline).await?;
        let spec = GroupSpec {
            name,
            admins: admins.iter().map(public_key).collect(),
            relays: self.relay_urls.iter().map(ToString::to_string).collect(),
            ..GroupSpec::default()
        };
        let now = self.clock.now();
        let created = self.member.create_group(spec, &invitees, now)?;
        self.send_welcomes(deadline).await?;
        // The new group's events are part of what we listen to from now on.
        self.sync(deadline).await?;
        Ok(created.group)
    }

    /// Invites members to a group we may change.
    ///
    /// # Errors
    /// [`GroupError`].
    pub async fn invite(
        &mut self,
        group: &MlsGroupId,
        npubs: &[Npub],
        deadline: Instant,
    ) -> Result<(), GroupError> {
        let everybody: BTreeSet<Npub> = npubs.iter().copied().collect();
        let invitees = self.key_packages(&everybody, deadline).await?;
        self.commit(deadline, |session| {
            let now = session.clock.now();
            session.member.invite(group, &invitees, now)
        })
        .await
    }

    /// Renews our leaf; needed after joining, before anything is sent.
    ///
    /// # Errors
    /// [`GroupError`].
    pub async fn self_update(
        &mut self,
        group: &MlsGroupId,
        deadline: Instant,
    ) -> Result<(), GroupError> {
        self.commit(deadline, |session| {
            let now = session.clock.now();
            session.member.self_update(group, now)
        })
        .await
    }

    /// The groups we are in.
    ///
    /// # Errors
    /// [`GroupError::Store`].
    pub fn groups(&self) -> Result<Vec<GroupInfo>, GroupError> {
        let mut groups = self.member.groups()?;
        groups.retain(|group| !group.evicted);
        Ok(groups)
    }

    /// Who is in a group: claims of the ratchet tree, see [`Leaf`].
    ///
    /// # Errors
    /// [`GroupError::Store`].
    pub fn members(&self, group: &MlsGroupId) -> Result<Vec<Leaf>, GroupError> {
        Ok(self.member.members(group)?)
    }

    /// The group that `name` means: an id, the start of one (at least 4 digits), or a name. `None`: the only group with a service in it,
    /// or the only group.
    ///
    /// # Errors
    /// [`GroupError::Unknown`], [`GroupError::Ambiguous`], [`GroupError::NoGroup`].
    pub fn find_group(&self, name: Option<&str>) -> Result<MlsGroupId, GroupError> {
        let groups = self.groups()?;
        if groups.is_empty() {
            return Err(GroupError::NoGroup);
        }
        let mut fitting = Vec::new();
        for group in &groups {
            let id = group.id.to_string();
            let fits = match name {
                Some(name) => {
                    id == name
                        || group.data.name == name
                        || (name.len() >= 4 && id.starts_with(name))
                }
                None => {
                    let members = self.member.members(&group.id)?;
                    members.iter().any(|leaf| self.is_service(&leaf.npub))
                }
            };
            if fits {
                fitting.push(group);
            }
        }
        if fitting.is_empty() && name.is_none() {
            fitting = groups.iter().collect();
        }
        match (fitting.as_slice(), name) {
            ([one], _) => Ok(one.id.clone()),
            ([], Some(name)) => Err(GroupError::Unknown(name.to_owned())),
            (several, _) => Err(GroupError::Ambiguous(
                several.iter().map(|group| group.id.to_string()).collect(),
            )),
        }
    }

    /// The newest valid key package of everybody: 30443 preferred, 443 otherwise.
    async fn key_packages(
        &mut self,
        npubs: &BTreeSet<Npub>,
        deadline: Instant,
    ) -> Result<Vec<VerifiedKeyPackage>, GroupError> {
        let mut found = Vec::new();
        for npub in npubs {
            let package = match self.key_package(npub, kinds::KEY_PACKAGE, deadline).await? {
                Some(package) => Some(package),
                None => {
                    self.key_package(npub, kinds::KEY_PACKAGE_LEGACY, deadline)
                        .await?
                }
            };
            found.push(package.ok_or(GroupError::NoKeyPackage(*npub))?);
        }
        Ok(found)
    }

    /// When the addressable key package that the relay holds of us is dated.
    async fn latest_key_package(
        &mut self,
        deadline: Instant,
    ) -> Result<Option<UnixMs>, GroupError> {
        let filter = Filter::new()
            .kind(Kind::from(kinds::KEY_PACKAGE))
            .author(self.me);
        let events = self.relay.fetch_all(&filter, self.step(deadline)).await?;
        Ok(events
            .last()
            .map(|event| UnixMs::from_secs(event.created_at.as_secs())))
    }

    async fn key_package(
        &mut self,
        npub: &Npub,
        kind: u16,
        deadline: Instant,
    ) -> Result<Option<VerifiedKeyPackage>, GroupError> {
        let filter = Filter::new()
            .kind(Kind::from(kind))
            .author(public_key(npub));
        let mut events = self.relay.fetch_all(&filter, self.step(deadline)).await?;
        events.reverse();
        let now = self.clock.now();
        Ok(events.iter().find_map(|event| {
            verify_key_package(event, now)
                .inspect_err(|reason| {
                    tracing::debug!(event = %event.id, %reason, "key package passed over");
                })
                .ok()
        }))
    }

    /// Stages a commit, publishes it, reads it back, merges it, sends its Welcomes; anew when another commit won the epoch.
    async fn commit(
        &mut self,
        deadline: Instant,
        mut stage: impl FnMut(&mut Self) -> Result<StagedCommit, CommitError>,
    ) -> Result<(), GroupError> {
        for _ in 0..COMMIT_ATTEMPTS {
            self.catch_up(deadline).await?;
            self.finish_commits(deadline).await?;
            let staged = stage(self)?;
            if self.publish_commit(&staged, deadline).await? {
                self.send_welcomes(deadline).await?;
                return Ok(());
            }
            self.sync(deadline).await?;
        }
        Err(GroupError::Contended)
    }

    /// Whether the commit was merged; `false` when another one took its epoch.
    pub(super) async fn publish_commit(
        &mut self,
        staged: &StagedCommit,
        deadline: Instant,
    ) -> Result<bool, GroupError> {
        match self
            .relay
            .publish_stored(&staged.event, self.step(deadline))
            .await
        {
            Ok(()) => {}
            Err(RelayError::Refused(reason)) => {
                // Said no: it will never be there, and the group must be able to commit again.
                self.member.commit_rejected(staged.event.id)?;
                return Err(RelayError::Refused(reason).into());
            }
            // Unknown whether it arrived: it stays pending and the next sync finds out.
            Err(error) => return Err(error.into()),
        }
        // What arrived while it was published may have taken its epoch, before or after it is merged.
        self.catch_up(deadline).await?;
        let now = self.clock.now();
        self.member.commit_published(staged.event.id, now)?;
        Ok(!self.lost.contains(&staged.event.id))
    }

    /// Brings commits of an earlier run to their end: those the relay has are merged, the others published anew.
    pub(super) async fn finish_commits(&mut self, deadline: Instant) -> Result<(), GroupError> {
        for staged in self.member.pending_commits()? {
            if !self.is_stored(staged.event.id, self.step(deadline)).await? {
                let now = self.clock.now();
                match self.member.renew_pending(staged.event.id, now) {
                    Ok(renewed) => {
                        self.publish_commit(&renewed, deadline).await?;
                    }
                    // Overtaken by another commit meanwhile.
                    Err(CommitError::NotPending(_)) => {}
                    Err(error) => return Err(error.into()),
                }
            } else {
                let now = self.clock.now();
                self.member.commit_published(staged.event.id, now)?;
            }
        }
        self.send_welcomes(deadline).await
    }

    /// Sends what `commit_published` released, and marks each as sent once the relay holds it.
    async fn send_welcomes(&mut self, deadline: Instant) -> Result<(), GroupError> {
        for welcome in self.member.released_welcomes()? {
            self.relay
                .publish_to_recipient(&welcome.event, self.step(deadline))
                .await?;
            self.member.welcome_sent(welcome.event.id)?;
            tracing::info!(recipient = %npub(&welcome.recipient), group = %welcome.group, "Welcome sent");
        }
        Ok(())
    }

    /// Whether `key` is a member of `group`.
    pub(super) fn is_member(
        &self,
        group: &MlsGroupId,
        key: &PublicKey,
    ) -> Result<bool, StoreError> {
        Ok(self
            .member
            .members(group)?
            .iter()
            .any(|leaf| leaf.npub == *key))
    }
}
