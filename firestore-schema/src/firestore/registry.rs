//! Clients, admins and groups.

use async_trait::async_trait;
use keyturn_proto::{ClientId, Npub, UnixMs};

use super::apply::{Also, recorded};
use super::load;
use super::open::FirestoreStore;
use super::paths::Path;
use super::query::Ask;
use super::revision;
use super::stored;
use crate::collections::{ADMINS, GROUPS};
use crate::documents::{
    AdminDoc, AdminGroupDoc, AuditRecord, ClientDoc, ClientStatus, GroupState, PolicyOverrides,
    ProvenKey, VersionDoc,
};
use crate::lifecycle::{self, ClientUpdate, Verdict};
use crate::queries::relay;
use crate::store::{Registry, Result, StoreError};

#[async_trait]
impl Registry for FirestoreStore {
    async fn create_client(
        &self,
        client: ClientDoc,
        first: Option<VersionDoc>,
        audit: AuditRecord,
    ) -> Result<()> {
        let turn = self.to_record("create_client", &audit).await?;
        loop {
            let mut reading = turn.read();
            let mut paths = load::named_by(&reading, &audit)?;
            paths.push(Path::client(&client.client_id)?);
            if let Some(first) = &first {
                paths.push(Path::version(&first.client_id, &first.version_id)?);
            }
            reading.fetch(paths).await?;
            let known = load::client(&mut reading, &client.client_id).await?;
            let (doc, first, audit) = (client.clone(), first.clone(), audit.clone());
            let change = lifecycle::create_client(known.as_ref(), doc, first, audit)?;
            let verdict = Verdict { answer: (), change };
            if let Some(answer) = turn.settle(reading, verdict).await? {
                return Ok(answer);
            }
        }
    }

    async fn client(&self, id: &ClientId) -> Result<Option<ClientDoc>> {
        let turn = self.to_read("client");
        load::client(&mut turn.read(), id).await
    }

    async fn clients(&self, after: Option<&ClientId>, limit: usize) -> Result<Vec<ClientDoc>> {
        let turn = self.to_read("clients");
        let ask = match after {
            Some(id) => Ask::new(&relay::CLIENTS_AFTER).name(turn.link.name(&Path::client(id)?)),
            None => Ask::new(&relay::CLIENTS_ALL),
        };
        turn.read().query(&ask.limit(limit)).await
    }

    async fn versions(&self, id: &ClientId) -> Result<Vec<VersionDoc>> {
        let turn = self.to_read("versions");
        let ask = Ask::new(&relay::VERSIONS_OF_CLIENT).below(Path::client(id)?);
        let mut found: Vec<VersionDoc> = turn.read().query(&ask).await?;
        found.sort_by_key(|doc| (doc.created_at, doc.version_id));
        Ok(found)
    }

    async fn update_client(
        &self,
        id: &ClientId,
        status: Option<ClientStatus>,
        admin_groups: Option<Vec<String>>,
        policy: Option<PolicyOverrides>,
        now: UnixMs,
        audit: AuditRecord,
    ) -> Result<ClientDoc> {
        let turn = self.to_record("update_client", &audit).await?;
        let update = ClientUpdate {
            status,
            admin_groups,
            policy,
        };
        loop {
            let mut reading = turn.read();
            let mut paths = load::named_by(&reading, &audit)?;
            paths.push(Path::client(id)?);
            reading.fetch(paths).await?;
            let family = load::family(&mut reading, id).await?;
            let active = load::active(&mut reading, &family.client).await?;
            let ever_current = family.client.current_version.is_some() || {
                let ask = Ask::new(&relay::VERSIONS_EVER_CURRENT)
                    .below(Path::client(id)?)
                    .limit(1);
                !reading.query::<VersionDoc>(&ask).await?.is_empty()
            };
            let (update, audit) = (update.clone(), audit.clone());
            let verdict =
                lifecycle::update_client(family, active, ever_current, update, now, audit)?;
            if let Some(answer) = turn.settle(reading, verdict).await? {
                return Ok(answer);
            }
        }
    }

