//! The MAC key: whether it signs and verifies, and which keys the living versions were hashed with.
//!
//! What must always hold: a key is called unused only when every client could be read.

use std::collections::BTreeMap;

use keyturn_store::{
    documents::ClientDoc,
    mac::{
        KeyFileError, LocalMacKey, MacError, MacKey as _,
        probe::{can_verify, probe},
    },
    store::Store,
};

use super::{Report, Subject, files, kms, registry};
use crate::mac::Opened;

pub(super) const CHECK: &str = "mac";

/// How the living versions of all clients were hashed, by `mac_key_ref`.
pub(super) type Usage<'a> = BTreeMap<&'a str, Used<'a>>;

/// What one key hashed.
#[derive(Default)]
pub(super) struct Used<'a> {
    versions: usize,
    pub(super) clients: Vec<&'a ClientDoc>,
}

pub(super) async fn check(subject: Subject<'_>, store: Option<&dyn Store>, report: &mut Report) {
    let clients = match store {
        Some(store) => registry::clients(store).await.ok(),
        None => None,
    };
    let usage = clients.as_deref().map(usage);
    let used = usage.as_ref().is_some_and(|usage| !usage.is_empty());
    let opened = match Opened::open(&subject.config.mac) {
        Ok(opened) => opened,
        Err(error) => return unusable(&error, used, report),
    };
    match &opened {
        Opened::Local(key) => {
            match probe(key.as_ref(), subject.now).await {
                Ok(()) => report.ok(CHECK, format!("{} signs and verifies", key.primary_ref())),
                Err(error) => report.fail(CHECK, error.to_string(), REPLACE),
            }
            files_in_use(key, usage.as_ref(), report);
        }
        Opened::CloudKms { service, files } => {
            match probe(service.as_ref(), subject.now).await {
                Ok(()) => report.ok(
                    CHECK,
                    format!("{} signs and verifies", service.primary_ref()),
                ),
                Err(error) => report.fail(
                    CHECK,
                    format!("{}: {error}", service.primary_ref()),
                    kms::mend_probe(&error, service),
                ),
            }
            kms::versions(service, usage.as_ref(), report).await;
            if let Some(files) = files {
                files_in_use(files, usage.as_ref(), report);
            }
        }
    }
    match &usage {
        Some(usage) => available(&opened, usage, report).await,
        None => report.warn(
            CHECK,
            "which keys are still in use is not known: the clients could not be read",
            "see the findings about the store, and destroy no key until then",
        ),
    }
}

const REPLACE: &str = "restore the key file from its backup (docs/operations.md, \"Lost keys\")";

fn usage(clients: &[ClientDoc]) -> Usage<'_> {
    let mut usage = Usage::new();
    for client in clients {
        for living in &client.snapshot {
            let used = usage.entry(living.mac_key_ref.as_str()).or_default();
            used.versions += 1;
            if used
                .clients
                .last()
                .is_none_or(|last| last.client_id != client.client_id)
            {
                used.clients.push(client);
            }
        }
    }
    usage
}

impl Used<'_> {
    pub(super) fn counts(&self) -> String {
        format!(
            "{} living versions of {} clients",
            self.versions,
            self.clients.len()
        )
    }
}

/// Every key that a living version was hashed with must verify now: without it that secret is refused.
async fn available(opened: &Opened, usage: &Usage<'_>, report: &mut Report) {
    let key = opened.key();
    let mut broken = false;
    for (key_ref, used) in usage {
        let Err(error) = can_verify(key.as_ref(), key_ref).await else {
            continue;
        };
        broken = true;
        let (count, names) = (used.clients.len(), registry::names(&used.clients));
        let what = match &error {
            MacError::UnknownKey(_) => format!(
                "the key {key_ref} is not here, and secrets of {count} clients cannot be verified without it: {names}"
            ),
            error => format!(
                "secrets of {count} clients cannot be verified under {key_ref}: {error}: {names}"
            ),
        };
        let mend = match opened {
            Opened::CloudKms { service, .. } => kms::mend_verify(&error, service),
            Opened::Local(_) if key_ref.starts_with("projects/") => {
                "set mac.kind = \"cloud_kms\" again; this program verifies under a key of Cloud KMS only then"
                    .to_owned()
            }
            Opened::Local(_) => REPLACE.to_owned(),
        };
        report.fail(CHECK, what, mend);
    }
    if !usage.is_empty() && !broken {
        report.ok(CHECK, "every living version can be verified");
    }
}

/// Which of the key files are still needed. Nothing is said while that is not known.
fn files_in_use(key: &LocalMacKey, usage: Option<&Usage<'_>>, report: &mut Report) {
    // A store without any secret is more likely a new or the wrong one than a reason to destroy something.
    let Some(usage) = usage.filter(|usage| !usage.is_empty()) else {
        return;
    };
    for key_ref in key.key_refs() {
        match usage.get(key_ref) {
            Some(used) => report.ok(CHECK, format!("{key_ref} hashed {}", used.counts())),
            None if key_ref == key.primary_ref() => {}
            None => report.ok(
                CHECK,
                format!(
                    "{key_ref} is used by no living version any more: its file may go from mac.previous_key_files, and be destroyed"
                ),
            ),
        }
    }
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
