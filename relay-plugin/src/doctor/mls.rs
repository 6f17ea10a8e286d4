//! The service member's database: opens with its key, and is in the groups that the registry binds.
//!
//! It belongs to one process: beside a running relay it is left alone, and the relay's own readiness has to do.

use keyturn_mls::{Freeze, GroupInfo, Member, MemberConfig, StorageKey, error::OpenError};
use keyturn_store::{documents::AdminGroupDoc, store::Store};
use tokio::task::spawn_blocking;

use super::{Report, Subject, files, ports::Running};

const CHECK: &str = "mls";
const LOST: &str = "docs/operations.md, \"Lost member database\": the service joins its groups again as a new leaf";

pub(super) async fn check(
    subject: Subject<'_>,
    store: Option<&dyn Store>,
    running: Running,
    report: &mut Report,
) {
    let mls = &subject.config.mls;
    let Some(metadata) =
        files::there_or_possible(CHECK, "the member database", &mls.database, report)
    else {
        return;
    };
    let mode = files::mode(&metadata);
    if mode & 0o077 != 0 {
        report.fail(
            CHECK,
            format!(
                "{} has mode {mode:04o}; it must be 0600",
                mls.database.display()
            ),
            files::chmod_600(&mls.database),
        );
    }
    if !files::ours(CHECK, &mls.database, &metadata, report) {
        return;
    }
    let Some(member) = member(subject) else {
        return report.warn(
            CHECK,
            "it was not opened, because one of its two keys cannot be had",
            "see the findings about secrets",
        );
    };
    // Opened and closed again at once: the relay cannot start meanwhile.
    let opened = spawn_blocking(move || {
        let member = Member::open(member)?;
        Ok::<_, OpenError>(member.groups()?)
    });
    match opened.await {
        Ok(Ok(groups)) => {
            report.ok(CHECK, "the database opens with its key");
            if let Some(store) = store {
                compare(subject, store, &groups, report).await;
            }
        }
        Ok(Err(OpenError::Locked { .. })) => locked(running, report),
        Ok(Err(error)) => report.fail(CHECK, error.to_string(), mend(&error)),
        Err(_) => report.fail(CHECK, "opening it ended with a panic", "report it"),
    }
}

/// The keys, if they can be had; why not is the finding of another check.
fn member(subject: Subject<'_>) -> Option<MemberConfig> {
    let mls = &subject.config.mls;
    let nsec = mls.nostr_secret_key.text().ok()?;
    let keys = nostr::Keys::parse(nsec.expose()).ok()?;
    let text = mls.storage_key.text().ok()?;
    let storage_key = StorageKey::from_text(text.expose()).ok()?;
    Some(MemberConfig {
        settle: mls.settle,
        ..MemberConfig::new(&mls.database, storage_key, keys)
    })
}

fn locked(running: Running, report: &mut Report) {
    match running {
        Running::Yes => report.ok(
            CHECK,
            "the running keyturn has the database open; stop it to look inside",
        ),
        Running::No => report.warn(
            CHECK,
            "another process has the database open, and no keyturn answers at web.listen",
            "see who it is: fuser -v on the file, or a keyturn with another web.listen",
        ),
    }
}

fn mend(error: &OpenError) -> String {
    match error {
        OpenError::WrongKey { .. } => format!(
            "put the key that made it back into mls.storage_key_file; if that is lost: {LOST}"
        ),
        OpenError::OtherIdentity { .. } => {
            "put the identity that made it back into mls.nostr_secret_key_file".to_owned()
        }
        OpenError::Schema { .. } => "install the keyturn that wrote it, or a newer one".to_owned(),
        OpenError::Io { .. } => "let the service's user read and write it".to_owned(),
        _ => LOST.to_owned(),
    }
}

