//! The MAC key in Cloud KMS: which of its versions are in use, which may go, and which are in a state that they must not be in.
//!
//! Listing versions needs a right that the relay itself does not need; without it the rest is looked at all the same.

use keyturn_store::mac::{
    CloudKmsKey, MacError, MacKey as _,
    cloud_kms::{InspectError, KeyName, KeyVersion, VersionState},
    probe::ProbeError,
};

use super::{
    Report,
    mac::{CHECK, Usage},
};

const WAIT: &str = "docs/operations.md, \"New pepper\", says what to wait for";
const REVIVE: &str = "enable it again, or rotate these clients by emergency";

pub(super) async fn versions(
    service: &CloudKmsKey,
    usage: Option<&Usage<'_>>,
    report: &mut Report,
) {
    for key in service.keys() {
        purpose(service, key, report).await;
        match service.versions(key).await {
            Ok(versions) => listed(service, key, &versions, usage, report),
            Err(error) => {
                let mend = match &error {
                    InspectError::Denied { .. } => grant(key, "roles/cloudkms.viewer", "USER"),
                    InspectError::NotFound => absent(key),
                    InspectError::Failed(error) => mend(error, key),
                };
                report.warn(
                    CHECK,
                    format!("the versions of {key} cannot be listed, so their states are not known: {error}"),
                    mend,
                );
                counted(service, key, usage, report);
            }
        }
    }
}

/// A missing right to look is no finding of its own: the one about listing says it.
async fn purpose(service: &CloudKmsKey, key: &KeyName, report: &mut Report) {
    if let Ok(false) = service.is_for_macs(key).await {
        let [project, location, ring, _] = key.parts();
        report.fail(
            CHECK,
            format!("{key} is not a key for MACs"),
            format!(
                "make one, and set mac.key to it: gcloud kms keys create NAME --keyring {ring} --location {location} --project {project} --purpose mac --default-algorithm hmac-sha256 --protection-level hsm"
            ),
        );
    }
}

fn absent(key: &KeyName) -> String {
    let [project, location, ring, name] = key.parts();
    format!(
        "set mac.key to a key that exists, or make it: gcloud kms keyrings create {ring} --location {location} --project {project}; gcloud kms keys create {name} --keyring {ring} --location {location} --project {project} --purpose mac --default-algorithm hmac-sha256 --protection-level hsm"
    )
}

/// What can be said without the states.
fn counted(service: &CloudKmsKey, key: &KeyName, usage: Option<&Usage<'_>>, report: &mut Report) {
    for (key_ref, used) in usage.into_iter().flatten() {
        if key.version_of(key_ref).is_some() {
            report.ok(CHECK, format!("{key_ref} hashed {}", used.counts()));
        }
    }
    let primary = service.primary_ref();
    let unused = usage.is_some_and(|usage| !usage.contains_key(primary.as_str()));
    if unused && key.version_of(&primary).is_some() {
        report.ok(CHECK, format!("{primary} makes new hashes; none lives yet"));
    }
}

fn listed(
    service: &CloudKmsKey,
    key: &KeyName,
    versions: &[KeyVersion],
    usage: Option<&Usage<'_>>,
    report: &mut Report,
) {
    let primary = key.version_of(&service.primary_ref());
    for version in versions {
        let place = match primary {
            Some(primary) if version.number == primary => Place::Primary,
            Some(primary) if version.number > primary => Place::Newer,
            _ => Place::Older,
        };
        one(key, version, place, usage, report);
    }
    let exists = |number| versions.iter().any(|version| version.number == number);
    if let Some(number) = primary.filter(|number| !exists(*number)) {
        report.fail(
            CHECK,
            format!("mac.version is {number}, and {key} has no such version"),
            "set mac.version to a version that exists",
        );
    }
    for (key_ref, used) in usage.into_iter().flatten() {
        if key
            .version_of(key_ref)
            .is_some_and(|number| !exists(number))
        {
            report.fail(
                CHECK,
                format!("{key_ref} hashed {} and does not exist", used.counts()),
                "look for the store that belongs to this key; if there is none, rotate these clients by emergency",
            );
        }
    }
}

/// A version, seen from the one that makes new hashes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Primary,
    Newer,
    /// Or of an earlier key.
    Older,
}

