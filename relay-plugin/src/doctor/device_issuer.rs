//! Who issues devices' secret_ids: that Vault can be used with our token, and that the token can do what is needed and nothing more.

use std::collections::BTreeSet;

use keyturn_store::store::Store;

use super::{Report, Subject, files};
use crate::config::{IssuerKind, VaultLogin, VaultSection};
use crate::devices::issuer::choose::settings;
use crate::devices::issuer::vault::{VaultReport, examine};
use crate::devices::issuer::{Reason, RoleName};

const CHECK: &str = "devices";
const POLICY: &str = "give its policy exactly what docs/device-issuer/vault-policy.hcl grants";

/// Devices read at once.
const PAGE: usize = 500;

pub(super) async fn check(subject: Subject<'_>, store: Option<&dyn Store>, report: &mut Report) {
    match &subject.config.device_issuer.kind {
        IssuerKind::None => {}
        IssuerKind::Embedded { .. } => {
            report.ok(CHECK, "secret_ids are issued by the store itself")
        }
        IssuerKind::Vault(section) => {
            let roles = match store {
                Some(store) => roles_of_devices(store, report).await,
                None => Vec::new(),
            };
            vault(section, &roles, report).await;
        }
    }
}

/// The roles that devices have, each once.
async fn roles_of_devices(store: &dyn Store, report: &mut Report) -> Vec<RoleName> {
    let mut roles = BTreeSet::new();
    let mut after = None;
    loop {
        let page = match store.devices(after.as_ref(), PAGE).await {
            Ok(page) => page,
            Err(error) => {
                report.fail(
                    CHECK,
                    format!("the devices cannot be read: {error}"),
                    "see what is said about the store",
                );
                break;
            }
        };
        for device in &page {
            match device.role.parse() {
                Ok(role) => drop(roles.insert(role)),
                Err(_) => report.fail(
                    CHECK,
                    format!(
                        "{} has a role that cannot be one: {:?}",
                        device.device_id, device.role
                    ),
                    "give it a role of letters, digits, _, - and .",
                ),
            }
        }
        match page.last() {
            Some(last) if page.len() == PAGE => after = Some(last.device_id.clone()),
            _ => break,
        }
    }
    if roles.is_empty() {
        report.warn(
            CHECK,
            "no device is registered, so no role was looked at",
            "register one, then look again",
        );
    }
    roles.into_iter().collect()
}

async fn vault(section: &VaultSection, roles: &[RoleName], report: &mut Report) {
    // No instance's: a look issues nothing.
    let found = match examine(settings(section, "keyturn-doctor"), roles).await {
        Ok(found) => found,
        Err(error) => {
            return report.fail(
                CHECK,
                error.to_string(),
                "put the CA that signed Vault's certificate into devices.issuer.ca_file, as PEM",
            );
        }
    };
    server(section, &found, report);
    if token(section, &found, report) {
        self::roles(section, &found, report);
        capabilities(&found, report);
    }
}

fn server(section: &VaultSection, found: &VaultReport, report: &mut Report) {
    match found.server {
        Ok(()) => report.ok(CHECK, format!("{} serves", section.address)),
        Err(Reason::Sealed) => {
            report.fail(
                CHECK,
                format!("{} is sealed", section.address),
                "vault operator unseal",
            );
        }
        Err(why) => report.fail(
            CHECK,
            format!("{}: {why}", section.address),
            format!(
                "see what this machine gets: curl -sS --max-time {} {}/v1/sys/health",
                section.timeout.as_secs().max(1),
                section.address
            ),
        ),
    }
}

/// Whether there is a token to go on with.
fn token(section: &VaultSection, found: &VaultReport, report: &mut Report) -> bool {
    let (key, file) = match &section.auth {
        VaultLogin::Token(secret) => ("devices.issuer.token", secret.path()),
        VaultLogin::AppRole { secret_id, .. } => ("devices.issuer.own_secret_id", secret_id.path()),
    };
    let place = file.map_or_else(|| key.to_owned(), |path| files::quoted(path).to_string());
    let own = match &found.token {
        Ok(own) => own,
        Err(why) => {
            report.fail(
                CHECK,
                format!("our token is of no use: {why}"),
                format!("put a valid credential into {place}"),
            );
            return false;
        }
    };
    let left = own.ttl.map_or_else(
        || "for ever".to_owned(),
        |ttl| format!("for another {}", humantime::format_duration(ttl)),
    );
    report.ok(CHECK, format!("our token is good {left}"));
    if own.root {
        report.fail(
            CHECK,
            "our token is a root token: whoever reads it owns Vault",
            "vault policy write keyturn-issuer docs/device-issuer/vault-policy.hcl && vault token create -policy=keyturn-issuer -period=24h",
        );
    }
    let own_login = matches!(section.auth, VaultLogin::AppRole { .. });
    if !own.renewable && own.ttl.is_some() && !own_login {
        report.warn(
            CHECK,
            "our token cannot be renewed; when it ends, devices get no secret_ids",
            format!("make it periodic (vault token create -policy=keyturn-issuer -period=24h) and put it into {place}"),
        );
    }
    true
}

fn roles(section: &VaultSection, found: &VaultReport, report: &mut Report) {
    for (role, state) in &found.roles {
        match state {
            Ok(()) => report.ok(CHECK, format!("the role {role} is there")),
            Err(Reason::UnknownRole) => report.fail(
                CHECK,
                format!("there is no role {role} at auth/{}", section.mount),
                format!(
                    "vault write auth/{}/role/{role} token_policies=… token_ttl=20m secret_id_ttl=12h",
                    section.mount
                ),
            ),
            Err(why) => report.fail(CHECK, format!("the role {role} cannot be read: {why}"), POLICY),
        }
    }
}

fn capabilities(found: &VaultReport, report: &mut Report) {
    match &found.missing {
        Err(why) => report.warn(
            CHECK,
            format!("Vault does not say what our token may do: {why}"),
            "allow update on sys/capabilities-self, or compare the policy by hand",
        ),
        Ok(missing) => {
            for (path, capability) in missing {
                report.fail(
                    CHECK,
                    format!("our token may not {capability} {path}"),
                    POLICY,
                );
            }
            for (path, granted) in &found.excess {
                report.warn(
                    CHECK,
                    format!("our token may do more than it needs: {granted} on {path}"),
                    POLICY,
                );
            }
            if missing.is_empty() && found.excess.is_empty() {
                report.ok(CHECK, "our token may do what is needed and nothing more");
            }
        }
    }
}
