//! Registering clients and looking at them.
//!
//! A client begins without a secret. Its first one comes by its first rotation, like every other: made by the relay, sealed for the admins,
//! never on a terminal.

use keyturn_proto::{ClientId, RotationId, UnixMs, VersionId};
use keyturn_store::documents::{
    ClientDoc, ClientStatus, Origin, PolicyOverrides, VersionDoc, VersionState,
};
use keyturn_store::store::{Store, StoreError};
use serde::Serialize;

use super::{OperatorError, about_client, audit};

/// Most clients read from the store at once.
const PAGE: usize = 500;

/// Registers a client for these admin groups, all of which must be bound.
///
/// # Errors
/// [`OperatorError::Exists`], [`OperatorError::Unknown`] for a group; the store's.
pub async fn add(
    store: &dyn Store,
    client_id: ClientId,
    groups: Vec<String>,
    now: UnixMs,
) -> Result<(), OperatorError> {
    let bound = store.groups().await?;
    for alias in &groups {
        if !bound.iter().any(|group| group.alias == *alias) {
            return Err(OperatorError::Unknown {
                what: "group",
                name: alias.clone(),
            });
        }
    }
    let record = about_client(audit("client.added", &groups.join(" "), now), &client_id);
    let client = ClientDoc {
        client_id: client_id.clone(),
        current_version: None,
        previous_version: None,
        status: ClientStatus::Active,
        admin_groups: groups,
        updated_at: now,
        last_rotation_at: None,
        policy: PolicyOverrides::default(),
        active_rotation: None,
        fence: 0,
        snapshot: Vec::new(),
    };
    store
        .create_client(client, None, record)
        .await
        .map_err(|error| match error {
            StoreError::Conflict {
                why: "client.exists",
            } => OperatorError::Exists {
                what: "client",
                name: client_id.to_string(),
            },
            other => other.into(),
        })
}

/// Suspends, re-activates or revokes (for good) a client.
///
/// # Errors
/// [`OperatorError::Unknown`]; the store's.
pub async fn set_status(
    store: &dyn Store,
    client_id: &ClientId,
    status: ClientStatus,
    now: UnixMs,
) -> Result<(), OperatorError> {
    let event = match status {
        ClientStatus::Active => "client.activated",
        ClientStatus::Suspended => "client.suspended",
        ClientStatus::Revoked => "client.revoked",
    };
    let record = about_client(audit(event, "by the operator", now), client_id);
    match store
        .update_client(client_id, Some(status), None, None, now, record)
        .await
    {
        Ok(_) => Ok(()),
        Err(StoreError::NotFound { .. }) => Err(unknown(client_id)),
        Err(error) => Err(error.into()),
    }
}

/// A client as listed.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct ClientView {
    /// Its id.
    pub client_id: ClientId,
    /// Active, suspended or revoked.
    pub status: ClientStatus,
    /// Whether the operator suspended it.
    pub held: bool,
    /// Aliases of the groups that may rotate it.
    pub admin_groups: Vec<String>,
    /// The version to use.
    pub current_version: Option<VersionId>,
    /// The version in grace.
    pub previous_version: Option<VersionId>,
    /// The rotation under way.
    pub active_rotation: Option<RotationId>,
    /// When a rotation was last promoted.
    pub last_rotation_at: Option<UnixMs>,
}

/// A version as shown: never its hash, nor anything derived from the secret.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct VersionView {
    /// Its id.
    pub version_id: VersionId,
    /// Where it is in its life.
    pub state: VersionState,
    /// Generated or imported.
    pub origin: Origin,
    /// When it was recorded.
    pub created_at: UnixMs,
    /// Valid from.
    pub not_before: UnixMs,
    /// Valid until.
    pub not_after: Option<UnixMs>,
    /// Why it was made.
    pub reason: String,
    /// The operation that made it.
    pub rotation_id: Option<RotationId>,
}

/// A client with its versions, oldest first.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct ClientDetail {
    /// The client.
    #[serde(flatten)]
    pub client: ClientView,
    /// Its versions.
    pub versions: Vec<VersionView>,
}

/// Every client, in id order.
///
/// # Errors
/// The store's.
pub async fn list(store: &dyn Store) -> Result<Vec<ClientView>, OperatorError> {
    let mut views: Vec<ClientView> = Vec::new();
    loop {
        let after = views.last().map(|view| view.client_id.clone());
        let page = store.clients(after.as_ref(), PAGE).await?;
        let last = page.len() < PAGE;
        views.extend(page.into_iter().map(view));
        if last {
            return Ok(views);
        }
    }
}

/// One client.
///
/// # Errors
/// [`OperatorError::Unknown`]; the store's.
pub async fn show(store: &dyn Store, client_id: &ClientId) -> Result<ClientDetail, OperatorError> {
    let client = store
        .client(client_id)
        .await?
        .ok_or_else(|| unknown(client_id))?;
    let versions = store
        .versions(client_id)
        .await?
        .into_iter()
        .map(version)
        .collect();
    Ok(ClientDetail {
        client: view(client),
        versions,
    })
}

fn view(client: ClientDoc) -> ClientView {
    ClientView {
        client_id: client.client_id,
        status: client.status,
        held: client.policy.held,
        admin_groups: client.admin_groups,
        current_version: client.current_version,
        previous_version: client.previous_version,
        active_rotation: client.active_rotation.map(|active| active.rotation_id),
        last_rotation_at: client.last_rotation_at,
    }
}

fn version(version: VersionDoc) -> VersionView {
    VersionView {
        version_id: version.version_id,
        state: version.state,
        origin: version.origin,
        created_at: version.created_at,
        not_before: version.not_before,
        not_after: version.not_after,
        reason: version.rotation_reason,
        rotation_id: version.rotation_id,
    }
}

fn unknown(client_id: &ClientId) -> OperatorError {
    OperatorError::Unknown {
        what: "client",
        name: client_id.to_string(),
    }
}
