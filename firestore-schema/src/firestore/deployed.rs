//! Whether what is deployed beside the documents is there: the indexes; and whether something that should keep the nonces few does. For `keyturn doctor`.

use firestore::gcloud_sdk::google::firestore::v1::{RunQueryRequest, run_query_request};
use firestore::gcloud_sdk::tonic::Code;
use keyturn_proto::UnixMs;

use super::audit;
use super::open::FirestoreStore;
use super::probe::{ProbeError, refused};
use super::query::Ask;
use super::stored::Document;
use super::turn::Turn;
use crate::documents::{AdminDoc, AdminGroupDoc, LeaseDoc, OutboxDoc, RotationDoc, VersionDoc};
use crate::queries::{self, Query, relay};
use crate::store::{Result as StoreResult, Stored};

impl FirestoreStore {
    /// The catalogue's queries, the auditors' included, that the database does not serve: their indexes are missing, or still being built. Reads at most one
    /// document for each.
    ///
    /// # Errors
    /// [`ProbeError`], when that cannot be found out.
    pub async fn unserved(&self) -> Result<Vec<&'static Query>, ProbeError> {
        let mut unserved = Vec::new();
        for query in queries::all() {
            if !self.serves(query).await? {
                unserved.push(query);
            }
        }
        Ok(unserved)
    }

    async fn serves(&self, query: &'static Query) -> Result<bool, ProbeError> {
        let link = self.link();
        let not_asked = ProbeError::Refused {
            step: "query",
            code: "the catalogue has no example for it",
        };
        let ask = Ask::example(query, link.documents()).map_err(|_| not_asked)?;
        let structured = run_query_request::QueryType::StructuredQuery(ask.page(1, None));
        let parent = ask.parent.as_ref().map(|path| link.name(path));
        let message = RunQueryRequest {
            parent: parent.unwrap_or_else(|| link.documents().to_owned()),
            query_type: Some(structured),
            ..RunQueryRequest::default()
        };
        let answer = link.attempt(
            "query",
            self.soon(),
            message,
            |mut client, request| async move {
                let mut stream = client.run_query(request).await?.into_inner();
                while stream.message().await?.is_some() {}
                Ok(())
            },
        );
        match answer.await {
            Ok(()) => Ok(true),
            Err(status) if status.code() == Code::FailedPrecondition => Ok(false),
            Err(status) if status.code() == Code::PermissionDenied => Err(ProbeError::MayNotRead),
            Err(status) => Err(refused("query", &status)),
        }
    }

    /// Whether there is a nonce that expired before `then`: neither a relay nor the TTL policy has deleted it.
    ///
    /// # Errors
    /// The store's.
    pub async fn has_nonces_from_before(&self, then: UnixMs) -> StoreResult<bool> {
        let turn = self.to_read("nonces_left");
        let ask = Ask::new(&relay::NONCES_EXPIRED)
            .time(then)
            .only("expires_at")
            .limit(1);
        Ok(!turn.read().raw(&ask).await?.is_empty())
    }

    /// Kinds of documents that a relay goes through and of which some do not read as what they are, and how many of each: admins, groups, leases, rotations under
    /// way, and at most `limit` of whatever is due next.
    ///
    /// # Errors
    /// The store's.
    pub async fn damaged(&self, limit: usize) -> StoreResult<Vec<(&'static str, usize)>> {
        let turn = self.to_read("damaged");
        let mut damaged = Vec::new();
        let mut note = |what, found: usize| {
            if found > 0 {
                damaged.push((what, found));
            }
        };
        let all = |query| Ask::new(query);
        note(
            "admin",
            unreadable::<AdminDoc>(&turn, &all(&relay::ADMINS_ALL)).await?,
        );
        note(
            "admin group",
            unreadable::<AdminGroupDoc>(&turn, &all(&relay::GROUPS_ALL)).await?,
        );
        note(
            "lease",
            unreadable::<LeaseDoc>(&turn, &all(&relay::LEASES_ALL)).await?,
        );
        let active = all(&relay::ROTATIONS_ACTIVE);
        note(
            "rotation under way",
            unreadable::<RotationDoc>(&turn, &active).await?,
        );
        let next = |query| Ask::new(query).limit(limit);
        let due = next(&relay::ROTATIONS_NEXT);
        note(
            "rotation due",
            unreadable::<RotationDoc>(&turn, &due).await?,
        );
        let due = next(&relay::VERSIONS_NEXT);
        note("version due", unreadable::<VersionDoc>(&turn, &due).await?);
        let due = next(&relay::OUTBOX_NEXT);
        note(
            "outbox event due",
            unreadable::<OutboxDoc>(&turn, &due).await?,
        );
        Ok(damaged)
    }
}

async fn unreadable<T: Document>(turn: &Turn<'_>, ask: &Ask) -> StoreResult<usize> {
    let found: Vec<Stored<T>> = audit::found(turn, ask).await?;
    Ok(found.iter().filter(|stored| stored.doc.is_none()).count())
}
