//! Opening the database: which endpoint, whose credentials.
//!
//! What must always hold: nothing of the environment decides where documents go. The client crate would read `FIRESTORE_EMULATOR_HOST`; it is always given
//! an endpoint and credentials, so that it does not.

use std::sync::Arc;
use std::time::Duration;

use firestore::gcloud_sdk::google_cloud_auth::credentials::{
    Builder as DefaultCredentials, CacheableResource, Credentials, CredentialsProvider, EntityTag,
};
use firestore::gcloud_sdk::google_cloud_auth::errors::CredentialsError;
use firestore::gcloud_sdk::{GoogleAuthHeaders, HeaderMap};
use firestore::{FirestoreDb, FirestoreDbOptions};
use http::{Extensions, HeaderValue, header::AUTHORIZATION};

use super::call::Link;
use super::cost::{Cost, Counters};
use super::settings::FirestoreSettings;
use super::turn::{Places, Turn};
use crate::audit::{Instance, chain_of};
use crate::documents::AuditRecord;
use crate::store::Result;

/// Reading and writing documents, and nothing else of Google Cloud.
const SCOPE: &str = "https://www.googleapis.com/auth/datastore";

/// Why the database could not be opened. None of these texts holds a credential.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// No application-default credentials, or unusable ones.
    #[error(
        "no usable application-default credentials: attach a service account, or set GOOGLE_APPLICATION_CREDENTIALS"
    )]
    Credentials,
    /// Nothing answers at the endpoint.
    #[error("{endpoint} cannot be reached")]
    Unreachable {
        /// Where.
        endpoint: String,
    },
}

/// The Firestore backend. Clones share one connection.
#[derive(Clone)]
pub struct FirestoreStore {
    inner: Arc<Inner>,
}

struct Inner {
    link: Link,
    places: Places,
}

/// A connection of its own.
///
/// # Errors
/// [`OpenError`].
pub(super) async fn connect(
    settings: &FirestoreSettings,
) -> std::result::Result<FirestoreDb, OpenError> {
    let credentials = if settings.is_emulator() {
        Credentials::from(Sent::owner())
    } else {
        DefaultCredentials::default()
            .with_scopes([SCOPE])
            .build()
            .map_err(|_| OpenError::Credentials)?
    };
    connect_with(settings, credentials).await
}

/// As somebody else: with this credential, or with none at all.
///
/// # Errors
/// [`OpenError::Unreachable`].
pub(super) async fn connect_as(
    settings: &FirestoreSettings,
    authorization: Option<HeaderValue>,
) -> std::result::Result<FirestoreDb, OpenError> {
    connect_with(settings, Credentials::from(Sent::this(authorization))).await
}

async fn connect_with(
    settings: &FirestoreSettings,
    credentials: Credentials,
) -> std::result::Result<FirestoreDb, OpenError> {
    let endpoint = settings.endpoint().to_owned();
    let options = FirestoreDbOptions::new(settings.project.clone())
        .with_database_id(settings.database.clone())
        .with_firebase_api_url(endpoint.clone());
    let connecting = FirestoreDb::with_options_auth(options, GoogleAuthHeaders::from(credentials));
    match tokio::time::timeout(settings.timeout, connecting).await {
        Ok(Ok(db)) => Ok(db),
        // The crate's own text can repeat what it read of a credentials file.
        Ok(Err(_)) | Err(_) => Err(OpenError::Unreachable { endpoint }),
    }
}

impl FirestoreStore {
    /// Connects for the operator's commands and for whoever only reads.
    ///
    /// # Errors
    /// As [`Self::open_as`].
    pub async fn open(settings: FirestoreSettings) -> std::result::Result<Self, OpenError> {
        Self::open_as(settings, &Instance::operator()).await
    }

    /// Connects. Audit records that name no client go to the chain of `instance`. Whether the database exists, and what the account may do there, shows
    /// with the first call.
    ///
    /// # Errors
    /// [`OpenError`].
    pub async fn open_as(
        settings: FirestoreSettings,
        instance: &Instance,
    ) -> std::result::Result<Self, OpenError> {
        let db = connect(&settings).await?;
        Ok(Self {
            inner: Arc::new(Inner {
                link: Link {
                    db,
                    settings,
                    instance: instance.clone(),
                    counters: Counters::default(),
                },
                places: Places::new(),
            }),
        })
    }

    /// What this store and its clones have asked of Firestore so far.
    #[must_use]
    pub fn cost(&self) -> Cost {
        self.inner.link.counters.so_far()
    }

    /// Most time that a method takes.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        self.inner.link.settings.timeout
    }

    pub(super) fn link(&self) -> &Link {
        &self.inner.link
    }

    /// A method that only reads.
    pub(super) fn to_read(&self, op: &'static str) -> Turn<'_> {
        Turn::to_read(&self.inner.link, op)
    }

    /// A method that writes what belongs to `key`.
    pub(super) async fn to_write(&self, op: &'static str, key: &str) -> Result<Turn<'_>> {
        Turn::to_write(&self.inner.link, &self.inner.places, op, key).await
    }

    /// A method that writes this record: of all that it writes, the head of the record's chain is what most others write too.
    pub(super) async fn to_record(
        &self,
        op: &'static str,
        record: &AuditRecord,
    ) -> Result<Turn<'_>> {
        let chain = chain_of(record, &self.inner.link.instance).to_string();
        self.to_write(op, &chain).await
    }
}

/// Always the same. A credential in it is marked as sensitive, so that nothing prints it.
#[derive(Debug)]
struct Sent {
    tag: EntityTag,
    headers: HeaderMap,
}

impl Sent {
    /// What the Firebase tools send to the emulator: it stands above the rules, as a service account does in production.
    fn owner() -> Self {
        Self::this(Some(HeaderValue::from_static("Bearer owner")))
    }

    fn this(authorization: Option<HeaderValue>) -> Self {
        let header = authorization.map(|value| (AUTHORIZATION, value));
        Self {
            tag: EntityTag::default(),
            headers: HeaderMap::from_iter(header),
        }
    }
}

impl CredentialsProvider for Sent {
    async fn headers(
        &self,
        extensions: Extensions,
    ) -> std::result::Result<CacheableResource<HeaderMap>, CredentialsError> {
        if extensions.get::<EntityTag>() == Some(&self.tag) {
            return Ok(CacheableResource::NotModified);
        }
        Ok(CacheableResource::New {
            entity_tag: self.tag.clone(),
            data: self.headers.clone(),
        })
    }

    async fn universe_domain(&self) -> Option<String> {
        None
    }
}
