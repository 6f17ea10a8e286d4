//! Destroying by accessor, and finding what was issued for an intent.

use std::collections::HashSet;

use futures::{StreamExt as _, TryStreamExt as _};
use keyturn_proto::VersionId;
use reqwest::Method;

use super::client::Client;
use super::transport::{Call, Failure, LIST};
use super::wire::{self, AccessorBody, AccessorList, DEVICE_KEY, NONCE_KEY, SecretIdProperties};
use crate::devices::issuer::{Accessor, Destroyed, Found, Intent, Reason, RoleName};

/// Look-ups under way in one pass; they leave room for devices.
const LOOKUPS: usize = 4;

impl Client {
    /// Servers differ in how they say that an accessor is gone (404, 403, or a plain 500 whose text names it), so after any refusal the accessor is looked up.
    pub(super) async fn destroy(
        &self,
        role: &RoleName,
        accessor: &Accessor,
    ) -> Result<Destroyed, Failure> {
        // Vault would only say that it does not know it, as of one that is gone.
        if accessor.as_str().parse::<VersionId>().is_ok() {
            return Err(Failure::permanent(Reason::AnotherIssuer));
        }
        let body = wire::body(&AccessorBody {
            secret_id_accessor: accessor.as_str(),
        })?;
        let call = Call::post(self.role_path(role, "secret-id-accessor/destroy"), body);
        let refused = match self.call("destroy", &call).await {
            Ok(answer) => match answer.failure() {
                None => return Ok(Destroyed::Now),
                Some(failure) => failure,
            },
            Err(failure) => failure,
        };
        let telling = matches!(
            refused.why,
            Reason::UnknownRole | Reason::Denied | Reason::Rejected | Reason::ServerError
        );
        if telling && self.properties(role, accessor).await?.is_none() {
            // Where there is no such role, or no such mount, nobody has looked for the accessor.
            self.role_id(role).await?;
            return Ok(Destroyed::AlreadyGone);
        }
        Err(refused)
    }

    /// The role's secret_ids that were issued for one of `intents`.
    pub(super) async fn find(
        &self,
        role: &RoleName,
        intents: &[Intent],
        known: &[Accessor],
    ) -> Result<Vec<Found>, Failure> {
        if intents.is_empty() {
            return Ok(Vec::new());
        }
        let wanted: HashSet<&Intent> = intents.iter().collect();
        let known: HashSet<&Accessor> = known.iter().collect();
        let unknown = self.list(role).await?;
        let unknown = unknown.into_iter().filter(|found| !known.contains(found));
        let found: Vec<Option<Found>> = futures::stream::iter(unknown)
            .map(|accessor| async {
                let intent = self.intent_of(role, &accessor).await?;
                let intent = intent.filter(|intent| wanted.contains(intent));
                Ok::<_, Failure>(intent.map(|intent| Found { intent, accessor }))
            })
            .buffer_unordered(LOOKUPS)
            .try_collect()
            .await?;
        Ok(found.into_iter().flatten().collect())
    }

    async fn list(&self, role: &RoleName) -> Result<Vec<Accessor>, Failure> {
        let method = Method::from_bytes(b"LIST").map_err(|_| Failure::garbled())?;
        let call = Call {
            method,
            limit: LIST,
            ..Call::get(self.role_path(role, "secret-id"))
        };
        let answer = self.call("list", &call).await?;
        // An empty list, but just as well a role, a mount or a namespace that is not there. Only of a role that is there it says that there is nothing.
        if answer.status.as_u16() == 404 {
            self.read_role_id(role).await?;
            return Ok(Vec::new());
        }
        let AccessorList { keys } = wire::data(&answer.good()?)?;
        keys.iter()
            .map(|key| key.parse().map_err(|_| Failure::garbled()))
            .collect()
    }

    async fn intent_of(
        &self,
        role: &RoleName,
        accessor: &Accessor,
    ) -> Result<Option<Intent>, Failure> {
        let properties = self.properties(role, accessor).await?;
        let metadata = properties.and_then(|found| found.metadata);
        // Somebody else's secret_id may have any metadata, or none.
        Ok(metadata.and_then(|mut all| {
            Some(Intent {
                nonce: all.get(NONCE_KEY)?.parse().ok()?,
                device: all.remove(DEVICE_KEY)?,
            })
        }))
    }

    /// `None` when it is gone.
    async fn properties(
        &self,
        role: &RoleName,
        accessor: &Accessor,
    ) -> Result<Option<SecretIdProperties>, Failure> {
        let body = wire::body(&AccessorBody {
            secret_id_accessor: accessor.as_str(),
        })?;
        let call = Call::post(self.role_path(role, "secret-id-accessor/lookup"), body);
        let answer = self.call("lookup", &call).await?;
        match answer.status.as_u16() {
            // No content: the accessor is there, its secret_id is not.
            204 | 404 => Ok(None),
            _ => wire::data(&answer.good()?).map(Some),
        }
    }
}
