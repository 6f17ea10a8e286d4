//! Clients, admins and groups.

use async_trait::async_trait;
use keyturn_proto::{ClientId, Npub, UnixMs};

use super::flow::settle;
use super::load;
use super::open::SqliteStore;
use super::{apply, error};
use crate::documents::{
    AdminDoc, AdminGroupDoc, AuditRecord, ClientDoc, ClientStatus, GroupState, PolicyOverrides,
    ProvenKey, VersionDoc,
};
use crate::lifecycle::{self, ClientUpdate};
use crate::store::{Registry, Result, StoreError};

#[async_trait]
impl Registry for SqliteStore {
    async fn create_client(
        &self,
        client: ClientDoc,
        first: Option<VersionDoc>,
        audit: AuditRecord,
    ) -> Result<()> {
        self.writer
            .write(move |tx| {
                let known = load::client(tx, &client.client_id)?;
                let change = lifecycle::create_client(known.as_ref(), client, first, audit)?;
                apply::change(tx, change)
            })
            .await
    }

    async fn client(&self, id: &ClientId) -> Result<Option<ClientDoc>> {
        let id = id.clone();
        self.reader.read(move |tx| load::client(tx, &id)).await
    }

    async fn clients(&self, after: Option<&ClientId>, limit: usize) -> Result<Vec<ClientDoc>> {
        // Every client id is greater than the empty text.
        let after = after.map_or(String::new(), |id| id.as_str().to_owned());
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.reader
            .read(move |tx| {
                let sql =
                    "SELECT doc FROM clients WHERE client_id > ?1 ORDER BY client_id LIMIT ?2";
                load::all(tx, "client", sql, (after, limit))
            })
            .await
    }

    async fn versions(&self, id: &ClientId) -> Result<Vec<VersionDoc>> {
        let id = id.clone();
        self.reader.read(move |tx| load::versions(tx, &id)).await
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
        let id = id.clone();
        self.writer
            .write(move |tx| {
                let family = load::family(tx, &id)?;
                let active = load::active(tx, &family.client)?;
                let ever_current: bool = tx
                    .prepare_cached(
                        "SELECT EXISTS (SELECT 1 FROM versions WHERE client_id = ?1 AND state IN ('current', 'grace', 'retired'))",
                    )
                    .and_then(|mut statement| statement.query_row([id.as_str()], |row| row.get(0)))
                    .map_err(error::sql)?;
                let update = ClientUpdate {
                    status,
                    admin_groups,
                    policy,
                };
                let verdict =
                    lifecycle::update_client(family, active, ever_current, update, now, audit)?;
                settle(tx, verdict)
            })
            .await
    }

    async fn put_admin(&self, admin: AdminDoc, audit: AuditRecord) -> Result<()> {
        self.writer
            .write(move |tx| {
                let known = load::admin(tx, &admin.npub)?;
                settle(tx, lifecycle::enrol(known, admin, audit)?).map(drop)
            })
            .await
    }

    async fn admin(&self, npub: &Npub) -> Result<Option<AdminDoc>> {
        let npub = *npub;
        self.reader.read(move |tx| load::admin(tx, &npub)).await
    }

    async fn admins(&self) -> Result<Vec<AdminDoc>> {
        self.reader
            .read(|tx| {
                let sql = "SELECT npub, doc, NULL FROM admins ORDER BY npub";
                load::sound(tx, "admin", sql, [], usize::MAX, load::any)
            })
            .await
    }

    async fn admins_revision(&self) -> Result<u64> {
        self.reader
            .read(|tx| {
                // Differs with every commit of another connection: this one only reads.
                let version: i64 = tx
                    .pragma_query_value(None, "data_version", |row| row.get(0))
                    .map_err(error::sql)?;
                Ok(u64::try_from(version).unwrap_or(0))
            })
            .await
    }

    async fn prove_key(&self, npub: &Npub, key: ProvenKey, audit: AuditRecord) -> Result<AdminDoc> {
        let npub = *npub;
        self.writer
            .write(move |tx| {
                let admin =
                    load::admin(tx, &npub)?.ok_or(StoreError::NotFound { what: "admin" })?;
                let others = load::admins(tx)?;
                settle(tx, lifecycle::prove_key(admin, &others, key, audit)?)
            })
            .await
    }

    async fn put_group(&self, group: AdminGroupDoc, audit: AuditRecord) -> Result<()> {
        self.writer
            .write(move |tx| {
                let group = lifecycle::bind_group(group, &load::groups(tx)?, audit.at)?;
                apply::group(tx, &group)?;
                apply::audit(tx, tx.instance, vec![audit], None)
            })
            .await
    }

    async fn groups(&self) -> Result<Vec<AdminGroupDoc>> {
        self.reader
            .read(|tx| {
                let sql = "SELECT alias, doc, NULL FROM admin_groups ORDER BY alias";
                load::sound(tx, "admin group", sql, [], usize::MAX, load::any)
            })
            .await
    }

    async fn set_group_state(
        &self,
        alias: &str,
        state: GroupState,
        now: UnixMs,
        audit: AuditRecord,
    ) -> Result<AdminGroupDoc> {
        let alias = alias.to_owned();
        self.writer
            .write(move |tx| {
                let group = load::groups(tx)?
                    .into_iter()
                    .find(|group| group.alias == alias)
                    .ok_or(StoreError::NotFound {
                        what: "admin group",
                    })?;
                let Some(changed) = lifecycle::set_group_state(&group, state, now) else {
                    return Ok(group);
                };
                apply::group(tx, &changed)?;
                apply::audit(tx, tx.instance, vec![audit], None)?;
                Ok(changed)
            })
            .await
    }
}