fn one(
    key: &KeyName,
    version: &KeyVersion,
    place: Place,
    usage: Option<&Usage<'_>>,
    report: &mut Report,
) {
    let KeyVersion {
        number,
        state,
        hmac_sha256,
        protection,
    } = version;
    let key_ref = key.version(*number);
    let shown = format!("{key_ref} ({}, {})", state.word(), protection.word());
    let used = usage.and_then(|usage| usage.get(key_ref.as_str()));
    if (place == Place::Primary || used.is_some()) && !hmac_sha256 {
        report.fail(
            CHECK,
            format!("{shown} is not one for HMAC_SHA256"),
            "set mac.version to a version with the algorithm HMAC_SHA256",
        );
    }
    let usable = *state == VersionState::Enabled;
    if place == Place::Primary && !usable {
        let revive = revive(key, version);
        report.fail(
            CHECK,
            format!("{shown} should make new hashes: nothing can be rotated"),
            format!("set mac.version to an enabled version, or: {revive}"),
        );
    }
    match used {
        Some(used) if usable => report.ok(CHECK, format!("{shown} hashed {}", used.counts())),
        Some(used) => {
            let (counts, revive) = (used.counts(), revive(key, version));
            report.fail(
                CHECK,
                format!("{shown} hashed {counts}, which nobody can verify now"),
                format!("{REVIVE}: {revive}"),
            );
        }
        None => unused(key, version, place, &shown, usage, report),
    }
}

/// Says what can be done with a version that hashed nothing alive, as far as that is known.
fn unused(
    key: &KeyName,
    version: &KeyVersion,
    place: Place,
    shown: &str,
    usage: Option<&Usage<'_>>,
    report: &mut Report,
) {
    let gone = [VersionState::DestroyScheduled, VersionState::Destroyed].contains(&version.state);
    let Some(usage) = usage.filter(|_| !gone) else {
        return;
    };
    match place {
        Place::Primary => report.ok(CHECK, format!("{shown} makes new hashes; none lives yet")),
        Place::Newer => report.ok(
            CHECK,
            format!(
                "{shown} is not used yet: it makes new hashes once mac.version is {}",
                version.number
            ),
        ),
        // A store without any secret is more likely a new or the wrong one than a reason to destroy something.
        Place::Older if usage.is_empty() => {}
        Place::Older => {
            let destroy = gcloud(key, "destroy", version);
            report.ok(
                CHECK,
                format!("{shown} is used by no living version of this store and may be destroyed: {destroy} ({WAIT})"),
            );
        }
    }
}

fn revive(key: &KeyName, version: &KeyVersion) -> String {
    match version.state {
        VersionState::DestroyScheduled => format!(
            "{} and then {}",
            gcloud(key, "restore", version),
            gcloud(key, "enable", version)
        ),
        VersionState::Destroyed => "it is destroyed and cannot come back".to_owned(),
        _ => gcloud(key, "enable", version),
    }
}

fn gcloud(key: &KeyName, verb: &str, version: &KeyVersion) -> String {
    let [project, location, ring, name] = key.parts();
    format!(
        "gcloud kms keys versions {verb} {} --key {name} --keyring {ring} --location {location} --project {project}",
        version.number
    )
}

fn grant(key: &KeyName, role: &str, member: &str) -> String {
    let [project, location, ring, name] = key.parts();
    format!(
        "gcloud kms keys add-iam-policy-binding {name} --keyring {ring} --location {location} --project {project} --member {member} --role {role}"
    )
}

/// How to mend a probe that failed.
pub(super) fn mend_probe(error: &ProbeError, service: &CloudKmsKey) -> String {
    let key = service.keys().next();
    match (error, key) {
        (ProbeError::Sign(error) | ProbeError::Verify(error), Some(key)) => mend(error, key),
        (ProbeError::Random, _) => "look at the operating system".to_owned(),
        _ => "trust nothing that answers under mac.endpoint, and look who it is".to_owned(),
    }
}

/// How to mend a version that cannot verify.
pub(super) fn mend_verify(error: &MacError, service: &CloudKmsKey) -> String {
    match service.keys().next() {
        Some(key) => mend(error, key),
        None => REVIVE.to_owned(),
    }
}

fn mend(error: &MacError, key: &KeyName) -> String {
    match error {
        MacError::Denied { .. } => format!(
            "let doctor run with the relay's own credentials; if it does: {}",
            grant(
                key,
                "roles/cloudkms.signerVerifier",
                "serviceAccount:RELAY"
            )
        ),
        MacError::UnknownKey(name) if name.starts_with("projects/") => {
            "name its key in mac.previous_keys, if it is yours".to_owned()
        }
        MacError::UnknownKey(_) => "name its file in mac.previous_key_files".to_owned(),
        MacError::MalformedHash => {
            "restore the latest backup of the store (docs/operations.md, \"Backup\")".to_owned()
        }
        MacError::Integrity(_) => {
            "look at what lies between here and the service: a proxy changes what passes".to_owned()
        }
        MacError::Unavailable {
            retryable: true, ..
        } => "look at the network, at mac.endpoint, and at the quota of the project; then try again"
            .to_owned(),
        MacError::Unavailable { .. } => {
            "look at the credentials (GOOGLE_APPLICATION_CREDENTIALS), at mac.key, and at the state of the version"
                .to_owned()
        }
    }
}
