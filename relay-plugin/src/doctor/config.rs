//! The configuration file: who may read and write it, and whether production is meant.

use std::{fs, net::IpAddr, path::Path, time::Duration};

use super::{Report, Subject, files};
use crate::config::{JwksSource, Profile, SecretRef, ValidatedConfig};

const CHECK: &str = "config";

pub(super) fn check(subject: Subject<'_>, report: &mut Report) {
    report.ok(CHECK, format!("{} loads", subject.path.display()));
    permissions(subject, report);
    match subject.config.profile {
        Profile::Production => production(subject.config, report),
        Profile::Development => report.warn(
            CHECK,
            "profile.environment is \"development\": proofs, delays and acks that prove less are accepted",
            "set profile.environment = \"production\" before it guards secrets that matter",
        ),
    }
}

fn permissions(subject: Subject<'_>, report: &mut Report) {
    let path = subject.path;
    let Ok(Some(metadata)) = files::metadata(path) else {
        return;
    };
    let mode = files::mode(&metadata);
    if mode & 0o022 != 0 {
        report.fail(
            CHECK,
            format!(
                "{} has mode {mode:04o}: others can name another issuer in it",
                path.display()
            ),
            format!("chmod go-w {}", files::quoted(path)),
        );
    }
    if mode & 0o044 != 0 && holds_secrets(path, subject.config) {
        report.fail(
            CHECK,
            format!(
                "{} has mode {mode:04o} and holds secret values itself",
                path.display()
            ),
            format!(
                "{}; better: *_file keys, each naming a file of mode 0600",
                files::chmod_600(path)
            ),
        );
    }
}

/// Every secret that the configuration names.
pub(super) fn secrets(config: &ValidatedConfig) -> [&SecretRef; 4] {
    [
        &config.mls.storage_key,
        &config.mls.nostr_secret_key,
        &config.admission.challenge_key,
        &config.admission.totp_seed_key,
    ]
}

/// Whether the file itself holds one, rather than a variable of this process.
fn holds_secrets(path: &Path, config: &ValidatedConfig) -> bool {
    let Ok(text) = fs::read_to_string(path).map(zeroize::Zeroizing::new) else {
        return false;
    };
    let Ok(root) = text.parse::<toml::Table>() else {
        return false;
    };
    let written = |key: &str| {
        let (section, field) = key.split_once('.').unwrap_or((key, ""));
        let section = root.get(section).and_then(toml::Value::as_table);
        section.is_some_and(|section| section.contains_key(field))
    };
    secrets(config)
        .iter()
        .any(|secret| secret.path().is_none() && written(secret.key()))
}

/// Values that pass the rules and still look like a trial.
fn production(config: &ValidatedConfig, report: &mut Report) {
    let before = report.findings.len();
    for relay in &config.mls.relays {
        if relay.starts_with("ws://") || is_local(host_of(relay)) || is_example(host_of(relay)) {
            report.warn(
                CHECK,
                format!("mls.relays names {relay}, which admins cannot reach safely from outside"),
                "name the wss:// address that your TLS proxy serves",
            );
        }
    }
    if let JwksSource::Url(url) = &config.issuer.jwks
        && is_example(host_of(url))
    {
        report.fail(
            CHECK,
            format!("issuer.jwks_url is still the example's: {url}"),
            "set issuer.jwks_url to your issuer's JWKS",
        );
    }
    if config.issuer.issuer.is_none() {
        report.warn(
            CHECK,
            "issuer.issuer is not set: proofs of every issuer that uses these keys are accepted",
            "set issuer.issuer to the `iss` of your issuer",
        );
    }
    let minute = Duration::from_secs(60);
    for (key, value) in [
        (
            "policy.min_not_before_delay",
            config.policy.min_not_before_delay,
        ),
        ("policy.ack_deadline", config.policy.ack_deadline),
        ("policy.min_interval", config.policy.min_interval),
    ] {
        if value < minute {
            let value = humantime::format_duration(value);
            report.warn(
                CHECK,
                format!("{key} is {value}, as in a trial"),
                format!("take {key} out of the configuration for its default"),
            );
        }
    }
    let level = config.log.level.to_ascii_lowercase();
    if level.contains("debug") || level.contains("trace") {
        report.warn(
            CHECK,
            format!(
                "log.level is {:?}: many lines for each event",
                config.log.level
            ),
            "set log.level = \"info\"",
        );
    }
    if !config.web.listen.ip().is_loopback() {
        report.warn(
            CHECK,
            format!(
                "web.listen is {}: /metrics can be read from the network",
                config.web.listen
            ),
            "set web.listen to a loopback address, and let the proxy pass on /kr/v1/challenge only",
        );
    }
    if !config.relay.host.is_loopback() {
        report.warn(
            CHECK,
            format!(
                "relay.host is {}: the relay speaks no TLS",
                config.relay.host
            ),
            "set relay.host = \"127.0.0.1\" and put a TLS proxy in front of it",
        );
    }
    if report.clean_since(before) {
        report.ok(CHECK, "the profile is production, and the values suit it");
    }
}

fn host_of(address: &str) -> &str {
    let rest = address.split_once("://").map_or(address, |(_, rest)| rest);
    let authority = rest.split(['/', '?', '#']).next().unwrap_or(rest);
    match authority.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or(v6),
        None => authority
            .rsplit_once(':')
            .map_or(authority, |(host, _)| host),
    }
}

fn is_local(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// RFC 2606.
fn is_example(host: &str) -> bool {
    ["example.org", "example.com", "example.net"]
        .iter()
        .any(|name| host == *name || host.ends_with(&format!(".{name}")))
        || host.ends_with(".example")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_found_and_judged() {
        for (address, host) in [
            ("wss://relay.example.org", "relay.example.org"),
            ("ws://127.0.0.1:8080/x", "127.0.0.1"),
            ("ws://[::1]:80", "::1"),
            ("https://a.b:443?x#y", "a.b"),
        ] {
            assert_eq!(host_of(address), host);
        }
        assert!(is_local("localhost") && is_local("::1") && !is_local("relay.org"));
        assert!(is_example("auth.example.org") && is_example("example.com"));
        assert!(!is_example("notexample.org"));
    }
}
