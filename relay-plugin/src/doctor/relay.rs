//! The relay's settings as rnostr understands them, and its directory.

use super::{Report, Subject, files};
use crate::host;

const CHECK: &str = "relay";

pub(super) fn check(subject: Subject<'_>, report: &mut Report) {
    let relay = &subject.config.relay;
    match host::check_settings(relay) {
        Ok(()) => report.ok(CHECK, "rnostr understands the settings as they are meant"),
        Err(error) => report.fail(
            CHECK,
            error.to_string(),
            "take the keys of that section back to their defaults one by one",
        ),
    }
    let directory = &relay.data_dir;
    match files::metadata(directory) {
        Ok(Some(metadata)) if metadata.is_dir() => {
            if files::mode(&metadata) & 0o022 != 0 {
                report.fail(
                    CHECK,
                    format!(
                        "relay.data_dir {} can be written by others (mode {:04o})",
                        directory.display(),
                        files::mode(&metadata)
                    ),
                    format!("chmod go-w {}", files::quoted(directory)),
                );
            } else if files::ours(CHECK, directory, &metadata, report) {
                report.ok(
                    CHECK,
                    format!("relay.data_dir {} is ours", directory.display()),
                );
            }
        }
        Ok(Some(_)) => report.fail(
            CHECK,
            format!("relay.data_dir {} is not a directory", directory.display()),
            "set relay.data_dir to a directory",
        ),
        Ok(None) => report.ok(
            CHECK,
            format!(
                "relay.data_dir {} is made at the first start",
                directory.display()
            ),
        ),
        Err(error) => report.fail(
            CHECK,
            format!(
                "relay.data_dir {} cannot be looked at: {error}",
                directory.display()
            ),
            "let the service's user into it",
        ),
    }
}
