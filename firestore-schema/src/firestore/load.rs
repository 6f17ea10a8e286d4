//! Reading documents, those that belong together in as few calls as possible.

use keyturn_proto::{ClientId, Npub, RotationId, VersionId};

use super::paths::Path;
use super::query::Ask;
use super::reading::Reading;
use crate::audit::chain_of;
use crate::documents::{AdminDoc, AdminGroupDoc, AuditRecord, ClientDoc, RotationDoc, VersionDoc};
use crate::lifecycle::{Family, Known, People};
use crate::queries::relay;
use crate::store::{Result, StoreError};

/// The head that a record will be appended to, and the client that it names: what nearly every method needs first.
pub(super) fn named_by(reading: &Reading<'_>, record: &AuditRecord) -> Result<Vec<Path>> {
    let chain = chain_of(record, &reading.turn().link.instance);
    let mut paths = vec![Path::chain(&chain.id())?];
    if let Some(id) = &record.client_id {
        paths.push(Path::client(id)?);
    }
    Ok(paths)
}

pub(super) async fn client(reading: &mut Reading<'_>, id: &ClientId) -> Result<Option<ClientDoc>> {
    reading.get(Path::client(id)?).await
}

/// A client with the versions that its snapshot names. Whatever changes a living version writes the client as well, so the client's condition
/// guards them all.
pub(super) async fn family(reading: &mut Reading<'_>, id: &ClientId) -> Result<Family> {
    let client = client(reading, id)
        .await?
        .ok_or(StoreError::NotFound { what: "client" })?;
    let paths: Vec<Path> = client
        .snapshot
        .iter()
        .map(|entry| Path::version(id, &entry.version_id))
        .chain(
            client
                .active_rotation
                .iter()
                .map(|active| Path::rotation(&active.rotation_id)),
        )
        .collect::<Result<_>>()?;
    reading.fetch(paths).await?;
    let mut living = Vec::with_capacity(client.snapshot.len());
    for entry in &client.snapshot {
        let found = version(reading, id, &entry.version_id).await?;
        living.push(found.ok_or(StoreError::Damaged { what: "client" })?);
    }
    Ok(Family { client, living })
}

pub(super) async fn version(
    reading: &mut Reading<'_>,
    client: &ClientId,
    id: &VersionId,
) -> Result<Option<VersionDoc>> {
    reading.get(Path::version(client, id)?).await
}

pub(super) async fn rotation(
    reading: &mut Reading<'_>,
    id: &RotationId,
) -> Result<Option<RotationDoc>> {
    reading.get(Path::rotation(id)?).await
}

/// A rotation that must exist, and its client's family.
pub(super) async fn rotation_and_family(
    reading: &mut Reading<'_>,
    id: &RotationId,
) -> Result<(RotationDoc, Family)> {
    let rotation = rotation(reading, id)
        .await?
        .ok_or(StoreError::NotFound { what: "rotation" })?;
    let family = family(reading, &rotation.client_id).await?;
    Ok((rotation, family))
}

/// The rotation that the client's `active_rotation` names.
pub(super) async fn active(
    reading: &mut Reading<'_>,
    client: &ClientDoc,
) -> Result<Option<RotationDoc>> {
    let Some(active) = &client.active_rotation else {
        return Ok(None);
    };
    let found = rotation(reading, &active.rotation_id).await?;
    found
        .ok_or(StoreError::Damaged { what: "client" })
        .map(Some)
}

/// What was recorded before under this id.
pub(super) async fn known(reading: &mut Reading<'_>, id: &RotationId) -> Result<Known> {
    Ok(Known {
        rotation: rotation(reading, id).await?,
        action: reading.get(Path::action(id)?).await?,
    })
}

/// An enrolment that is judged: the commit fails if it was changed meanwhile, also when it is not written itself.
pub(super) async fn admin(reading: &mut Reading<'_>, npub: &Npub) -> Result<Option<AdminDoc>> {
    let path = Path::admin(npub)?;
    let found = reading.get(path.clone()).await?;
    reading.hold(path);
    Ok(found)
}

/// Who stands behind a rotation: its readers, `also`, and the groups of its client. Returns also where they lie, to be held by a commit that rests on all
/// of them.
pub(super) async fn people(
    reading: &mut Reading<'_>,
    client: &ClientDoc,
    rotation: &RotationDoc,
    also: Option<&Npub>,
) -> Result<(People, Vec<Path>)> {
    let admins: Vec<Path> = rotation
        .readers
        .iter()
        .chain(also)
        .map(Path::admin)
        .collect::<Result<_>>()?;
    let groups: Vec<Path> = client
        .admin_groups
        .iter()
        .map(|alias| Path::group(alias))
        .collect::<Result<_>>()?;
    let paths: Vec<Path> = admins.iter().chain(&groups).cloned().collect();
    reading.fetch(paths.clone()).await?;
    let mut people = People::default();
    for path in admins {
        people.admins.extend(reading.get::<AdminDoc>(path).await?);
    }
    for path in groups {
        people
            .groups
            .extend(reading.get::<AdminGroupDoc>(path).await?);
    }
    Ok((people, paths))
}

/// To be judged together before one is written: one that cannot be read might hold the very key. In order of the public key.
pub(super) async fn admins(reading: &mut Reading<'_>) -> Result<Vec<AdminDoc>> {
    let mut found: Vec<AdminDoc> = reading.query(&Ask::new(&relay::ADMINS_ALL)).await?;
    found.sort_by_key(|admin| admin.npub);
    Ok(found)
}

/// Likewise. In order of the alias.
pub(super) async fn groups(reading: &mut Reading<'_>) -> Result<Vec<AdminGroupDoc>> {
    reading.query(&Ask::new(&relay::GROUPS_ALL)).await
}
