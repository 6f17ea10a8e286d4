//! What others may do with the database: somebody without credentials, a signed-in user, an auditor, the verifier's account. The relay's own credentials bypass
//! the rules and say nothing of other accounts, so whoever is to be tried brings a token; who does not is named as not checked.

use keyturn_store::{
    collections,
    firestore::{Access, Bearer, FirestoreSettings, FirestoreStore, ProbeError, Visitor},
};

use super::{Report, firestore::mend, store::CHECK};

/// Tokens of those who are to be tried.
#[derive(Default)]
pub struct Visitors {
    /// Of a Firebase Auth user without the claim.
    pub user: Option<Bearer>,
    /// Of one with it.
    pub auditor: Option<Bearer>,
    /// An access token of the verifier's service account.
    pub verifier: Option<Bearer>,
}

/// Tries everybody there is a token of, and somebody without any.
pub(super) async fn check(
    store: &FirestoreStore,
    settings: &FirestoreSettings,
    visitors: &Visitors,
    report: &mut Report,
) {
    let brought = [&visitors.user, &visitors.auditor, &visitors.verifier];
    // The emulator's rules, or that it has none, are the business of whoever started it, unless somebody is to be tried.
    if !settings.is_emulator() || brought.iter().any(|token| token.is_some()) {
        attempt(store, settings, Who::Nobody, Visitor::Nobody, report).await;
    }
    for (who, token) in [Who::User, Who::Auditor, Who::Verifier]
        .into_iter()
        .zip(brought)
    {
        match token {
            Some(token) => attempt(store, settings, who, Visitor::Bearer(token), report).await,
            None => untried(who, settings, report),
        }
    }
}

async fn attempt(
    store: &FirestoreStore,
    settings: &FirestoreSettings,
    who: Who,
    visitor: Visitor<'_>,
    report: &mut Report,
) {
    let found = store.access(visitor).await;
    let known = found.is_ok();
    tell(who, found, settings, report);
    if known {
        tell_creates(who, store.creates(visitor).await, settings, report);
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Who {
    Nobody,
    User,
    Auditor,
    Verifier,
}

impl Who {
    const fn name(self) -> &'static str {
        match self {
            Self::Nobody => "somebody without any credentials",
            Self::User => "a signed-in user",
            Self::Auditor => "the auditor",
            Self::Verifier => "the verifier's account",
        }
    }

    /// The collections that are open to it.
    fn reads(self) -> Vec<&'static str> {
        let all = collections::ALL.iter();
        match self {
            Self::Nobody | Self::User => Vec::new(),
            Self::Auditor => all.filter(|it| it.auditors).map(|it| it.id).collect(),
            // IAM cannot tell one collection from another.
            Self::Verifier => all.map(|it| it.id).collect(),
        }
    }

    /// What closes what must not be open.
    fn close(self, settings: &FirestoreSettings) -> String {
        let FirestoreSettings {
            project, database, ..
        } = settings;
        match self {
            Self::Nobody | Self::User | Self::Auditor => format!(
                "at once, in firestore-schema: firebase deploy --only firestore --project {project}"
            ),
            Self::Verifier => format!(
                "take every role from it but projects/{project}/roles/keyturnVerifier on {database}: gcloud projects get-iam-policy {project} --flatten='bindings[].members' --filter=bindings.members:serviceAccount:VERIFIER, then remove-iam-policy-binding"
            ),
        }
    }

    /// What opens what must be.
    fn open(self, settings: &FirestoreSettings) -> String {
        let FirestoreSettings {
            project, database, ..
        } = settings;
        match self {
            Self::Verifier => format!(
                "gcloud projects add-iam-policy-binding {project} --member=serviceAccount:VERIFIER --role=projects/{project}/roles/keyturnVerifier --condition=\"expression=resource.name=='projects/{project}/databases/{database}',title=keyturn-database\""
            ),
            Self::Nobody | Self::User | Self::Auditor => format!(
                "set the claim \"auditor\": true and sign in again (docs/auditors.md), and in firestore-schema: firebase deploy --only firestore --project {project}"
            ),
        }
    }
}

