//! What the operator has registered: groups, admins, clients, and whether they fit together.

use std::collections::BTreeSet;

use keyturn_store::{
    documents::{ClientDoc, ClientStatus, GroupState},
    store::{Store, StoreError},
};

use super::{Report, Subject};

const CHECK: &str = "registry";
/// Clients read at once.
const PAGE: usize = 1_000;
/// Names in one finding.
const NAMED: usize = 5;

pub(super) async fn check(subject: Subject<'_>, store: &dyn Store, report: &mut Report) {
    if let Err(error) = look(subject, store, report).await {
        report.fail(
            CHECK,
            format!("it cannot be read: {error}"),
            "see the findings about the store",
        );
    }
}

async fn look(
    subject: Subject<'_>,
    store: &dyn Store,
    report: &mut Report,
) -> Result<(), StoreError> {
    let before = report.findings.len();
    let groups = store.groups().await?;
    let admins = store.admins().await?;
    let clients = clients(store).await?;
    if groups.is_empty() {
        report.warn(
            CHECK,
            "no admin group is bound",
            subject.command("group bind ALIAS --welcomer NPUB"),
        );
    }
    if !admins.iter().any(|admin| admin.active) {
        report.warn(
            CHECK,
            "no admin is enrolled",
            subject.command("admin enroll NPUB"),
        );
    }
    if clients.is_empty() {
        report.warn(
            CHECK,
            "no client is registered",
            subject.command("client add CLIENT_ID --group ALIAS"),
        );
    }
    for group in &groups {
        let alias = &group.alias;
        if let GroupState::Suspended { reason } = &group.status {
            report.warn(
                CHECK,
                format!("group {alias} is suspended ({reason}): nothing is sealed in it"),
                format!(
                    "look at its members (keyturn-admin group members), then {}",
                    subject.command(&format!("group approve {alias}"))
                ),
            );
        }
        let welcomed = |npub| {
            admins
                .iter()
                .any(|admin| admin.active && admin.npub == npub)
        };
        if !group.welcomers.iter().copied().any(welcomed) {
            report.warn(
                CHECK,
                format!("no welcomer of group {alias} is an enrolled admin"),
                subject.command("admin enroll NPUB"),
            );
        }
    }
    for admin in &admins {
        let until = admin.totp.as_ref().and_then(|totp| totp.locked_until);
        if let Some(until) = until.filter(|until| *until > subject.now) {
            let left = humantime::format_duration(std::time::Duration::from_secs(
                until.since(subject.now).as_secs(),
            ));
            report.warn(
                CHECK,
                format!("{} is locked out for {left} after wrong codes", admin.npub),
                format!(
                    "wait, or give a new seed: {}",
                    subject.command(&format!("admin enroll {} --new-seed", admin.npub))
                ),
            );
        }
    }
    let known: BTreeSet<&str> = groups.iter().map(|group| group.alias.as_str()).collect();
    let lost: Vec<&ClientDoc> = clients
        .iter()
        .filter(|client| client.status != ClientStatus::Revoked)
        .filter(|client| {
            !client
                .admin_groups
                .iter()
                .all(|alias| known.contains(alias.as_str()))
        })
        .collect();
    if !lost.is_empty() {
        report.fail(
            CHECK,
            format!("clients whose admin group is not bound: {}", names(&lost)),
            subject.command("group bind ALIAS --welcomer NPUB"),
        );
    }
    if report.clean_since(before) {
        report.ok(
            CHECK,
            format!(
                "{} groups, {} admins, {} clients",
                groups.len(),
                admins.len(),
                clients.len()
            ),
        );
    }
    Ok(())
}

/// Every client.
pub(super) async fn clients(store: &dyn Store) -> Result<Vec<ClientDoc>, StoreError> {
    let mut all: Vec<ClientDoc> = Vec::new();
    loop {
        let after = all.last().map(|client| client.client_id.clone());
        let page = store.clients(after.as_ref(), PAGE).await?;
        let last = page.len() < PAGE;
        all.extend(page);
        if last {
            return Ok(all);
        }
    }
}

/// The first few by name.
pub(super) fn names(clients: &[&ClientDoc]) -> String {
    let named = clients
        .iter()
        .take(NAMED)
        .map(|client| client.client_id.as_str());
    let named = named.collect::<Vec<_>>().join(", ");
    match clients.len().saturating_sub(NAMED) {
        0 => named,
        more => format!("{named} and {more} more"),
    }
}
