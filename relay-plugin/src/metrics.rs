//! Every metric of ours: its name, its help text, and the recorder it goes to.
//!
//! What must always hold: a name is written here and nowhere else, and is recorded somewhere; no label ever holds a client, a key, a group or
//! a value that somebody else can choose, only words from a fixed list. rnostr counts through the same facade, so one recorder shows both.

use std::sync::OnceLock;

use metrics::{describe_counter, describe_gauge, describe_histogram};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

// What comes in.

/// Events that concern us, by `result`: taken, busy, stopped, unreadable.
pub const INBOUND: &str = "keyturn_inbound_total";
/// Events that wait for the core.
pub const INBOUND_QUEUE: &str = "keyturn_inbound_queue";
/// Events that nobody could open.
pub const EVENTS_INVALID: &str = "keyturn_events_invalid_total";
/// Events kept until an epoch change lets them be opened.
pub const EVENTS_KEPT: &str = "keyturn_events_kept_total";
/// Events that were kept so and gave way to newer ones: too many, or too many bytes, in one group.
pub const EVENTS_GAVE_WAY: &str = "keyturn_events_gave_way_total";
/// Events that the relay took and did not store in time.
pub const EVENTS_NOT_STORED: &str = "keyturn_events_not_stored_total";
/// Events that could not be taken in.
pub const INTAKE_FAILURES: &str = "keyturn_intake_failures_total";
/// Gift wraps that hold no Welcome for us.
pub const WELCOMES_INVALID: &str = "keyturn_welcomes_invalid_total";
/// Welcomes that the registry does not allow, by `reason`.
pub const WELCOMES_REFUSED: &str = "keyturn_welcomes_refused_total";

// What is decided.

/// Requests judged by admission, by `action` ("unknown" when it cannot be read) and `result`: admitted, or the error class.
pub const REQUESTS: &str = "keyturn_requests_total";
/// Requests that admission refused, by `reason`: the words of the audit trail.
pub const REFUSALS: &str = "keyturn_refusals_total";
/// Requests that were admitted and could not be carried out, by error `class`.
pub const REFUSED_LATE: &str = "keyturn_requests_refused_late_total";
/// Counter: refusals of which the group was not told.
pub const REFUSALS_NOT_ANSWERED: &str = "keyturn_refusals_not_answered_total";
/// Acks, by `result`: proven, unproven, late, refused.
pub const ACKS: &str = "keyturn_acks_total";
/// Fetches of the issuer's keys, by `result`: ok, failed.
pub const JWKS_FETCHES: &str = "keyturn_jwks_fetches_total";

/// Calls to the issuer of secret_ids, by `op` and `result`: ok, or the reason of the failure.
pub const ISSUER_CALLS: &str = "keyturn_issuer_calls_total";
/// Logins with secret_ids of our own, by `result`: ok, invalid, too_many, unavailable.
pub const APPROLE_LOGINS: &str = "keyturn_approle_logins_total";
/// Our own token at the issuer, by `result`: obtained, renewed, ending (no successor in sight), failed.
pub const ISSUER_TOKEN: &str = "keyturn_issuer_token_total";

// What is done.

/// Rotations ended, by `outcome`.
pub const ROTATIONS: &str = "keyturn_rotations_total";
/// Rollbacks and revocations carried out, by `outcome`.
pub const ACTIONS: &str = "keyturn_actions_total";
/// Versions whose grace was over.
pub const RETIRED: &str = "keyturn_versions_retired_total";
/// Expired nonces whose records were deleted.
pub const NONCES_FORGOTTEN: &str = "keyturn_nonces_forgotten_total";
/// Events published, by `result`: stored, refused, failed.
pub const PUBLISHED: &str = "keyturn_published_total";
/// Ciphertexts deleted from the relay's database.
pub const CIPHERTEXTS_DELETED: &str = "keyturn_ciphertexts_deleted_total";
/// Rotations taken up from another attempt.
pub const TAKE_OVERS: &str = "keyturn_take_overs_total";
/// Whether this instance holds the lease and acts: 1 or 0.
pub const LEASE_HELD: &str = "keyturn_lease_held";
/// Events heard from a peer, by `peer` and `result`: new, known, refused, failed.
pub const MIRRORED: &str = "keyturn_mirrored_total";
/// Questions about a single second that a peer could not answer in full, by `peer` and `what`: others (what concerns us was asked for by itself),
/// ours (given up, with an alarm).
pub const MIRROR_SKIPPED: &str = "keyturn_mirror_skipped_total";
/// Whether a peer is connected and heard completely: 1 or 0, by `peer`.
pub const MIRROR_PEER_UP: &str = "keyturn_mirror_peer_up";
/// How far behind a peer this instance is, by `peer`.
pub const MIRROR_LAG_SECONDS: &str = "keyturn_mirror_lag_seconds";
/// How long the oldest due work has been waiting.
pub const DUE_LAG_SECONDS: &str = "keyturn_due_lag_seconds";

