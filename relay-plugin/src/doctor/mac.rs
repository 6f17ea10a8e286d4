//! The MAC key: its file, a round trip with a throw-away secret, and whether it is the one that the living versions were hashed with.

use std::collections::BTreeMap;

use keyturn_proto::{ClientId, Secret, VersionId};
use keyturn_store::{
    documents::ClientDoc,
    mac::{KeyFileError, LocalMacKey, MacError, MacKey, SecretHash},
    sqlite::SqliteStore,
};

use super::{Report, Subject, files, registry};
use crate::config::Mac;

const CHECK: &str = "mac";

pub(super) async fn check(subject: Subject<'_>, store: Option<&SqliteStore>, report: &mut Report) {
    let Mac::Local { key_file } = &subject.config.mac;
    let clients = match store {
        Some(store) => registry::clients(store).await.unwrap_or_default(),
        None => Vec::new(),
    };
    let used = clients.iter().any(|client| !client.snapshot.is_empty());
    let key = match LocalMacKey::open(&[key_file]) {
        Ok(key) => key,
        Err(error) => return unusable(&error, used, report),
    };
    match round_trip(subject, &key).await {
        Ok(true) => report.ok(CHECK, format!("{} signs and verifies", key.primary_ref())),
        Ok(false) => report.fail(CHECK, "the key does not verify what it signed", REPLACE),
        Err(error) => report.fail(CHECK, format!("it cannot sign: {error}"), REPLACE),
    }
    available(&key, &clients, report).await;
}

const REPLACE: &str = "restore the key file from its backup (docs/operations.md, \"Lost keys\")";

async fn round_trip(subject: Subject<'_>, key: &LocalMacKey) -> Result<bool, Failed> {
    let client: ClientId = "keyturn-doctor".parse().map_err(|_| Failed::Random)?;
    let version = VersionId::generate(subject.now).map_err(|_| Failed::Random)?;
    let secret = Secret::generate().map_err(|_| Failed::Random)?;
    let maced = key.sign(&client, &version, secret.expose()).await?;
    let verified = key
        .verify(
            &maced.key_ref,
            &client,
            &version,
            secret.expose(),
            &maced.hash,
        )
        .await?;
    Ok(verified)
}

#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error("the random generator failed")]
    Random,
    #[error(transparent)]
    Mac(#[from] MacError),
}

/// Every key that a living version was hashed with must be here: without it that secret is refused.
async fn available(key: &LocalMacKey, clients: &[ClientDoc], report: &mut Report) {
    let mut by_key: BTreeMap<&str, Vec<&ClientDoc>> = BTreeMap::new();
    for client in clients {
        for living in &client.snapshot {
            let of_key = by_key.entry(living.mac_key_ref.as_str()).or_default();
            if of_key
                .last()
                .is_none_or(|last| last.client_id != client.client_id)
            {
                of_key.push(client);
            }
        }
    }
    let count = by_key.len();
    let mut missing = false;
    for (key_ref, clients) in by_key {
        if holds(key, key_ref).await {
            continue;
        }
        missing = true;
        report.fail(
            CHECK,
            format!(
                "the key {key_ref} is not here, and secrets of {} clients cannot be verified without it: {}",
                clients.len(),
                registry::names(&clients)
            ),
            REPLACE,
        );
    }
    if count > 0 && !missing {
        report.ok(CHECK, "every living version was hashed with it");
    }
}

/// Asks for a verification that cannot succeed: only whether the key is known matters.
async fn holds(key: &LocalMacKey, key_ref: &str) -> bool {
    let (Ok(client), Ok(version)) = ("keyturn-doctor".parse(), "0".repeat(26).parse()) else {
        return false;
    };
    let hash = SecretHash::from_mac(&[0; 32]);
    key.verify(key_ref, &client, &version, "", &hash)
        .await
        .is_ok()
}

fn unusable(error: &KeyFileError, used: bool, report: &mut Report) {
    let mend = match error {
        KeyFileError::Mode { path, .. } => {
            format!("{}, and consider the key known", files::chmod_600(path))
        }
        KeyFileError::Io { .. } | KeyFileError::Content { .. } if used => REPLACE.to_owned(),
        KeyFileError::Io { path, cause, .. } if cause.kind() == std::io::ErrorKind::NotFound => {
            format!("(umask 077; openssl rand 32 > {})", files::quoted(path))
        }
        KeyFileError::Io { .. } => "let the service's user read it".to_owned(),
        KeyFileError::Content { path } => {
            format!("(umask 077; openssl rand 32 > {})", files::quoted(path))
        }
        KeyFileError::None | KeyFileError::Random => "set mac.key_file".to_owned(),
    };
    report.fail(CHECK, error.to_string(), mend);
}