    async fn put_admin(&self, admin: AdminDoc, audit: AuditRecord) -> Result<()> {
        let turn = self.to_record("put_admin", &audit).await?;
        loop {
            let mut reading = turn.read();
            let mut paths = load::named_by(&reading, &audit)?;
            paths.extend([Path::admin(&admin.npub)?, Path::revision(ADMINS)?]);
            reading.fetch(paths).await?;
            let also = Also {
                revision: Some(revision::next(&mut reading, ADMINS, audit.at).await?),
                ..Also::default()
            };
            let known = load::admin(&mut reading, &admin.npub).await?;
            let verdict = lifecycle::enrol(known, admin.clone(), audit.clone())?;
            if turn.settle_with(reading, verdict, also).await?.is_some() {
                return Ok(());
            }
        }
    }

    async fn admin(&self, npub: &Npub) -> Result<Option<AdminDoc>> {
        let turn = self.to_read("admin");
        load::admin(&mut turn.read(), npub).await
    }

    async fn admins(&self) -> Result<Vec<AdminDoc>> {
        let turn = self.to_read("admins");
        let ask = Ask::new(&relay::ADMINS_ALL);
        let mut found: Vec<AdminDoc> = turn.read().sound(&ask, stored::any).await?;
        found.sort_by_key(|admin| admin.npub);
        Ok(found)
    }

    async fn admins_revision(&self) -> Result<u64> {
        let turn = self.to_read("admins_revision");
        revision::now(&mut turn.read(), ADMINS).await
    }

    async fn prove_key(&self, npub: &Npub, key: ProvenKey, audit: AuditRecord) -> Result<AdminDoc> {
        let turn = self.to_record("prove_key", &audit).await?;
        loop {
            let mut reading = turn.read();
            let mut paths = load::named_by(&reading, &audit)?;
            paths.extend([Path::admin(npub)?, Path::revision(ADMINS)?]);
            reading.fetch(paths).await?;
            let also = Also {
                revision: Some(revision::next(&mut reading, ADMINS, audit.at).await?),
                ..Also::default()
            };
            let admin = load::admin(&mut reading, npub).await?;
            let admin = admin.ok_or(StoreError::NotFound { what: "admin" })?;
            let others = load::admins(&mut reading).await?;
            let verdict = lifecycle::prove_key(admin, &others, key.clone(), audit.clone())?;
            if let Some(answer) = turn.settle_with(reading, verdict, also).await? {
                return Ok(answer);
            }
        }
    }

    async fn put_group(&self, group: AdminGroupDoc, audit: AuditRecord) -> Result<()> {
        let turn = self.to_record("put_group", &audit).await?;
        loop {
            let mut reading = turn.read();
            let mut paths = load::named_by(&reading, &audit)?;
            paths.extend([Path::group(&group.alias)?, Path::revision(GROUPS)?]);
            reading.fetch(paths).await?;
            let revision = revision::next(&mut reading, GROUPS, audit.at).await?;
            let known = load::groups(&mut reading).await?;
            let also = Also {
                revision: Some(revision),
                group: Some(lifecycle::bind_group(group.clone(), &known, audit.at)?),
                ..Also::default()
            };
            let verdict = recorded((), &audit);
            if turn.settle_with(reading, verdict, also).await?.is_some() {
                return Ok(());
            }
        }
    }

    async fn groups(&self) -> Result<Vec<AdminGroupDoc>> {
        let turn = self.to_read("groups");
        let ask = Ask::new(&relay::GROUPS_ALL);
        turn.read().sound(&ask, stored::any).await
    }

    async fn set_group_state(
        &self,
        alias: &str,
        state: GroupState,
        now: UnixMs,
        audit: AuditRecord,
    ) -> Result<AdminGroupDoc> {
        let turn = self.to_record("set_group_state", &audit).await?;
        loop {
            let mut reading = turn.read();
            let mut paths = load::named_by(&reading, &audit)?;
            paths.push(Path::group(alias)?);
            reading.fetch(paths).await?;
            let group: Option<AdminGroupDoc> = reading.get(Path::group(alias)?).await?;
            let group = group.ok_or(StoreError::NotFound {
                what: "admin group",
            })?;
            let Some(changed) = lifecycle::set_group_state(&group, state.clone(), now) else {
                return Ok(group);
            };
            let also = Also {
                group: Some(changed.clone()),
                ..Also::default()
            };
            let verdict = recorded(changed, &audit);
            if let Some(answer) = turn.settle_with(reading, verdict, also).await? {
                return Ok(answer);
            }
        }
    }
}
