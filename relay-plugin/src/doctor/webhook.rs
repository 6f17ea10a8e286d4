//! The listener for brokers with a certificate: that its files are there and go together.

use super::{Report, Subject};
use crate::web::CertificateDoor;

const CHECK: &str = "webhook";

pub(super) fn check(subject: Subject<'_>, report: &mut Report) {
    let Some(tls) = &subject.config.mqtt.webhook.tls else {
        return;
    };
    match CertificateDoor::examine(tls) {
        Ok(()) => report.ok(
            CHECK,
            format!(
                "brokers with a certificate for {} are heard at {}",
                tls.client_names.join(" or "),
                tls.listen
            ),
        ),
        Err(error) => report.fail(
            CHECK,
            error.to_string(),
            "name PEM files that the service's user may read: a certificate with its key, and the CAs of brokers' certificates",
        ),
    }
}
