//! The devices' broker: that it can be reached as configured, and lets us read what devices say.

use std::time::Duration;

use keyturn_proto::Npub;

use super::{Report, Subject};
use crate::devices::{mqtt, start};

const CHECK: &str = "mqtt";
/// How long the broker may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

pub(super) async fn check(subject: Subject<'_>, report: &mut Report) {
    let Some(broker) = &subject.config.mqtt.broker else {
        return;
    };
    // The session of a running relay must not be taken over.
    let options = match start::options(broker, &Npub::from_bytes([0; 32])) {
        Ok(options) => mqtt::Options {
            client_id: "keyturn-doctor".to_owned(),
            share: None,
            subscribe: true,
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
    match tokio::time::timeout(PATIENCE, mqtt::probe(&options)).await {
        Ok(Ok(())) => report.ok(CHECK, format!("{address} lets us read the devices' messages")),
        Ok(Err(mqtt::ProbeError::Subscription)) => report.fail(
            CHECK,
            format!("{address} does not let us read {}", options.filter()),
            "allow the service's user to read iot/+/status and to write iot/+/command (docs/devices.md)",
        ),
        Ok(Err(mqtt::ProbeError::Connection("refused"))) => report.fail(
            CHECK,
            format!("{address} refuses our login"),
            "check mqtt.username, mqtt.password and the broker's log",
        ),
        Ok(Err(mqtt::ProbeError::Connection(why))) => report.fail(
            CHECK,
            format!("{address}: no connection ({why})"),
            "check mqtt.url, mqtt.ca_file and that the broker runs",
        ),
        Err(_) => report.fail(
            CHECK,
            format!("{address} does not answer"),
            "check mqtt.url and that the broker runs",
        ),
    }
}