// The device flow.

/// Messages of devices, by `result`: request, result, ignored, refused, overrun, unrecorded.
pub const DEVICE_MESSAGES: &str = "keyturn_device_messages_total";
/// Messages of devices that were refused, by `reason`: the words of the audit trail.
pub const DEVICE_REFUSALS: &str = "keyturn_device_refusals_total";
/// Issues, by `result`: issued, not_sent, superseded, failed.
pub const DEVICE_ISSUES: &str = "keyturn_device_issues_total";
/// Results that devices reported, by `result`: proven, unproven, failed, repeat, stale, or store: given up, since the store did not take it.
pub const DEVICE_RESULTS: &str = "keyturn_device_results_total";
/// Devices that were asked to try again, by `error`: the word they were sent, or lost (no room), or withheld (told often enough).
pub const DEVICE_RETRIES: &str = "keyturn_device_retries_total";
/// Destructions of secret_ids, by `result`: destroyed, already_gone, failed, another_issuer (not tried: the configuration names another one now).
pub const DEVICE_DESTROYED: &str = "keyturn_device_destroyed_total";
/// Invitations of scheduled devices, by `result`: sent, lost.
pub const DEVICE_PINGS: &str = "keyturn_device_pings_total";
/// Answers that were too old when there was a connection again.
pub const DEVICE_ANSWERS_EXPIRED: &str = "keyturn_device_answers_expired_total";
/// Due work of devices that could not be read or recorded; it stays due.
pub const DEVICE_UPKEEP_FAILURES: &str = "keyturn_device_upkeep_failures_total";
/// Connections to the broker that were lost or could not be made, by `reason`.
pub const MQTT_LOST: &str = "keyturn_mqtt_lost_total";
/// Answers that the broker's access rules do not let us publish.
pub const MQTT_REFUSED: &str = "keyturn_mqtt_refused_total";
/// Requests of devices that wait for the issuer.
pub const DEVICE_QUEUE: &str = "keyturn_device_queue";
/// Whether there is a connection to the broker: 1 or 0.
pub const MQTT_CONNECTED: &str = "keyturn_mqtt_connected";
/// One call to the issuer for a new secret_id.
pub const DEVICE_ISSUE_SECONDS: &str = "keyturn_device_issue_seconds";
/// From a device's request to its answer in the broker connection's queue.
pub const DEVICE_ANSWER_SECONDS: &str = "keyturn_device_answer_seconds";

// What went wrong.

/// Commits of this instance that the store refused because another instance has acted since.
pub const FENCED: &str = "keyturn_commits_fenced_total";
/// Withdrawn events that could not be deleted from this relay at an attempt; they are tried again.
pub const WITHDRAWALS_FAILED: &str = "keyturn_withdrawals_failed_total";
/// Conditions that an operator must look at, by `reason`.
pub const ALARMS: &str = "keyturn_alarms_total";
/// Audit records that could not be written.
pub const AUDIT_FAILED: &str = "keyturn_audit_append_failed_total";
/// Refusals that are counted and in no audit record yet, by `trail`: the word of their summaries. More than a few for longer than ten seconds means that the
/// store does not take them.
pub const UNWRITTEN_REFUSALS: &str = "keyturn_refusals_unwritten";
/// Messages that a standby did not keep, because their sender had too many waiting.
pub const INBOX_TRIMMED: &str = "keyturn_inbox_trimmed_total";
/// Audit records left out because anybody can cause them.
pub const JUNK_NOT_RECORDED: &str = "keyturn_junk_not_recorded_total";
/// Due work that failed and is tried again.
pub const DRIVER_FAILURES: &str = "keyturn_driver_failures_total";
/// Messages to a group that were given up.
pub const ANNOUNCEMENTS_FAILED: &str = "keyturn_announcements_failed_total";
/// Panics that were caught, by `part`: member, request, devices.
pub const PANICS: &str = "keyturn_panics_total";

// How long it took.

