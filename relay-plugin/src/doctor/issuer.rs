//! The issuer of proofs: its keys can be had and used, and its clock agrees with ours.

use std::time::{Duration, Instant};

use keyturn_proto::UnixMs;

use super::{Report, Subject, files};
use crate::admission::{
    IssuerReport, JwksError, Settings, examine_issuer,
    settings::{IssuerSettings, JwksSource},
};

const CHECK: &str = "issuer";
/// Most keys named in one finding; an issuer can publish a hundred.
const NAMED: usize = 8;
/// The `Date` header has whole seconds.
const RESOLUTION: Duration = Duration::from_secs(1);

pub(super) async fn check(subject: Subject<'_>, report: &mut Report) {
    let settings = match Settings::from_config(subject.config) {
        Ok(settings) => settings.issuer,
        Err(error) => return report.fail("config", error.to_string(), "mend that key"),
    };
    let asked = Instant::now();
    let answer = examine_issuer(&settings).await;
    let took = asked.elapsed();
    let found = match answer {
        Ok(found) => found,
        Err(error) => return unusable(&settings, &error, report),
    };
    keys(&settings, &found, report);
    match &settings.jwks {
        JwksSource::Url(_) => {
            let now = UnixMs(subject.now.0.saturating_add(millis(asked.elapsed())));
            date(&settings, &found, now, took, report);
        }
        JwksSource::File(path) => writable(path, report),
    }
}

fn unusable(settings: &IssuerSettings, error: &JwksError, report: &mut Report) {
    let mend = match (&settings.jwks, error) {
        (_, JwksError::Unusable(_)) => {
            "have the issuer publish its RSA (2048 bits or more), P-256 or Ed25519 keys, with kid"
                .to_owned()
        }
        (JwksSource::Url(url), _) => format!(
            "see what this machine gets: curl -sS --max-time {} '{}'",
            settings.fetch_timeout.as_secs().max(1),
            url.replace('\'', "%27")
        ),
        (JwksSource::File(path), _) => format!(
            "put the issuer's key set into {}, readable by the service's user",
            files::quoted(path)
        ),
    };
    report.fail(CHECK, error.to_string(), mend);
}

fn keys(settings: &IssuerSettings, found: &IssuerReport, report: &mut Report) {
    let accepted = |algorithm| settings.algorithms.contains(&algorithm);
    let (usable, idle): (Vec<_>, Vec<_>) = found
        .keys
        .iter()
        .partition(|(_, algorithm)| accepted(*algorithm));
    let named = |keys: &[&(String, _)]| {
        let shown: Vec<String> = keys
            .iter()
            .take(NAMED)
            .map(
                |(kid, algorithm): &&(String, crate::admission::settings::ProofAlgorithm)| {
                    // The issuer's own text: quoted, so that it cannot pass for something else.
                    format!("{kid:?} ({})", algorithm.jose())
                },
            )
            .collect();
        shown.join(", ")
    };
    if usable.is_empty() {
        report.fail(
            CHECK,
            format!(
                "none of its keys is for an algorithm in issuer.algorithms; it has {}",
                named(&idle)
            ),
            "add the algorithm to issuer.algorithms, or have the issuer sign with another",
        );
    } else {
        report.ok(
            CHECK,
            format!("{} usable keys: {}", usable.len(), named(&usable)),
        );
        if !idle.is_empty() {
            report.warn(
                CHECK,
                format!("keys that issuer.algorithms leaves out: {}", named(&idle)),
                "add their algorithm to issuer.algorithms if proofs are signed with them",
            );
        }
    }
    if !found.left_out.is_empty() {
        let mut why = found.left_out.clone();
        why.sort_unstable();
        why.dedup();
        report.warn(
            CHECK,
            format!(
                "{} keys cannot be used: {}",
                found.left_out.len(),
                why.join("; ")
            ),
            "nothing, unless proofs are signed with one of them",
        );
    }
}

/// Proofs carry the issuer's time and are judged by ours.
fn date(
    settings: &IssuerSettings,
    found: &IssuerReport,
    now: UnixMs,
    took: Duration,
    report: &mut Report,
) {
    let told = found
        .date
        .as_deref()
        .and_then(|date| httpdate::parse_http_date(date).ok());
    let told = told.and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok());
    let Some(told) = told else {
        return report.warn(
            CHECK,
            "its answer has no usable Date header, so the clocks were not compared",
            "compare them by hand: date -u, here and there",
        );
    };
    let told = UnixMs(millis(told));
    let (ahead, behind) = (told.since(now), now.since(told));
    let skew = ahead.max(behind);
    let slack = settings.leeway + RESOLUTION + took;
    let rounded = humantime::format_duration(Duration::from_secs(skew.as_secs()));
    if skew <= slack {
        return report.ok(CHECK, "its clock agrees with ours");
    }
    let direction = if ahead > behind { "ahead of" } else { "behind" };
    report.fail(
        CHECK,
        format!(
            "its clock is {rounded} {direction} ours, more than issuer.leeway allows: proofs are refused"
        ),
        "set this machine's clock (timedatectl set-ntp true), or the issuer's",
    );
}

/// Whoever can write the file can make proofs.
fn writable(path: &std::path::Path, report: &mut Report) {
    let Ok(Some(metadata)) = files::metadata(path) else {
        return;
    };
    let mode = files::mode(&metadata);
    if mode & 0o022 != 0 {
        report.fail(
            CHECK,
            format!(
                "{} has mode {mode:04o}: whoever writes it can make proofs",
                path.display()
            ),
            format!("chmod go-w {}", files::quoted(path)),
        );
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
