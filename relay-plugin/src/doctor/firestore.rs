//! The Firestore store: reachable, there, readable, writable, and its clock; what is deployed beside the documents (indexes, rules); then whether the audit trail can
//! be read.

use std::{sync::Arc, time::Duration};

use keyturn_store::{
    firestore::{FirestoreSettings, FirestoreStore, OpenError, Probe, ProbeError},
    queries::{
        Query,
        indexes::{Need, need},
    },
    store::Store,
};

use super::{
    Report, Subject,
    store::CHECK,
    visitors::{self, Visitors},
};

/// Proofs and windows are judged by our clock, and other relays by theirs: more than this is refused somewhere.
const CLOCK_SLACK: Duration = Duration::from_secs(2);
/// Every promotion waits for a few of these.
const SLOW: Duration = Duration::from_secs(1);

pub(super) async fn check(
    subject: Subject<'_>,
    settings: &FirestoreSettings,
    visitors: &Visitors,
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
    documents(subject, &store, settings, report).await;
    visitors::check(&store, settings, visitors, report).await;
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

/// How long after its expiry a nonce may still lie there: Firestore's TTL takes a day, and a relay ten minutes.
const FORGOTTEN: Duration = Duration::from_secs(3 * 86_400);
/// How many documents of each kind of timed work are read.
const READ: usize = 1_000;

/// What a relay goes through: a document that it would have to set aside, and nonces that nothing deletes.
async fn documents(
    subject: Subject<'_>,
    store: &FirestoreStore,
    settings: &FirestoreSettings,
    report: &mut Report,
) {
    let FirestoreSettings {
        project, database, ..
    } = settings;
    match store.damaged(READ).await {
        Ok(damaged) if damaged.is_empty() => report.ok(
            CHECK,
            "admins, groups, leases and timed work can be read, all of them",
        ),
        Ok(damaged) => {
            for (what, count) in damaged {
                report.fail(
                    CHECK,
                    format!("{count} damaged documents of the kind {what}: the relay sets them aside"),
                    format!("the relay's log names each (\"set aside\"); look it up in the console, and restore it from a point in time: gcloud firestore databases clone, or export, as of before ({project}, {database})"),
                );
            }
        }
        Err(error) => report.warn(
            CHECK,
            format!("what the relay goes through cannot be read: {error}"),
            "see the findings about rights and indexes",
        ),
    }
    let long_ago = subject.now.minus(FORGOTTEN);
    match store.has_nonces_from_before(long_ago).await {
        Ok(false) => report.ok(CHECK, "no nonce has outlived its time by days"),
        Ok(true) => report.warn(
            CHECK,
            "nonces that expired days ago are still there: neither a relay nor the TTL policy deletes them",
            format!("let a relay run; and gcloud firestore fields ttls update expires_at --collection-group=nonces --enable-ttl --project={project} --database={database}"),
        ),
        Err(error) => report.warn(
            CHECK,
            format!("expired nonces cannot be looked for: {error}"),
            "see the findings about rights and indexes",
        ),
    }
    report.skipped(
        CHECK,
        "whether nonces.expires_at has its TTL policy: Firestore tells that to who may see indexes (datastore.indexes.get), which the relay's account should not",
        format!("gcloud firestore fields ttls list --collection-group=nonces --project={project} --database={database} must say ACTIVE"),
    );
    report.skipped(
        CHECK,
        "who else may read or write the database by IAM: only who administers the project is told",
        format!("gcloud projects get-iam-policy {project} --flatten='bindings[].members' --format='table(bindings.role,bindings.members,bindings.condition.expression)' against docs/google-cloud.md, \"What each may do\""),
    );
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

pub(super) fn mend(error: &ProbeError, settings: &FirestoreSettings) -> String {
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
        ProbeError::NotSent => {
            "leave store.endpoint out, or set it to an https:// one, to ask with real tokens"
                .to_owned()
        }
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