/// From the request's first look to every notify stored by the relay.
pub const REQUEST_SECONDS: &str = "keyturn_request_seconds";
/// From generating a secret to the recorded, sealed version.
pub const PREPARE_SECONDS: &str = "keyturn_prepare_seconds";
/// One signature by the MAC key.
pub const MAC_SECONDS: &str = "keyturn_mac_seconds";
/// Until every notify of a rotation could be read back from the relay.
pub const DISTRIBUTE_SECONDS: &str = "keyturn_distribute_seconds";
/// Until one published event could be read back.
pub const PUBLISH_SECONDS: &str = "keyturn_publish_seconds";
/// One exchange with the issuer of secret_ids, by `op`.
pub const ISSUER_SECONDS: &str = "keyturn_issuer_seconds";
/// From the reservation to the ack quorum.
pub const QUORUM_SECONDS: &str = "keyturn_quorum_seconds";

const COUNTERS: [(&str, &str); 46] = [
    (MIRRORED, "Events heard from a peer, by peer and result"),
    (
        MIRROR_SKIPPED,
        "Single seconds of a peer that held more events than could be fetched, by peer and what was left out",
    ),
    (INBOUND, "Events that concern Keyturn, by result"),
    (EVENTS_INVALID, "Events that nobody could open"),
    (
        EVENTS_KEPT,
        "Events kept until an epoch change lets them be opened",
    ),
    (
        EVENTS_GAVE_WAY,
        "Kept events that gave way to newer ones of their group, before they could be opened",
    ),
    (
        EVENTS_NOT_STORED,
        "Events that the relay took and did not store in time",
    ),
    (INTAKE_FAILURES, "Events that could not be taken in"),
    (WELCOMES_INVALID, "Gift wraps that hold no Welcome for us"),
    (
        WELCOMES_REFUSED,
        "Welcomes that the registry does not allow, by reason",
    ),
    (
        REQUESTS,
        "Requests judged by admission, by action and result",
    ),
    (REFUSALS, "Requests refused by admission, by reason"),
    (
        REFUSED_LATE,
        "Requests that were admitted and could not be carried out, by error class",
    ),
    (
        REFUSALS_NOT_ANSWERED,
        "Refusals of which the group was not told: a repeat, or too many at once",
    ),
    (ACKS, "Acks, by result"),
    (JWKS_FETCHES, "Fetches of the issuer's keys, by result"),
    (
        ISSUER_CALLS,
        "Calls to the issuer of secret_ids, by op and result",
    ),
    (
        APPROLE_LOGINS,
        "Logins with secret_ids of our own, by result",
    ),
    (ISSUER_TOKEN, "Our own token at the issuer, by result"),
    (ROTATIONS, "Rotations ended, by outcome"),
    (ACTIONS, "Rollbacks and revocations carried out, by outcome"),
    (RETIRED, "Versions retired at the end of their grace"),
    (
        NONCES_FORGOTTEN,
        "Expired nonces whose records were deleted",
    ),
    (PUBLISHED, "Events published, by result"),
    (
        CIPHERTEXTS_DELETED,
        "Ciphertexts deleted from the relay's database",
    ),
    (TAKE_OVERS, "Rotations taken up from an earlier attempt"),
    (
        FENCED,
        "Commits that the store refused because another instance has acted since",
    ),
    (
        WITHDRAWALS_FAILED,
        "Attempts to delete withdrawn events from this relay that failed; they are repeated",
    ),
    (ALARMS, "Conditions that need an operator, by reason"),
    (AUDIT_FAILED, "Audit records that could not be written"),
    (
        INBOX_TRIMMED,
        "Messages that a standby did not keep: their sender had too many waiting",
    ),
    (
        JUNK_NOT_RECORDED,
        "Audit records left out because anybody can cause them",
    ),
    (DRIVER_FAILURES, "Due work that failed and is tried again"),
    (
        ANNOUNCEMENTS_FAILED,
        "Messages to a group that were given up",
    ),
    (PANICS, "Panics that were caught, by part"),
    (DEVICE_MESSAGES, "Messages of devices, by result"),
    (DEVICE_REFUSALS, "Messages of devices refused, by reason"),
    (DEVICE_ISSUES, "Issues of secret_ids, by result"),
    (DEVICE_RESULTS, "Results that devices reported, by result"),
    (
        DEVICE_RETRIES,
        "Devices that were asked to try again, by error",
    ),
    (DEVICE_DESTROYED, "Destructions of secret_ids, by result"),
    (DEVICE_PINGS, "Invitations of scheduled devices, by result"),
    (
        DEVICE_ANSWERS_EXPIRED,
        "Answers that were too old when there was a connection again",
    ),
    (
        DEVICE_UPKEEP_FAILURES,
        "Due work of devices that could not be read or recorded",
    ),
    (
        MQTT_LOST,
        "Connections to the broker lost or not made, by reason",
    ),
    (
        MQTT_REFUSED,
        "Answers to devices that the broker's access rules refused (MQTT 5)",
    ),
];

