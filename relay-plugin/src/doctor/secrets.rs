//! The secrets that the configuration names: each can be had, and no two are the same. The MAC key has a check of its own.

use keyturn_mls::StorageKey;
use keyturn_proto::Npub;
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use super::{Report, Subject, config, files};
use crate::config::{ConfigError, SecretRef, Store};

const CHECK: &str = "secrets";

pub(super) fn check(subject: Subject<'_>, report: &mut Report) {
    let before = report.findings.len();
    let mut had: Vec<(&SecretRef, Zeroizing<Vec<u8>>)> = Vec::new();
    for secret in config::secrets(subject.config) {
        let value = match read(secret) {
            Ok(value) => value,
            Err(error) => {
                report.fail(CHECK, error.to_string(), mend(subject, secret));
                continue;
            }
        };
        let same = |(_, other): &&(&SecretRef, Zeroizing<Vec<u8>>)| bool::from(value.ct_eq(other));
        if let Some((other, _)) = had.iter().find(same) {
            report.fail(
                CHECK,
                format!("{} and {} are the same secret", other.key(), secret.key()),
                format!(
                    "make {} anew, from openssl rand -hex 32; what that costs: docs/operations.md, \"Lost keys\"",
                    secret.key()
                ),
            );
        }
        had.push((secret, value));
    }
    if report.clean_since(before) {
        report.ok(CHECK, "every secret can be read, by its owner only");
    }
    let nsec = subject.config.mls.nostr_secret_key.text().ok();
    if let Some(keys) = nsec.and_then(|nsec| nostr::Keys::parse(nsec.expose()).ok()) {
        let npub = Npub::from_bytes(keys.public_key().to_bytes());
        report.ok(CHECK, format!("the service is {npub}"));
    }
}

/// The secret's bytes, if it is what its key asks for; by the same readers that the start uses.
fn read(secret: &SecretRef) -> Result<Zeroizing<Vec<u8>>, ConfigError> {
    let wrong = |expected: &str| ConfigError::Secret {
        key: secret.key().to_owned(),
        reason: format!("expected {expected}"),
    };
    match secret.key() {
        // Neither parser's own error is shown: it could repeat what it was given.
        "mls.nostr_secret_key" => {
            let keys = nostr::Keys::parse(secret.text()?.expose())
                .map_err(|_| wrong("an nsec or 64 hex digits"))?;
            Ok(Zeroizing::new(keys.secret_key().as_secret_bytes().to_vec()))
        }
        "mls.storage_key" => {
            let text = secret.text()?;
            StorageKey::from_text(text.expose()).map_err(|_| wrong("64 hex digits"))?;
            Ok(match secret.key32() {
                Ok(key) => Zeroizing::new(key.expose().to_vec()),
                // Base64.
                Err(_) => Zeroizing::new(text.expose().as_bytes().to_vec()),
            })
        }
        _ => Ok(Zeroizing::new(secret.key32()?.expose().to_vec())),
    }
}

/// Whether something is encrypted under it, or known by it, that a new one would not open.
fn in_use(subject: Subject<'_>, secret: &SecretRef) -> bool {
    match secret.key() {
        // Challenges live for minutes.
        "admission.challenge_key" => false,
        "admission.totp_seed_key" => {
            match &subject.config.store {
                Store::Sqlite { path } => path.exists(),
                // Somebody else's relay may have made it what it is.
                Store::Firestore(_) => true,
            }
        }
        _ => subject.config.mls.database.exists(),
    }
}

fn mend(subject: Subject<'_>, secret: &SecretRef) -> String {
    let Some(path) = secret.path() else {
        return format!("give {}_file instead: a file of mode 0600", secret.key());
    };
    let path_word = files::quoted(path);
    match files::metadata(path) {
        Ok(Some(metadata)) if files::mode(&metadata) & 0o027 != 0 => {
            format!("{}, and consider the secret known", files::chmod_600(path))
        }
        Ok(Some(_)) if !in_use(subject, secret) => {
            format!("(umask 077; openssl rand -hex 32 > {path_word})")
        }
        _ if in_use(subject, secret) => format!(
            "restore it from its backup to {path_word}; if there is none: docs/operations.md, \"Lost keys\""
        ),
        _ => format!("(umask 077; openssl rand -hex 32 > {path_word})"),
    }
}
