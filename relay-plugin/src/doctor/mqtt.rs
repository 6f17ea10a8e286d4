//! The devices' broker: that it can be reached as configured, and lets us hear devices and answer them.

use std::time::Duration;

use keyturn_proto::Npub;

use super::{Report, Subject};
use crate::devices::mqtt::{self, Heard, ProbeError};
use crate::devices::start;

const CHECK: &str = "mqtt";
/// How long the whole visit may take.
const PATIENCE: Duration = Duration::from_secs(20);

pub(super) async fn check(subject: Subject<'_>, report: &mut Report) {
    let Some(broker) = &subject.config.mqtt.broker else {
        return;
    };
    // The session of a running relay must not be taken over.
    let options = match start::options(broker, &Npub::from_bytes([0; 32])) {
        Ok(options) => mqtt::Options {
            client_id: "keyturn-doctor".to_owned(),
            share: None,
            session_expiry: Duration::ZERO,
            ..options
        },
        Err(error) => {
            return report.fail(
                CHECK,
                error.to_string(),
                "name files that the service's user may read",
            );
        }
    };
    let address = format!("{}:{}", broker.host, broker.port);
    let filter = options.filter();
    let found = match tokio::time::timeout(PATIENCE, mqtt::probe(&options)).await {
        Ok(found) => found,
        Err(_) => Err(ProbeError::Connection("silent")),
    };
    match found {
        Ok(Heard::Itself) if broker.share.is_none() && !subject.config.cluster.siblings.is_empty() => report.warn(
            CHECK,
            format!("{address} brings every message of a device to each of the relays that cluster.siblings names"),
            "set mqtt.share to the same word on all of them",
        ),
        Ok(Heard::Itself) => report.ok(
            CHECK,
            format!("{address} lets us hear devices and answer them"),
        ),
        Ok(Heard::NotWanted) => report.ok(
            CHECK,
            format!("{address} lets us answer devices; what they say comes by the webhook"),
        ),
        Ok(Heard::NotTried) => report.warn(
            CHECK,
            format!("{address} has taken the subscription to {filter}; whether anything comes by it could not be tried"),
            "let the service's user write iot/keyturn-doctor/status, and see docs/mosquitto/acl",
        ),
        Err(ProbeError::Subscription) => report.fail(
            CHECK,
            format!("{address} does not let us read {filter}"),
            "allow the service's user to read iot/+/status and to write iot/+/command (docs/mosquitto/acl)",
        ),
        Err(ProbeError::Deaf) => report.fail(
            CHECK,
            format!("{address} has taken the subscription to {filter} and delivers nothing by it"),
            "allow the service's user to read iot/+/status (docs/mosquitto/acl)",
        ),
        Err(ProbeError::Answering) => report.fail(
            CHECK,
            format!("{address} does not let us answer devices"),
            "allow the service's user to write iot/+/command (docs/mosquitto/acl)",
        ),
        Err(ProbeError::Connection("refused")) => report.fail(
            CHECK,
            format!("{address} refuses our login"),
            "check mqtt.username, mqtt.password, mqtt.certificate_file and the broker's log",
        ),
        Err(ProbeError::Connection("tls")) => report.fail(
            CHECK,
            format!("{address}: no encrypted connection"),
            "check that mqtt.ca_file signs the broker's certificate for this name, and that the broker's CA signs mqtt.certificate_file",
        ),
        Err(ProbeError::Connection("silent" | "timeout")) => report.fail(
            CHECK,
            format!("{address} does not answer"),
            "check mqtt.url and that the broker runs",
        ),
        Err(ProbeError::Connection(why)) => report.fail(
            CHECK,
            format!("{address}: no connection ({why})"),
            "check mqtt.url and that the broker runs",
        ),
    }
}