const GAUGES: [(&str, &str); 8] = [
    (
        MIRROR_PEER_UP,
        "Whether a peer is connected and heard completely, by peer",
    ),
    (
        MIRROR_LAG_SECONDS,
        "How far behind a peer this instance is, by peer",
    ),
    (DEVICE_QUEUE, "Requests of devices that wait for the issuer"),
    (
        MQTT_CONNECTED,
        "Whether there is a connection to the broker",
    ),
    (INBOUND_QUEUE, "Events that wait for the core"),
    (LEASE_HELD, "Whether this instance holds the lease and acts"),
    (
        UNWRITTEN_REFUSALS,
        "Refusals that are counted and in no audit record yet, by trail",
    ),
    (
        DUE_LAG_SECONDS,
        "How long the oldest due work has been waiting",
    ),
];

const HISTOGRAMS: [(&str, &[f64], &str); 9] = [
    (
        DEVICE_ISSUE_SECONDS,
        &LATENCY,
        "One call to the issuer for a new secret_id",
    ),
    (
        DEVICE_ANSWER_SECONDS,
        &LATENCY,
        "From a device's request to its answer in the broker connection's queue",
    ),
    (
        REQUEST_SECONDS,
        &LATENCY,
        "From the request's first look to every notify stored by the relay",
    ),
    (
        PREPARE_SECONDS,
        &LATENCY,
        "From generating a secret to the recorded, sealed version",
    ),
    (MAC_SECONDS, &LATENCY, "One signature by the MAC key"),
    (
        DISTRIBUTE_SECONDS,
        &LATENCY,
        "Until every notify of a rotation could be read back from the relay",
    ),
    (
        PUBLISH_SECONDS,
        &LATENCY,
        "Until one published event could be read back",
    ),
    (
        ISSUER_SECONDS,
        &LATENCY,
        "One exchange with the issuer of secret_ids, by op",
    ),
    (
        QUORUM_SECONDS,
        &PATIENCE,
        "From the reservation to the ack quorum",
    ),
];

/// Histograms of others that share our recorder.
const THEIRS: [&str; 5] = [
    keyturn_store::metrics::STORE_SECONDS,
    keyturn_store::metrics::FIRESTORE_SECONDS,
    keyturn_store::metrics::KMS_SECONDS,
    "nostr_relay_db_get",
    "nostr_relay_db_write",
];

const LATENCY: [f64; 13] = [
    0.0001, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.25, 0.5, 1.0, 5.0,
];
/// People take minutes to ack; the deadline is half an hour by default.
const PATIENCE: [f64; 8] = [1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 1_800.0, 3_600.0];

static RECORDER: OnceLock<Option<PrometheusHandle>> = OnceLock::new();

/// Installs the recorder of this process, once. `None` when the relay has installed one of its own before: then our
/// metrics appear there.
pub fn install() -> Option<PrometheusHandle> {
    RECORDER
        .get_or_init(|| {
            let handle = builder().and_then(PrometheusBuilder::install_recorder);
            describe();
            match handle {
                Ok(handle) => Some(handle),
                Err(_) => {
                    tracing::info!(
                        "a metrics recorder is installed already; keyturn's metrics appear there"
                    );
                    None
                }
            }
        })
        .clone()
}

fn builder() -> Result<PrometheusBuilder, BuildError> {
    let ours = HISTOGRAMS
        .iter()
        .map(|(name, buckets, _)| (*name, *buckets));
    let theirs = THEIRS.iter().map(|name| (*name, &LATENCY[..]));
    ours.chain(theirs)
        .try_fold(PrometheusBuilder::new(), |builder, (name, buckets)| {
            builder.set_buckets_for_metric(Matcher::Full(name.to_owned()), buckets)
        })
}

/// Gives the recorder every help text.
fn describe() {
    nostr_extensions::metrics::describe_metrics();
    keyturn_store::metrics::describe();
    for (name, help) in COUNTERS {
        describe_counter!(name, help);
    }
    for (name, help) in GAUGES {
        describe_gauge!(name, help);
    }
    for (name, _, help) in HISTOGRAMS {
        describe_histogram!(name, help);
    }
    // Seen as zero, the first one is a change and not a new series.
    for part in ["member", "request", "devices"] {
        metrics::counter!(PANICS, "part" => part).absolute(0);
    }
    metrics::counter!(AUDIT_FAILED).absolute(0);
}

#[cfg(test)]
mod tests;