fn tell(
    who: Who,
    found: Result<Access, ProbeError>,
    settings: &FirestoreSettings,
    report: &mut Report,
) {
    let name = who.name();
    let Access {
        read,
        list,
        update,
        delete,
    } = match found {
        Ok(access) => access,
        Err(error) => {
            let how = match (&error, who) {
                (_, Who::Nobody) | (ProbeError::NotSent, _) => mend(&error, settings),
                (ProbeError::Credentials, _) => {
                    "get a fresh token: they live for an hour".to_owned()
                }
                _ => mend(&error, settings),
            };
            return report.warn(
                CHECK,
                format!("what {name} may do is not known: {error}"),
                how,
            );
        }
    };
    let expected = who.reads();
    let judge = |found: Vec<&'static str>| -> (Vec<&str>, Vec<&str>) {
        let more = found.iter().filter(|id| !expected.contains(id)).copied();
        let missing = expected.iter().filter(|id| !found.contains(id)).copied();
        (more.collect(), missing.collect())
    };
    let (more, missing) = judge(read);
    let (more_lists, missing_lists) = judge(list);
    let before = report.findings.len();
    for (what, open) in [
        ("read", more),
        ("list", more_lists),
        ("change", update),
        ("delete", delete),
    ] {
        if !open.is_empty() {
            report.fail(
                CHECK,
                format!("{name} can {what}: {}", open.join(", ")),
                who.close(settings),
            );
        }
    }
    for (what, closed) in [("read", missing), ("list", missing_lists)] {
        if !closed.is_empty() {
            report.fail(
                CHECK,
                format!("{name} cannot {what}: {}", closed.join(", ")),
                who.open(settings),
            );
        }
    }
    if report.clean_since(before) {
        let what = match who {
            Who::Nobody | Who::User => format!("{name} is kept out of every collection"),
            Who::Auditor => format!("{name} reads {} and nothing else", expected.join(", ")),
            Who::Verifier => format!("{name} reads, and neither changes nor deletes"),
        };
        report.ok(CHECK, what);
    }
}

fn tell_creates(
    who: Who,
    creates: Result<bool, ProbeError>,
    settings: &FirestoreSettings,
    report: &mut Report,
) {
    let name = who.name();
    match creates {
        Ok(false) => report.ok(CHECK, format!("{name} cannot create documents")),
        Ok(true) => report.fail(
            CHECK,
            format!("{name} can create documents"),
            who.close(settings),
        ),
        Err(error) => report.warn(
            CHECK,
            format!("whether {name} can create documents is not known: {error}"),
            mend(&error, settings),
        ),
    }
}

