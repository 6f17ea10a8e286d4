//! First step: the text becomes a [`ServiceRequest`] whose fields go together, or it is refused before anything else is done with it.

use keyturn_proto::{Action, ClientId, ErrorClass, Inner, RotationId, ServiceRequest};

use super::opened::Opened;
use super::refused::Refused;

/// Longest request text in bytes. The largest legitimate one (proof 8,192, client id 1,500, reason 500, all JSON-escaped) stays below.
pub const MAX_REQUEST: usize = 32 * 1024;

/// Parses and checks what needs no state.
pub(super) fn parse(opened: &Opened) -> Result<ServiceRequest, Refused> {
    if opened.json.len() > MAX_REQUEST {
        return Err(Refused::new(
            ErrorClass::PolicyViolation,
            "request.too_large",
        ));
    }
    // The parse error may quote the text, and the text bears the proof: it is dropped here.
    let request: ServiceRequest = serde_json::from_str(&opened.json)
        .map_err(|_| Refused::new(ErrorClass::PolicyViolation, "request.malformed"))?;
    request
        .validate()
        .map_err(|_| Refused::new(ErrorClass::PolicyViolation, "request.invalid"))?;
    Ok(request)
}

/// What a request asks for, in the words of the metrics; also when the rest of it is malformed.
pub(super) fn action(opened: &Opened) -> &'static str {
    #[derive(serde::Deserialize)]
    struct Asked {
        action_type: Action,
    }
    let asked = (opened.json.len() <= MAX_REQUEST)
        .then(|| serde_json::from_str::<Asked>(&opened.json).ok())
        .flatten();
    asked.map_or("unknown", |asked| asked.action_type.as_str())
}

/// What a request says it is about, also when it is malformed, so that its refusal can be addressed and audited. Untrusted; nothing
/// oversized is looked at.
#[must_use]
pub fn hints(opened: &Opened) -> (Option<RotationId>, Option<ClientId>) {
    if opened.json.len() > MAX_REQUEST {
        return (None, None);
    }
    Inner::hints(&opened.json)
}
