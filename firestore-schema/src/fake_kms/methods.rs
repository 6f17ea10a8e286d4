//! The methods: cloud.google.com/kms/docs/reference/rest/v1/projects.locations.keyRings.cryptoKeys.cryptoKeyVersions.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::{Method as Http, Uri};
use serde_json::{Value, json};

use super::keys::{Key, Purpose, State, Version};
use super::{Failure, Held, Method};

const VERSIONS: &str = "/cryptoKeyVersions";
/// Google's largest payload for MACs.
const MAX_DATA: usize = 64 * 1024;

/// A call as its path and query name it.
pub(super) struct Call {
    pub(super) method: Method,
    /// The key, or the key version.
    name: String,
    numbers: bool,
    page_size: Option<usize>,
    page_token: usize,
}

/// Status and body.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Value,
}

impl Call {
    pub(super) fn parse(http: &Http, uri: &Uri) -> Option<Self> {
        let path = uri.path().strip_prefix("/v1/")?;
        let query = |wanted: &str| {
            let pairs = uri.query().unwrap_or_default().split('&');
            let mut found = pairs.filter_map(|pair| pair.split_once('='));
            found.find_map(|(name, value)| (name == wanted).then_some(value))
        };
        let (method, name) = match (http, path.rsplit_once(':')) {
            (&Http::POST, Some((name, "macSign"))) => (Method::Sign, name),
            (&Http::POST, Some((name, "macVerify"))) => (Method::Verify, name),
            (&Http::GET, _) => match path.strip_suffix(VERSIONS) {
                Some(key) => (Method::ListVersions, key),
                None => (Method::GetKey, path),
            },
            _ => return None,
        };
        Some(Self {
            method,
            name: name.to_owned(),
            // The client asks for enums as numbers.
            numbers: uri.query().unwrap_or_default().contains("enum-encoding"),
            page_size: query("pageSize").and_then(|size| size.parse().ok()),
            page_token: query("pageToken")
                .and_then(|token| token.parse().ok())
                .unwrap_or(0),
        })
    }

    const fn permission(&self) -> &'static str {
        match self.method {
            Method::Sign => "cloudkms.cryptoKeyVersions.useToSign",
            Method::Verify => "cloudkms.cryptoKeyVersions.useToVerify",
            Method::GetKey => "cloudkms.cryptoKeys.get",
            Method::ListVersions => "cloudkms.cryptoKeyVersions.list",
        }
    }

    fn enumerated(&self, (name, number): (&'static str, i32)) -> Value {
        if self.numbers {
            number.into()
        } else {
            name.into()
        }
    }
}

/// google.rpc.Status as HTTP carries it.
pub(super) fn error(status: u16, code: &str, message: &str, retry: Option<Duration>) -> Answer {
    let details: Vec<Value> = retry
        .map(|delay| {
            json!({ "@type": "type.googleapis.com/google.rpc.RetryInfo",
                    "retryDelay": format!("{}s", delay.as_secs_f64()) })
        })
        .into_iter()
        .collect();
    let body = json!({ "error": { "code": status, "message": message, "status": code,
                                  "details": details } });
    Answer { status, body }
}

pub(super) fn carry_out(
    call: &Call,
    body: &[u8],
    failure: Option<&Failure>,
    held: &mut Held,
) -> Answer {
    if matches!(call.method, Method::Sign | Method::Verify) {
        held.asked.push(call.name.clone());
    }
    let permission = call.permission();
    if held.denied.contains(permission) {
        let name = &call.name;
        let message =
            format!("Permission '{permission}' denied on resource '{name}' (or it may not exist).");
        return error(403, "PERMISSION_DENIED", &message, None);
    }
    let done = match call.method {
        Method::GetKey => held.keys.get(&call.name).map(|key| get(call, key)),
        Method::ListVersions => held.keys.get(&call.name).map(|key| list(call, key)),
        Method::Sign | Method::Verify => version(held, &call.name)
            .map(|(key, version)| compute(call, key, version, body, failure)),
    };
    done.unwrap_or_else(|| error(404, "NOT_FOUND", "the resource was not found", None))
}

fn version<'a>(held: &'a Held, name: &str) -> Option<(&'a Key, &'a Version)> {
    let (key, number) = name.split_once("/cryptoKeyVersions/")?;
    let key = held.keys.get(key)?;
    Some((key, key.version(number.parse().ok()?)?))
}

fn get(call: &Call, key: &Key) -> Answer {
    let body = json!({ "name": call.name, "purpose": call.enumerated(key.purpose.wire()) });
    Answer { status: 200, body }
}

