//! Names of our metrics, and the recorder they go to.
//!
//! rnostr counts through the same facade, so one recorder shows both. No label ever holds a client, a key or a value that
//! somebody else can choose.

use std::sync::OnceLock;

use metrics::{describe_counter, describe_histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

/// Events that concern us, by `result`: taken, refused, unreadable.
pub const INBOUND: &str = "keyturn_inbound_total";
/// Requests decided, by `result`: admitted or the error class.
pub const REQUESTS: &str = "keyturn_requests_total";
/// Requests that admission refused, by `reason`: the words of the audit trail.
pub const REFUSALS: &str = "keyturn_refusals_total";
/// Refusals that the audit trail did not take.
pub const AUDIT_FAILED: &str = "keyturn_audit_append_failed_total";
/// Fetches of the issuer's keys, by `result`: ok, failed.
pub const JWKS_FETCHES: &str = "keyturn_jwks_fetches_total";
/// Rotations ended, by `outcome`.
pub const ROTATIONS: &str = "keyturn_rotations_total";
/// Acks, by `result`: proven, unproven, refused.
pub const ACKS: &str = "keyturn_acks_total";
/// Groups frozen, strangers found, wrong welcomes and whatever else an operator must look at, by `reason`.
pub const ALARMS: &str = "keyturn_alarms_total";
/// Events published, by `result`: new, already, refused, failed.
pub const PUBLISHED: &str = "keyturn_published_total";
/// Seconds from the request's event to the notify handed to the relay.
pub const DISTRIBUTE_SECONDS: &str = "keyturn_distribute_seconds";
/// Seconds until a published event could be read back.
pub const PUBLISH_SECONDS: &str = "keyturn_publish_seconds";
/// Seconds from the notify to the quorum.
pub const QUORUM_SECONDS: &str = "keyturn_quorum_seconds";
/// Seconds that one store transaction took.
pub const STORE_SECONDS: &str = "keyturn_store_seconds";

const LATENCY: [f64; 12] = [
    0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.25, 0.5, 1.0, 5.0,
];
/// People take minutes to ack; the deadline is half an hour by default.
const PATIENCE: [f64; 8] = [1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 1_800.0, 3_600.0];

static RECORDER: OnceLock<Option<PrometheusHandle>> = OnceLock::new();

/// Installs the recorder of this process, once. `None` when the relay has installed one of its own before: then our
/// metrics appear there.
pub fn install() -> Option<PrometheusHandle> {
    RECORDER.get_or_init(build).clone()
}

fn build() -> Option<PrometheusHandle> {
    let latency = [
        DISTRIBUTE_SECONDS,
        PUBLISH_SECONDS,
        STORE_SECONDS,
        "nostr_relay_db_get",
        "nostr_relay_db_write",
    ];
    let mut builder = PrometheusBuilder::new();
    for name in latency {
        builder = builder
            .set_buckets_for_metric(Matcher::Full(name.to_owned()), &LATENCY)
            .ok()?;
    }
    builder = builder
        .set_buckets_for_metric(Matcher::Full(QUORUM_SECONDS.to_owned()), &PATIENCE)
        .ok()?;
    match builder.install_recorder() {
        Ok(handle) => {
            describe();
            Some(handle)
        }
        Err(_) => {
            tracing::info!(
                "a metrics recorder is installed already; keyturn's metrics appear there"
            );
            None
        }
    }
}

fn describe() {
    nostr_extensions::metrics::describe_metrics();
    describe_counter!(INBOUND, "Events that concern Keyturn, by result");
    describe_counter!(REQUESTS, "Requests decided, by result");
    describe_counter!(REFUSALS, "Requests refused by admission, by reason");
    describe_counter!(
        AUDIT_FAILED,
        "Refusals that could not be written to the audit trail"
    );
    describe_counter!(JWKS_FETCHES, "Fetches of the issuer's keys, by result");
    describe_counter!(ROTATIONS, "Rotations ended, by outcome");
    describe_counter!(ACKS, "Acks, by result");
    describe_counter!(ALARMS, "Conditions that need an operator, by reason");
    describe_counter!(PUBLISHED, "Events published, by result");
    describe_histogram!(
        DISTRIBUTE_SECONDS,
        "From the request's event to the notify handed to the relay"
    );
    describe_histogram!(
        PUBLISH_SECONDS,
        "Until a published event could be read back"
    );
    describe_histogram!(QUORUM_SECONDS, "From the notify to the ack quorum");
    describe_histogram!(STORE_SECONDS, "One store transaction");
}
