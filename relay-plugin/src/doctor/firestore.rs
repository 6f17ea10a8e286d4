//! The Firestore store: reachable, there, readable, writable, and its clock; what is deployed beside the documents (indexes, rules); then whether the audit trail can
//! be read.

use std::{sync::Arc, time::Duration};

use keyturn_store::{
    firestore::{FirestoreSettings, FirestoreStore, OpenError, Probe, ProbeError, Strangers},
    queries::{
        Query,
        indexes::{Need, need},
    },
    store::Store,
};

use super::{Report, store::CHECK};

/// Proofs and windows are judged by our clock, and other relays by theirs: more than this is refused somewhere.
const CLOCK_SLACK: Duration = Duration::from_secs(2);
/// Every promotion waits for a few of these.
const SLOW: Duration = Duration::from_secs(1);

pub(super) async fn check(
    settings: &FirestoreSettings,
    report: &mut Report,
) -> Option<Arc<dyn Store>> {
    let store = match FirestoreStore::open(settings.clone()).await {
        Ok(store) => store,
        Err(error) => {
            let mend = match &error {
                OpenError::Credentials => credentials(settings),
                OpenError::Unreachable { .. } => REACH.to_owned(),
            };
            report.fail(CHECK, error.to_string(), mend);
            return None;
        }
    };
    match store.probe().await {
        Ok(probe) => tell(settings, probe, report),
        Err(error) => {
            report.fail(CHECK, error.to_string(), mend(&error, settings));
            // What may be read is still worth looking at.
            if !matches!(error, ProbeError::MayNotWrite) {
                return None;
            }
        }
    }
    indexes(&store, settings, report).await;
    // The emulator's rules, or that it has none, are the business of whoever started it.
    if !settings.is_emulator() {
        strangers(store.strangers().await, settings, report);
    }
    let store: Arc<dyn Store> = Arc::new(store);
    match store.read(None, 1).await {
        Ok(_) => report.ok(CHECK, "the audit trail can be read"),
        Err(error) => report.fail(
            CHECK,
            format!("the audit trail cannot be read: {error}"),
            "deploy firestore.indexes.json (docs/google-cloud.md, \"Rules, indexes, TTL\"), and wait until its indexes are built",
        ),
    }
    Some(store)
}

/// Every query is asked once: only Firestore knows which indexes it has.
async fn indexes(store: &FirestoreStore, settings: &FirestoreSettings, report: &mut Report) {
    match store.unserved().await {
        Ok(unserved) if unserved.is_empty() => report.ok(CHECK, "every query has its index"),
        Ok(unserved) => {
            let missing: Vec<String> = unserved.into_iter().map(missing).collect();
            report.fail(
                CHECK,
                format!("no index for: {}", missing.join("; ")),
                format!(
                    "in firestore-schema: firebase deploy --only firestore --project {project}; then wait until they are built: gcloud firestore indexes composite list --project={project} --database={database}",
                    project = settings.project,
                    database = settings.database
                ),
            );
        }
        Err(error) => report.fail(CHECK, error.to_string(), mend(&error, settings)),
    }
}

/// The query, and what has to be there for it.
fn missing(query: &Query) -> String {
    match need(query) {
        Ok(Need::Composite(index)) => format!("{} ({index})", query.name),
        // Each field's own index; the file switches some of them on.
        _ => format!("{} (single fields of {})", query.name, query.collection),
    }
}

/// People come in under the rules; whoever has no credentials at all must be refused by them, whatever they ask for.
fn strangers(
    found: Result<Strangers, ProbeError>,
    settings: &FirestoreSettings,
    report: &mut Report,
) {
    let open = match found {
        Ok(open) => open,
        Err(error) => {
            return report.warn(
                CHECK,
                format!("whether the security rules keep strangers out is not known: {error}"),
                mend(&error, settings),
            );
        }
    };
    if open == Strangers::default() {
        return report.ok(
            CHECK,
            "the security rules keep strangers out of every collection",
        );
    }
    for (what, collections) in [("read", open.read), ("delete", open.delete)] {
        if !collections.is_empty() {
            report.fail(
                CHECK,
                format!(
                    "anybody can {what}, without any credentials: {}",
                    collections.join(", ")
                ),
                format!(
                    "at once, in firestore-schema: firebase deploy --only firestore --project {}",
                    settings.project
                ),
            );
        }
    }
}

