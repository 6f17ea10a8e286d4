//! The documented HTTP API, as much of it as is used here. Fields that are not needed are not looked at, so that other versions and other servers of the same
//! interface are understood. What may hold a secret has no `Debug` and is wiped on drop.

use std::collections::HashMap;

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use zeroize::Zeroizing;

use super::transport::{Answer, Failure};
use crate::devices::issuer::Reason;

/// The envelope of every answer.
#[derive(Deserialize)]
pub(super) struct Envelope<T> {
    pub(super) data: Option<T>,
    pub(super) auth: Option<Auth>,
    pub(super) wrap_info: Option<WrapInfo>,
}

/// A login, or a renewal.
#[derive(Deserialize)]
pub(super) struct Auth {
    #[serde(default)]
    pub(super) client_token: Option<Zeroizing<String>>,
    #[serde(default)]
    pub(super) lease_duration: u64,
    #[serde(default)]
    pub(super) renewable: bool,
}

/// What a wrapped answer is replaced with.
#[derive(Deserialize)]
pub(super) struct WrapInfo {
    pub(super) token: Zeroizing<String>,
    #[serde(default)]
    pub(super) ttl: u64,
    #[serde(default)]
    pub(super) creation_path: Option<String>,
    /// Of the wrapped secret_id. Since Vault 1.9; older servers leave it out.
    #[serde(default)]
    pub(super) wrapped_accessor: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct RoleId {
    pub(super) role_id: String,
}

#[derive(Deserialize)]
pub(super) struct SecretId {
    pub(super) secret_id: Zeroizing<String>,
    pub(super) secret_id_accessor: String,
    #[serde(default)]
    pub(super) secret_id_ttl: Option<u64>,
    #[serde(default)]
    pub(super) secret_id_num_uses: Option<u32>,
}

#[derive(Deserialize)]
pub(super) struct AccessorList {
    #[serde(default)]
    pub(super) keys: Vec<String>,
}

#[derive(Deserialize)]
pub(super) struct SecretIdProperties {
    #[serde(default)]
    pub(super) metadata: Option<HashMap<String, String>>,
}

/// `auth/token/lookup-self`.
#[derive(Deserialize)]
pub(super) struct TokenProperties {
    /// Seconds left; 0 for a token that never expires.
    #[serde(default)]
    pub(super) ttl: u64,
    #[serde(default)]
    pub(super) renewable: bool,
    #[serde(default)]
    pub(super) policies: Vec<String>,
}

#[derive(Deserialize)]
pub(super) struct SealStatus {
    pub(super) sealed: bool,
}

/// An answer that is no answer to what was asked: errors, or the seal status in their place.
#[derive(Deserialize)]
struct Refusal {
    #[serde(default)]
    errors: Vec<String>,
    /// RustyVault's.
    #[serde(default)]
    error: String,
    #[serde(default)]
    sealed: bool,
}

/// Whether the server itself says that it is sealed, or not even initialised.
pub(super) fn is_sealed(body: &[u8]) -> bool {
    let Ok(refusal) = serde_json::from_slice::<Refusal>(body) else {
        return false;
    };
    let mut errors = refusal.errors.iter().chain([&refusal.error]);
    refusal.sealed || errors.any(|error| error.contains("is sealed"))
}

/// `auth/<mount>/role/<role>/secret-id`.
#[derive(Serialize)]
pub(super) struct IssueBody<'a> {
    /// Seconds.
    pub(super) ttl: u64,
    /// Left out for "as the role says": a role that limits uses refuses 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) num_uses: Option<u32>,
    /// A JSON object of strings, as text.
    pub(super) metadata: &'a str,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    pub(super) cidr_list: &'a [String],
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    pub(super) token_bound_cidrs: &'a [String],
}

/// The metadata of what we issue.
#[derive(Serialize)]
pub(super) struct Metadata<'a> {
    pub(super) device: &'a str,
    pub(super) nonce_sha256: &'a str,
    pub(super) issued_by: &'a str,
}

/// The keys of [`Metadata::device`] and [`Metadata::nonce_sha256`] when they are read back.
pub(super) const DEVICE_KEY: &str = "device";
pub(super) const NONCE_KEY: &str = "nonce_sha256";

#[derive(Serialize)]
pub(super) struct AccessorBody<'a> {
    pub(super) secret_id_accessor: &'a str,
}

#[derive(Serialize)]
pub(super) struct LoginBody<'a> {
    pub(super) role_id: &'a str,
    pub(super) secret_id: &'a str,
}

#[derive(Serialize)]
pub(super) struct PathsBody<'a> {
    pub(super) paths: &'a [String],
}

#[derive(Serialize)]
pub(super) struct Empty {}

/// Reads an answer's body. serde's own message can quote the body, so only the fact goes on.
pub(super) fn envelope<T: DeserializeOwned>(answer: &Answer) -> Result<Envelope<T>, Failure> {
    serde_json::from_slice(&answer.body).map_err(|_| Failure::garbled())
}

/// The `data` of an answer.
pub(super) fn data<T: DeserializeOwned>(answer: &Answer) -> Result<T, Failure> {
    envelope(answer)?.data.ok_or_else(Failure::garbled)
}

/// `sys/capabilities-self`: capabilities by path, documented at the top of the answer, and by newer servers in its `data` as well.
pub(super) fn capabilities(answer: &Answer) -> Result<HashMap<String, Vec<String>>, Failure> {
    let whole: HashMap<String, serde_json::Value> =
        serde_json::from_slice(&answer.body).map_err(|_| Failure::garbled())?;
    let paths = match whole.get("data").and_then(serde_json::Value::as_object) {
        Some(data) => data.clone().into_iter().collect(),
        None => whole,
    };
    let lists = paths.into_iter().filter_map(|(path, list)| {
        let list = serde_json::from_value(list).ok()?;
        Some((path, list))
    });
    Ok(lists.collect())
}

/// Writes a body into a buffer that is wiped and never grows, so that no copy of a secret stays behind.
pub(super) fn body<T: Serialize>(value: &T) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let mut length = Counter(0);
    let failed = |_| Failure::permanent(Reason::Rejected);
    serde_json::to_writer(&mut length, value).map_err(failed)?;
    let mut buffer = Zeroizing::new(Vec::with_capacity(length.0));
    serde_json::to_writer(&mut *buffer, value).map_err(failed)?;
    Ok(buffer)
}

/// Counts what is written.
struct Counter(usize);

impl std::io::Write for Counter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
