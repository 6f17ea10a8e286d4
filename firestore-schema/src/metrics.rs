//! Every metric of the store and the verifier: name and help text.
//!
//! What must always hold: a name is written here and nowhere else; no label holds a client, a version or a source.

use metrics::{describe_counter, describe_gauge, describe_histogram};

/// Verifications, by `result`: current, previous, refused, unavailable.
pub const VERIFY: &str = "keyturn_verify_total";
/// MAC verifications asked for: what neither the prefilter nor the memory answered.
pub const VERIFY_MAC_CALLS: &str = "keyturn_verify_mac_calls_total";
/// Seconds of one bcrypt check of a secret that was imported as a bcrypt hash, the wait for its turn included.
pub const VERIFY_BCRYPT_SECONDS: &str = "keyturn_verify_bcrypt_seconds";
/// 1 while a listener vouches for what is cached.
pub const VERIFY_LISTENER_UP: &str = "keyturn_verify_listener_up";
/// Seconds since the listener last proved that it had heard everything.
pub const VERIFY_HEARTBEAT_AGE: &str = "keyturn_verify_heartbeat_age_seconds";
/// Clients that are listened to.
pub const VERIFY_TARGETS: &str = "keyturn_verify_targets";
/// 1 for the `mode` that holds: live (no reads), read_through (every client is read again after `snapshot_ttl`), stale (nothing can be read).
pub const VERIFY_MODE: &str = "keyturn_verify_mode";
/// Changes heard by the listener.
pub const VERIFY_CHANGES: &str = "keyturn_verify_changes_total";
/// Streams given up, by `why`: ended, slow (to prove itself), deaf (silent while the heartbeat went on), refused.
pub const VERIFY_LISTENER_LOST: &str = "keyturn_verify_listener_lost_total";
/// Verifications refused by a limit.
pub const VERIFY_LIMITED: &str = "keyturn_verify_limited_total";
/// Snapshots read from the source.
pub const VERIFY_SNAPSHOT_READS: &str = "keyturn_verify_snapshot_reads_total";
/// Seconds of one store transaction, the wait for its turn included, by `op`: read, write.
pub const STORE_SECONDS: &str = "keyturn_store_seconds";
/// Stored documents that could not be read and were set aside, by `what` kind of document: counted each time one is met.
pub const SET_ASIDE: &str = "keyturn_store_set_aside_total";
/// Attempts at Cloud KMS, by `op` (sign, verify, get, list) and `result`: ok, or the class of the failure.
pub const KMS_CALLS: &str = "keyturn_kms_calls_total";
/// Seconds of one attempt at Cloud KMS, by `op`.
pub const KMS_SECONDS: &str = "keyturn_kms_seconds";
/// Whether Cloud KMS is asked: 0 yes, 1 one caller finds out, 2 no.
pub const KMS_BREAKER: &str = "keyturn_kms_breaker";

/// Commits sent to Firestore, repeats included.
pub const FIRESTORE_COMMITS: &str = "keyturn_firestore_commits_total";
/// Documents that Firestore wrote or deleted for us.
pub const FIRESTORE_WRITES: &str = "keyturn_firestore_writes_total";
/// Documents that Firestore read for us, as it counts them, by the store's `op` that asked for them.
pub const FIRESTORE_READS: &str = "keyturn_firestore_reads_total";
/// What had to be asked of Firestore again, by `cause`: contention, changed, unreachable, slow, exhausted, internal.
pub const FIRESTORE_RETRIES: &str = "keyturn_firestore_retries_total";
/// Seconds of one attempt of one call to Firestore, by `call`: get, query, commit.
pub const FIRESTORE_SECONDS: &str = "keyturn_firestore_seconds";

const COUNTERS: [(&str, &str); 12] = [
    (VERIFY_CHANGES, "Changes heard by the verifier's listener"),
    (
        VERIFY_LISTENER_LOST,
        "Listener streams given up by the verifier, by reason",
    ),
    (VERIFY, "Verifications of presented secrets, by result"),
    (
        VERIFY_MAC_CALLS,
        "MAC verifications asked for by the verifier",
    ),
    (VERIFY_LIMITED, "Verifications refused by a limit"),
    (
        VERIFY_SNAPSHOT_READS,
        "Client snapshots read by the verifier",
    ),
    (
        SET_ASIDE,
        "Stored documents that could not be read and were set aside, by kind, each time one was met",
    ),
    (KMS_CALLS, "Attempts at Cloud KMS, by op and result"),
    (
        FIRESTORE_COMMITS,
        "Commits sent to Firestore, repeats included",
    ),
    (
        FIRESTORE_WRITES,
        "Documents written or deleted in Firestore",
    ),
    (FIRESTORE_READS, "Documents read from Firestore, by op"),
    (
        FIRESTORE_RETRIES,
        "What had to be asked of Firestore again, by cause",
    ),
];

const GAUGES: [(&str, &str); 4] = [
    (
        VERIFY_LISTENER_UP,
        "1 while the verifier's listener vouches for what is cached",
    ),
    (
        VERIFY_HEARTBEAT_AGE,
        "Seconds since the listener last proved that it had heard everything",
    ),
    (VERIFY_TARGETS, "Clients that the verifier listens to"),
    (VERIFY_MODE, "1 for the mode in which the verifier judges"),
];

/// Gives the recorder of this process the help texts. Call it once the recorder is installed.
pub fn describe() {
    for (name, help) in COUNTERS {
        describe_counter!(name, help);
    }
    for (name, help) in GAUGES {
        describe_gauge!(name, help);
    }
    describe_histogram!(
        VERIFY_BCRYPT_SECONDS,
        "One bcrypt check by the verifier, the wait for its turn included"
    );
    describe_histogram!(STORE_SECONDS, "One store transaction, by op");
    describe_histogram!(KMS_SECONDS, "One attempt at Cloud KMS, by op");
    describe_gauge!(
        KMS_BREAKER,
        "Whether Cloud KMS is asked: 0 yes, 1 one caller finds out, 2 no"
    );
    describe_histogram!(
        FIRESTORE_SECONDS,
        "One attempt of one call to Firestore, by call"
    );
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use metrics_exporter_prometheus::PrometheusBuilder;

    use super::*;
    use crate::sqlite::SqliteStore;
    use crate::store::AuditTrail;

    #[test]
    fn a_transaction_is_timed_and_described() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let dir = tempfile::tempdir().unwrap();
        let shown = metrics::with_local_recorder(&recorder, || {
            describe();
            let store = SqliteStore::open(&dir.path().join("store.db")).unwrap();
            runtime.block_on(async {
                store.ping().await.unwrap();
                store.read(None, 1).await.unwrap();
            });
            recorder.handle().render()
        });
        assert!(
            shown.contains("# HELP keyturn_store_seconds One store transaction, by op\n"),
            "{shown}"
        );
        for op in ["read", "write"] {
            let counted = format!("keyturn_store_seconds_count{{op=\"{op}\"}} 1\n");
            assert!(shown.contains(&counted), "{shown}");
        }
    }
}