const REACH: &str = "look at store.endpoint, the name server, the firewall (TCP 443 to firestore.googleapis.com), and a proxy in between: gRPC needs HTTP/2";

fn tell(settings: &FirestoreSettings, probe: Probe, report: &mut Report) {
    report.ok(
        CHECK,
        format!(
            "database {} of {} can be read and written, one write in {}",
            settings.database,
            settings.project,
            humantime::format_duration(Duration::from_millis(
                u64::try_from(probe.round_trip.as_millis()).unwrap_or(u64::MAX)
            ))
        ),
    );
    if probe.round_trip > SLOW {
        report.warn(
            CHECK,
            "a write takes more than a second",
            "run the relay in the database's region, and look at its load (Cloud console, Firestore, Usage)",
        );
    }
    let off = Duration::from_millis(probe.clock_ahead_ms.unsigned_abs());
    // Where within the round trip Firestore looked at its clock is not known.
    if off > CLOCK_SLACK + probe.round_trip {
        let way = if probe.clock_ahead_ms > 0 {
            "ahead of"
        } else {
            "behind"
        };
        report.fail(
            CHECK,
            format!(
                "this machine's clock is {} {way} Firestore's",
                humantime::format_duration(off)
            ),
            "set the clock, and keep it: timedatectl set-ntp true",
        );
    } else {
        report.ok(CHECK, "this machine's clock agrees with Firestore's");
    }
}

fn mend(error: &ProbeError, settings: &FirestoreSettings) -> String {
    let FirestoreSettings {
        project, database, ..
    } = settings;
    match error {
        ProbeError::Unreachable => REACH.to_owned(),
        ProbeError::Credentials => credentials(settings),
        ProbeError::NoDatabase => format!(
            "gcloud firestore databases create --project={project} --database={database} --location=REGION --type=firestore-native --delete-protection --enable-pitr"
        ),
        ProbeError::MayNotRead | ProbeError::MayNotWrite => format!(
            "gcloud projects add-iam-policy-binding {project} --member=serviceAccount:ACCOUNT --role=projects/{project}/roles/keyturnRelay --condition=\"expression=resource.name=='projects/{project}/databases/{database}',title=keyturn-database\" (the role: docs/google-cloud.md, \"What each may do\")"
        ),
        ProbeError::Refused { .. } => {
            "look the code up at https://cloud.google.com/firestore/docs/understand-error-codes"
                .to_owned()
        }
    }
}

fn credentials(settings: &FirestoreSettings) -> String {
    format!(
        "attach a service account to this machine, or name its credentials in GOOGLE_APPLICATION_CREDENTIALS; for a try by hand: gcloud auth application-default login --project={}",
        settings.project
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::doctor::Level;

    /// The emulator is plain, and doctor leaves its rules alone, so that nothing else gets here in a test.
    fn told(found: Result<Strangers, ProbeError>) -> Vec<(Level, String, Option<String>)> {
        let settings = FirestoreSettings {
            project: "p".to_owned(),
            database: "keyturn".to_owned(),
            endpoint: None,
            timeout: Duration::from_secs(10),
        };
        let mut report = Report::default();
        strangers(found, &settings, &mut report);
        let findings = report.findings.into_iter();
        findings.map(|it| (it.level, it.what, it.mend)).collect()
    }

    #[test]
    fn strangers_who_are_let_in_are_a_failure_and_doubt_is_a_warning() {
        let out = told(Ok(Strangers::default()));
        assert!(matches!(&out[..], [(Level::Ok, _, None)]), "{out:?}");
        let open = told(Ok(Strangers {
            read: vec!["oauth2_clients", "admins"],
            delete: vec!["audit"],
        }));
        let [read, delete] = &open[..] else {
            unreachable!("{open:?}")
        };
        assert_eq!((read.0, delete.0), (Level::Fail, Level::Fail));
        assert!(read.1.contains("read") && read.1.contains("oauth2_clients, admins"));
        assert!(delete.1.contains("delete") && delete.1.contains("audit"));
        for mend in [&read.2, &delete.2] {
            let mend = mend.as_deref().unwrap();
            assert!(mend.contains("firebase deploy --only firestore --project p"));
        }
        let doubt = told(Err(ProbeError::Unreachable));
        let [(Level::Warn, what, Some(mend))] = &doubt[..] else {
            unreachable!("{doubt:?}")
        };
        assert!(what.contains("not known") && mend.contains("firewall"));
    }
}
