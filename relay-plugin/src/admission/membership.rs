//! Second step: is the sender, with this very leaf key, an admin of this client, in a group that may rotate it (protocol.md §6.1)?
//!
//! MLS has proven that the leaf sent the message; a Basic credential proves nothing about whose leaf it is. So a sender counts only when the
//! registry knows the npub, and the leaf's signature key was proven for it (architecture.md, "Who is really in the group").
//!
//! An unknown client and a forbidden one look the same from outside: the same documents are read, the same class is answered, and only the
//! audit trail knows the reason.

use keyturn_proto::{ClientId, MlsGroupId, Npub};
use keyturn_store::documents::{AdminDoc, AdminGroupDoc, ClientDoc, ClientScope, GroupState};
use keyturn_store::store::Store;

use super::opened::Opened;
use super::refused::Refused;

/// An entitled sender: what the later steps need of the documents that say so.
pub(super) struct Member {
    pub(super) admin: AdminDoc,
    pub(super) client: ClientDoc,
}

/// One leaf of a group as MLS lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// Its credential.
    pub npub: Npub,
    /// Its MLS signature key.
    pub signature_key: Vec<u8>,
}

/// Reads the three documents and judges them. All three are read whatever the first one says.
pub(super) async fn check(
    store: &dyn Store,
    opened: &Opened,
    client_id: &ClientId,
) -> Result<Member, Refused> {
    let admin = store.admin(&opened.sender).await?;
    let groups = store.groups().await?;
    let client = store.client(client_id).await?;

    let admin = leaf(admin.as_ref(), &opened.leaf_signature_key).cloned()?;
    group(&groups, &opened.group.alias, &opened.group.mls_group_id)?;
    let client = client.ok_or(Refused::unauthorized("client.unknown"))?;
    entitled(&admin, &client, &opened.group.alias)?;
    Ok(Member { admin, client })
}

/// The npub is enrolled and this key is proven for it.
pub(super) fn leaf<'a>(
    admin: Option<&'a AdminDoc>,
    signature_key: &[u8],
) -> Result<&'a AdminDoc, Refused> {
    let admin = admin.ok_or(Refused::unauthorized("admin.not_enrolled"))?;
    if !admin.active {
        return Err(Refused::unauthorized("admin.revoked"));
    }
    let key = hex::encode(signature_key);
    if !admin.signature_keys.iter().any(|proven| proven.key == key) {
        return Err(Refused::unauthorized("admin.key_not_proven"));
    }
    Ok(admin)
}

/// The operator's registry binds this alias to exactly this MLS group, and serves it.
pub(super) fn group(
    groups: &[AdminGroupDoc],
    alias: &str,
    mls_group_id: &MlsGroupId,
) -> Result<(), Refused> {
    let group = groups
        .iter()
        .find(|group| group.alias == alias)
        .ok_or(Refused::unauthorized("group.unknown"))?;
    if group.mls_group_id.as_ref() != Some(mls_group_id) {
        return Err(Refused::unauthorized("group.not_bound"));
    }
    match group.status {
        GroupState::Active => Ok(()),
        GroupState::Suspended { .. } => Err(Refused::unauthorized("group.suspended")),
    }
}

/// The client is one of the group's and one of the admin's.
pub(super) fn entitled(admin: &AdminDoc, client: &ClientDoc, alias: &str) -> Result<(), Refused> {
    if !client.admin_groups.iter().any(|group| group == alias) {
        return Err(Refused::unauthorized("group.not_of_client"));
    }
    match &admin.scope {
        ClientScope::All => Ok(()),
        ClientScope::Only(clients) if clients.contains(&client.client_id) => Ok(()),
        ClientScope::Only(_) => Err(Refused::unauthorized("admin.out_of_scope")),
    }
}