fn list(call: &Call, key: &Key) -> Answer {
    let size = call
        .page_size
        .filter(|size| *size > 0)
        .unwrap_or(100)
        .min(1000);
    let page = key
        .versions
        .iter()
        .enumerate()
        .skip(call.page_token)
        .take(size);
    let versions: Vec<Value> = page
        .map(|(index, version)| {
            json!({
                "name": format!("{}/cryptoKeyVersions/{}", call.name, index + 1),
                "state": call.enumerated(version.state.wire()),
                "protectionLevel": call.enumerated(("HSM", 2)),
                "algorithm": call.enumerated(key.algorithm.wire()),
            })
        })
        .collect();
    let end = call.page_token + versions.len();
    let mut body = json!({ "cryptoKeyVersions": versions, "totalSize": key.versions.len() });
    if end < key.versions.len() {
        body["nextPageToken"] = end.to_string().into();
    }
    Answer { status: 200, body }
}

fn compute(
    call: &Call,
    key: &Key,
    version: &Version,
    body: &[u8],
    failure: Option<&Failure>,
) -> Answer {
    let invalid = |message: &str| error(400, "INVALID_ARGUMENT", message, None);
    if key.purpose != Purpose::Mac {
        let message = "the key's purpose does not fit the method";
        return error(400, "FAILED_PRECONDITION", message, None);
    }
    if version.state != State::Enabled {
        let (state, _) = version.state.wire();
        let message = format!("{} is not enabled, current state is: {state}.", call.name);
        return error(400, "FAILED_PRECONDITION", &message, None);
    }
    let Ok(Value::Object(request)) = serde_json::from_slice(body) else {
        return invalid("the body is not a JSON object");
    };
    let bytes = |name: &str| {
        let text = request.get(name).and_then(Value::as_str)?;
        STANDARD.decode(text).ok()
    };
    let Some(data) = bytes("data").filter(|data| !data.is_empty() && data.len() <= MAX_DATA) else {
        return invalid("data is missing, empty or too long");
    };
    let checked = |name: &str, bytes: &[u8]| match request.get(name) {
        None => Ok(false),
        Some(Value::String(text)) if text.parse() == Ok(i64::from(crc32c::crc32c(bytes))) => {
            Ok(true)
        }
        Some(_) => Err(()),
    };
    let Ok(mut data_checked) = checked("dataCrc32c", &data) else {
        return invalid("The checksum in field data_crc32c did not match the data in field data.");
    };
    data_checked &= failure != Some(&Failure::Unverified);
    let name = match failure {
        Some(Failure::OtherName) => format!("{}0", call.name),
        _ => call.name.clone(),
    };
    let level = call.enumerated(("HSM", 2));
    let mac = version.mac(key.algorithm, &data);
    if call.method == Method::Sign {
        return signed(&name, &mac, data_checked, &level, failure);
    }
    let Some(presented) = bytes("mac").filter(|mac| !mac.is_empty()) else {
        return invalid("mac is missing or empty");
    };
    let Ok(mut mac_checked) = checked("macCrc32c", &presented) else {
        return invalid("The checksum in field mac_crc32c did not match the data in field mac.");
    };
    mac_checked &= !matches!(failure, Some(Failure::Unverified | Failure::MacUnverified));
    let success = presented == mac;
    let integrity = success != (failure == Some(&Failure::Contradiction));
    // proto3 leaves false out.
    let mut body = json!({ "name": name, "protectionLevel": level });
    for (name, value) in [
        ("success", success),
        ("verifiedDataCrc32c", data_checked),
        ("verifiedMacCrc32c", mac_checked),
        ("verifiedSuccessIntegrity", integrity),
    ] {
        if value {
            body[name] = true.into();
        }
    }
    Answer { status: 200, body }
}

fn signed(
    name: &str,
    mac: &[u8],
    data_checked: bool,
    level: &Value,
    failure: Option<&Failure>,
) -> Answer {
    let checksum = crc32c::crc32c(mac);
    let mut mac = mac.to_vec();
    if failure == Some(&Failure::CorruptMac) {
        mac[0] ^= 1;
    }
    let mut body = json!({ "name": name, "mac": STANDARD.encode(&mac), "protectionLevel": level });
    if failure != Some(&Failure::NoChecksum) {
        // int64 travels as text.
        body["macCrc32c"] = checksum.to_string().into();
    }
    if data_checked {
        body["verifiedDataCrc32c"] = true.into();
    }
    Answer { status: 200, body }
}
