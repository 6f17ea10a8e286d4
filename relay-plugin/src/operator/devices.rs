//! The allow-list of devices.

use std::collections::BTreeSet;
use std::io::BufRead;

use keyturn_proto::UnixMs;
use keyturn_proto::device::{DeviceId, IdentityKey, SealingKey, Suite};
use keyturn_store::devices::{
    Answer, Change, DeviceDoc, DeviceOptions, DevicePolicy, DeviceState, DeviceStore, Sealing,
};
use serde::{Deserialize, Serialize};

use super::OperatorError;
use crate::devices::issuer::RoleName;

/// Most devices read from the store at once.
const PAGE: usize = 500;
/// Longest line of an import.
const MAX_LINE: usize = 16 * 1024;

/// A device as an operator writes it down: one line of an import, in JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Its id.
    pub device_id: DeviceId,
    /// Its AppRole role.
    pub role: String,
    /// Its Ed25519 public key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity_key: Option<IdentityKey>,
    /// Its X25519 public key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealing_key: Option<SealingKey>,
    /// Cipher of sealed commands.
    #[serde(default)]
    pub suite: Suite,
    /// Whether the broker keeps sealed commands for it.
    #[serde(default)]
    pub retain: bool,
    /// `on_demand` or `scheduled`.
    #[serde(default)]
    pub policy: DevicePolicy,
}

/// A device as listed: accessors and times, never anything that opens something.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct DeviceView {
    /// As it would be imported.
    #[serde(flatten)]
    pub entry: Entry,
    /// Allowed or denied.
    pub state: DeviceState,
    /// Accessor of the secret_id in use.
    pub accessor: Option<String>,
    /// Whether the device proved that it holds it.
    pub proven: Option<bool>,
    /// When that was issued.
    pub issued_at: Option<UnixMs>,
    /// When it ends.
    pub expires_at: Option<UnixMs>,
    /// Issues so far.
    pub issues: u64,
    /// secret_ids that wait for their destruction, or are looked for.
    pub to_destroy: usize,
    /// Other issuers than the one in the configuration that alone can destroy some of these.
    pub another_issuer: Vec<String>,
}

/// Puts a device on the list, or changes it. Whether anything changed.
///
/// # Errors
/// [`OperatorError::Device`] for a wrong role or contradictory options; the store's.
pub async fn allow(
    store: &dyn DeviceStore,
    entry: Entry,
    now: UnixMs,
) -> Result<bool, OperatorError> {
    let Entry {
        device_id,
        role,
        identity_key,
        sealing_key,
        suite,
        retain,
        policy,
    } = entry;
    let role = role
        .parse::<RoleName>()
        .map_err(|error| OperatorError::Device {
            device: device_id.to_string(),
            reason: format!("role: {error}"),
        })?;
    if retain && sealing_key.is_none() {
        return Err(OperatorError::Device {
            device: device_id.to_string(),
            reason: "only sealed commands may be retained; give a sealing key".to_owned(),
        });
    }
    let options = DeviceOptions {
        sealing: sealing_key.map(|key| Sealing { key, suite, retain }),
        identity_key,
        policy,
    };
    let change = Change::Allow {
        role: role.as_str().to_owned(),
        options,
    };
    let answer = store.change_device(&device_id, change, now).await?;
    Ok(matches!(answer, Answer::Done(_)))
}

/// Takes a device off the list; what it holds is destroyed by the relay. Whether anything changed.
///
/// # Errors
/// [`OperatorError::Unknown`]; the store's.
pub async fn deny(
    store: &dyn DeviceStore,
    device: &DeviceId,
    now: UnixMs,
) -> Result<bool, OperatorError> {
    match store.change_device(device, Change::Deny, now).await? {
        Answer::NotAllowed => Err(OperatorError::Unknown {
            what: "device",
            name: device.to_string(),
        }),
        answer => Ok(matches!(answer, Answer::Done(_))),
    }
}

/// Which devices an operator means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    /// This one.
    One(DeviceId),
    /// Those of a role.
    OfRole(String),
    /// All of them.
    All,
}

/// Has everything destroyed that these devices hold; they stay on the list and ask again. How many held something.
///
/// # Errors
/// [`OperatorError::Unknown`] for one device that is not known; the store's.
pub async fn invalidate(
    store: &dyn DeviceStore,
    which: &Which,
    now: UnixMs,
) -> Result<usize, OperatorError> {
    if let Which::One(device) = which {
        return match store.change_device(device, Change::Invalidate, now).await? {
            Answer::NotAllowed => Err(OperatorError::Unknown {
                what: "device",
                name: device.to_string(),
            }),
            answer => Ok(usize::from(matches!(answer, Answer::Done(_)))),
        };
    }
    let (mut after, mut count) = (None, 0);
    loop {
        let page = store.devices(after.as_ref(), PAGE).await?;
        for doc in &page {
            let meant = match which {
                Which::One(device) => doc.device_id == *device,
                Which::OfRole(role) => doc.role == *role,
                Which::All => true,
            };
            if meant {
                let change = Change::Invalidate;
                let answer = store.change_device(&doc.device_id, change, now).await?;
                count += usize::from(matches!(answer, Answer::Done(_)));
            }
        }
        match page.last() {
            Some(last) if page.len() == PAGE => after = Some(last.device_id.clone()),
            _ => return Ok(count),
        }
    }
}