async fn compare(
    subject: Subject<'_>,
    store: &dyn Store,
    joined: &[GroupInfo],
    report: &mut Report,
) {
    // What cannot be read is the registry's finding.
    let Ok(bound) = store.groups().await else {
        return;
    };
    let before = report.findings.len();
    for document in &bound {
        let group = joined
            .iter()
            .find(|group| document.mls_group_id.as_ref() == Some(&group.id));
        standing(document, group, report);
    }
    for group in joined.iter().filter(|group| !group.evicted) {
        let of_group = |document: &AdminGroupDoc| document.mls_group_id.as_ref() == Some(&group.id);
        if !bound.iter().any(of_group) {
            report.warn(
                CHECK,
                format!("member of group {}, which no alias is bound to", group.id),
                format!(
                    "nothing if another group has taken its place; else {}",
                    subject.command(&format!(
                        "group bind ALIAS --mls-group-id {} --welcomer NPUB",
                        group.id
                    ))
                ),
            );
        }
    }
    if report.clean_since(before) {
        report.ok(
            CHECK,
            format!(
                "member of all {} bound groups, none of them frozen",
                bound.len()
            ),
        );
    }
}

fn standing(document: &AdminGroupDoc, group: Option<&GroupInfo>, report: &mut Report) {
    let alias = &document.alias;
    let invite = "an admin who may welcome us invites the service: keyturn-admin group invite";
    match (group, &document.mls_group_id) {
        (None, None) => report.warn(CHECK, format!("group {alias} was not joined yet"), invite),
        (None, Some(_)) => report.fail(
            CHECK,
            format!("group {alias} is bound, and we are not in it: the member database was lost"),
            LOST,
        ),
        (Some(group), _) if group.evicted => {
            report.fail(CHECK, format!("we were removed from group {alias}"), invite)
        }
        (Some(group), _) => match group.frozen {
            Some(Freeze::Forked) => report.fail(
                CHECK,
                format!("group {alias} is frozen: its members follow a commit that we refused"),
                "docs/operations.md, \"Frozen group\"",
            ),
            Some(Freeze::AddressChanged) => report.fail(
                CHECK,
                format!("group {alias} is frozen: its nostr_group_id changed"),
                "docs/operations.md, \"Frozen group\"",
            ),
            None => {}
        },
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use keyturn_mls::{GroupSpec, UnixMs};
    use keyturn_store::documents::GroupState;

    use super::super::Level;
    use super::*;

    fn found(group: Option<&GroupInfo>, joined: bool) -> (Level, String) {
        let document = AdminGroupDoc {
            alias: "ops".to_owned(),
            mls_group_id: joined.then(|| keyturn_proto::MlsGroupId::from_bytes(b"group").unwrap()),
            nostr_group_id: None,
            welcomers: Vec::new(),
            status: GroupState::Active,
            updated_at: UnixMs(0),
        };
        let mut report = Report::default();
        standing(&document, group, &mut report);
        let found = report.findings.pop();
        found.map_or((Level::Ok, String::new()), |found| {
            (found.level, found.what)
        })
    }

    #[test]
    fn a_group_that_is_lost_left_or_frozen_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let key = StorageKey::generate().unwrap();
        let keys = nostr::Keys::generate();
        let path = dir.path().join("member.db");
        let mut member = Member::open(MemberConfig::new(&path, key, keys)).unwrap();
        let made = member
            .create_group(GroupSpec::default(), &[], UnixMs(1_800_000_000_000))
            .unwrap();
        let well = made.group;
        let evicted = GroupInfo {
            evicted: true,
            ..well.clone()
        };
        let frozen = |why| GroupInfo {
            frozen: Some(why),
            ..well.clone()
        };
        assert_eq!(found(Some(&well), true).0, Level::Ok);
        for (group, joined, level, words) in [
            (None, false, Level::Warn, "not joined yet"),
            (None, true, Level::Fail, "member database was lost"),
            (Some(evicted), true, Level::Fail, "removed from group ops"),
            (
                Some(frozen(Freeze::Forked)),
                true,
                Level::Fail,
                "follow a commit that we refused",
            ),
            (
                Some(frozen(Freeze::AddressChanged)),
                true,
                Level::Fail,
                "nostr_group_id changed",
            ),
        ] {
            let (found, what) = found(group.as_ref(), joined);
            assert_eq!(found, level, "{what}");
            assert!(what.contains(words), "{what}");
        }
    }
}