/// Says who was not tried, and how to.
fn untried(who: Who, settings: &FirestoreSettings, report: &mut Report) {
    let project = &settings.project;
    let (what, how) = match who {
        Who::Nobody => return,
        Who::User => (
            "whether the rules keep out a signed-in user who is no auditor",
            "doctor --user-token FILE, with the id token of such a Firebase Auth user".to_owned(),
        ),
        Who::Auditor => (
            "whether an auditor reads what the rules allow, and nothing else",
            "doctor --auditor-token FILE, with the id token of an auditor (docs/auditors.md)"
                .to_owned(),
        ),
        Who::Verifier => (
            "what the verifier's account may do",
            format!(
                "doctor --verifier-token FILE, with what gcloud auth print-access-token --impersonate-service-account=VERIFIER --project={project} prints"
            ),
        ),
    };
    report.skipped(CHECK, what, how);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::Duration;

    use super::*;
    use crate::doctor::Level;

    fn told(who: Who, found: Result<Access, ProbeError>) -> Vec<(Level, String, Option<String>)> {
        let settings = FirestoreSettings {
            project: "p".to_owned(),
            database: "keyturn".to_owned(),
            endpoint: None,
            timeout: Duration::from_secs(10),
        };
        let mut report = Report::default();
        tell(who, found, &settings, &mut report);
        let findings = report.findings.into_iter();
        findings.map(|it| (it.level, it.what, it.mend)).collect()
    }

    fn reads(read: Vec<&'static str>) -> Result<Access, ProbeError> {
        Ok(Access {
            list: read.clone(),
            read,
            ..Access::default()
        })
    }

    #[test]
    fn strangers_who_are_let_in_are_a_failure_and_doubt_is_a_warning() {
        for who in [Who::Nobody, Who::User] {
            let out = told(who, Ok(Access::default()));
            assert!(matches!(&out[..], [(Level::Ok, _, None)]), "{out:?}");
        }
        let open = told(
            Who::Nobody,
            Ok(Access {
                read: vec!["oauth2_clients", "admins"],
                list: vec!["outbox"],
                update: Vec::new(),
                delete: vec!["audit"],
            }),
        );
        let [read, list, delete] = &open[..] else {
            unreachable!("{open:?}")
        };
        assert!(list.0 == Level::Fail && list.1.ends_with("can list: outbox"));
        assert_eq!((read.0, delete.0), (Level::Fail, Level::Fail));
        assert!(read.1.contains("read") && read.1.contains("oauth2_clients, admins"));
        assert!(delete.1.contains("delete") && delete.1.contains("audit"));
        for mend in [&read.2, &delete.2] {
            let mend = mend.as_deref().unwrap();
            assert!(mend.contains("firebase deploy --only firestore --project p"));
        }
        let doubt = told(Who::Nobody, Err(ProbeError::Unreachable));
        let [(Level::Warn, what, Some(mend))] = &doubt[..] else {
            unreachable!("{doubt:?}")
        };
        assert!(what.contains("not known") && mend.contains("firewall"));
        // An expired token proves nothing.
        let doubt = told(Who::User, Err(ProbeError::Credentials));
        assert!(
            matches!(&doubt[..], [(Level::Warn, _, Some(mend))] if mend.contains("fresh token"))
        );
    }

    #[test]
    fn an_auditor_reads_what_auditors_read_and_a_verifier_everything() {
        let auditors = Who::Auditor.reads();
        assert!(matches!(
            &told(Who::Auditor, reads(auditors.clone()))[..],
            [(Level::Ok, what, None)] if what.contains("audit_chains")
        ));
        let all = Who::Verifier.reads();
        assert!(matches!(
            &told(Who::Verifier, reads(all.clone()))[..],
            [(Level::Ok, _, None)]
        ));
        let less = told(Who::Auditor, reads(auditors[1..].to_vec()));
        assert!(
            matches!(&less[..], [(Level::Fail, what, Some(mend)), (Level::Fail, lists, _)] if what.ends_with("cannot read: oauth2_rotations") && lists.ends_with("cannot list: oauth2_rotations") && mend.contains("claim")),
            "{less:?}"
        );
        let more = told(Who::Auditor, reads(all.clone()));
        assert!(
            matches!(&more[..], [(Level::Fail, what, _), (Level::Fail, _, _)] if what.contains("can read: oauth2_clients")),
            "{more:?}"
        );
        let writer = Access {
            read: all.clone(),
            list: all,
            update: vec!["oauth2_clients"],
            delete: Vec::new(),
        };
        let writer = told(Who::Verifier, Ok(writer));
        assert!(
            matches!(&writer[..], [(Level::Fail, what, Some(mend))] if what.contains("can change: oauth2_clients") && mend.contains("remove-iam-policy-binding")),
            "{writer:?}"
        );
        let none = told(Who::Verifier, Ok(Access::default()));
        assert!(
            matches!(&none[..], [(Level::Fail, _, Some(mend)), (Level::Fail, _, _)] if mend.contains("roles/keyturnVerifier")),
            "{none:?}"
        );
    }
}