/// What an import did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Imported {
    /// Lines that changed something.
    pub changed: usize,
    /// Lines that were so already.
    pub unchanged: usize,
}

/// What a listed device has beside its entry: an import takes a list as it is.
const LISTED: [&str; 8] = [
    "state",
    "accessor",
    "proven",
    "issued_at",
    "expires_at",
    "issues",
    "to_destroy",
    "another_issuer",
];

/// One line of an import. Why not, without repeating the line.
fn entry(line: &str) -> Result<Entry, String> {
    let mut fields: serde_json::Map<String, serde_json::Value> =
        serde_json::from_str(line).map_err(|error| error.to_string())?;
    if fields.get("state").is_some_and(|state| state == "denied") {
        return Err("the device is denied; leave it out".to_owned());
    }
    for listed in LISTED {
        fields.remove(listed);
    }
    let entry: Entry = serde_json::from_value(fields.into()).map_err(|error| error.to_string())?;
    entry
        .role
        .parse::<RoleName>()
        .map_err(|error| format!("role: {error}"))?;
    if entry.retain && entry.sealing_key.is_none() {
        return Err("only sealed commands may be retained; give a sealing key".to_owned());
    }
    Ok(entry)
}

/// Allows every device of a file of JSON lines. All lines are read before the first one is carried out, so that a typing error changes nothing.
///
/// # Errors
/// [`OperatorError::Import`] with the line; the store's.
pub async fn import(
    store: &dyn DeviceStore,
    source: impl BufRead,
    now: UnixMs,
) -> Result<Imported, OperatorError> {
    let mut entries = Vec::new();
    for (at, line) in source.lines().enumerate() {
        let wrong = |reason: String| OperatorError::Import {
            line: at + 1,
            reason,
        };
        let line = line.map_err(|error| wrong(error.to_string()))?;
        if line.len() > MAX_LINE {
            return Err(wrong("is too long".to_owned()));
        }
        if line.trim().is_empty() {
            continue;
        }
        entries.push(entry(&line).map_err(wrong)?);
    }
    let mut imported = Imported::default();
    for entry in entries {
        if allow(store, entry, now).await? {
            imported.changed += 1;
        } else {
            imported.unchanged += 1;
        }
    }
    Ok(imported)
}

/// Every device, in id order. `issuer` is what the issuer in the configuration calls itself.
///
/// # Errors
/// The store's.
pub async fn list(
    store: &dyn DeviceStore,
    issuer: Option<&str>,
) -> Result<Vec<DeviceView>, OperatorError> {
    let mut views: Vec<DeviceView> = Vec::new();
    loop {
        let after = views.last().map(|view| view.entry.device_id.clone());
        let page = store.devices(after.as_ref(), PAGE).await?;
        let last = page.len() < PAGE;
        views.extend(page.into_iter().map(|doc| view(doc, issuer)));
        if last {
            return Ok(views);
        }
    }
}

fn view(doc: DeviceDoc, issuer: Option<&str>) -> DeviceView {
    let doomed = doc.doomed.iter().filter_map(|it| it.issuer.as_deref());
    let unresolved = doc.unresolved.iter().filter_map(|it| it.issuer.as_deref());
    let others: BTreeSet<&str> = doomed
        .chain(unresolved)
        .filter(|made_by| Some(*made_by) != issuer)
        .collect();
    let another_issuer = others.into_iter().map(str::to_owned).collect();
    let (sealing, current) = (doc.options.sealing, doc.current);
    DeviceView {
        state: doc.state,
        proven: current.as_ref().map(|held| held.proven),
        issued_at: current.as_ref().map(|held| held.issued_at),
        expires_at: current.as_ref().map(|held| held.expires_at),
        accessor: current.map(|held| held.accessor),
        issues: doc.attempts,
        to_destroy: doc.doomed.len() + doc.unresolved.len(),
        another_issuer,
        entry: Entry {
            device_id: doc.device_id,
            role: doc.role,
            identity_key: doc.options.identity_key,
            suite: sealing.as_ref().map(|s| s.suite).unwrap_or_default(),
            retain: sealing.as_ref().is_some_and(|s| s.retain),
            sealing_key: sealing.map(|s| s.key),
            policy: doc.options.policy,
        },
    }
}
