//! This machine's clock, held against what it must lie behind: the files that were written before, and the audit trail. What the issuer's clock
//! says is compared in `issuer`.

use std::{
    path::Path,
    time::{Duration, UNIX_EPOCH},
};

use keyturn_proto::UnixMs;
use keyturn_store::store::Store;

use super::{Report, Subject, files};
use crate::config::{self, Mac};

const CHECK: &str = "clock";
/// 2026-01-01: no right clock is behind this program.
const EARLIEST: UnixMs = UnixMs(1_767_225_600_000);
/// File systems of other machines have clocks of their own.
const SLACK: Duration = Duration::from_secs(60);
const MEND: &str = "set the clock, and keep it: timedatectl set-ntp true";

pub(super) fn check(subject: Subject<'_>, report: &mut Report) {
    if subject.now < EARLIEST {
        return report.fail(CHECK, "the clock is before 2026", MEND);
    }
    let mut files: Vec<&Path> = vec![subject.path, &subject.config.mls.database];
    if let config::Store::Sqlite { path } = &subject.config.store {
        files.push(path);
    }
    if let Mac::Local { key_file, .. } = &subject.config.mac {
        files.push(key_file);
    }
    let before = report.findings.len();
    for file in files {
        let Some(written) = modified(file) else {
            continue;
        };
        let ahead = written.since(subject.now);
        if ahead > SLACK {
            report.fail(
                CHECK,
                format!(
                    "{} was written {} in the future: the clock was set back",
                    file.display(),
                    rounded(ahead)
                ),
                MEND,
            );
        }
    }
    if report.clean_since(before) {
        report.ok(CHECK, "the clock is not behind the files");
    }
}

/// Windows, deadlines and uses of proofs are judged by time: what was recorded must not lie ahead.
pub(super) async fn check_trail(subject: Subject<'_>, store: &dyn Store, report: &mut Report) {
    // A trail that cannot be read is the store's finding.
    let Ok(newest) = store.read(None, 1).await else {
        return;
    };
    let ahead = newest.last().map(|record| record.at.since(subject.now));
    if let Some(ahead) = ahead.filter(|ahead| *ahead > SLACK) {
        report.fail(
            CHECK,
            format!(
                "the newest audit record lies {} in the future: the clock was set back",
                rounded(ahead)
            ),
            MEND,
        );
    }
}

fn modified(file: &Path) -> Option<UnixMs> {
    let written = files::metadata(file).ok()??.modified().ok()?;
    let since = written.duration_since(UNIX_EPOCH).ok()?;
    u64::try_from(since.as_millis()).ok().map(UnixMs)
}

fn rounded(by: Duration) -> humantime::FormattedDuration {
    humantime::format_duration(Duration::from_secs(by.as_secs()))
}
