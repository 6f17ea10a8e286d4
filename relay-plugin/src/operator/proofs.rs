//! Proofs that an MLS signature key belongs to an admin, from files: a signed key package event, or a signed binding after a key change.

use std::io::Read as _;
use std::path::Path;

use keyturn_mls::{verify_binding, verify_key_package};
use keyturn_proto::{Npub, UnixMs};
use keyturn_store::documents::ProvenKey;
use nostr::{Event, JsonUtil as _, PublicKey};

use super::OperatorError;

/// Longest event file in bytes.
const MAX_BYTES: u64 = 64 * 1024;

/// The key that a key package event (kind 30443 or 443) proves for its author, who must be `npub`.
///
/// # Errors
/// [`OperatorError::Proof`].
pub fn key_package(file: &Path, npub: &Npub, now: UnixMs) -> Result<ProvenKey, OperatorError> {
    let problem = |why: String| problem(file, why);
    let event = read(file)?;
    let verified = verify_key_package(&event, now).map_err(|error| problem(error.to_string()))?;
    by(file, &verified.npub(), npub)?;
    Ok(proven(verified.signature_key().to_hex(), &event, now))
}

/// The key that a binding event proves for its author, who must be `npub`.
///
/// # Errors
/// [`OperatorError::Proof`].
pub fn binding(file: &Path, npub: &Npub, now: UnixMs) -> Result<ProvenKey, OperatorError> {
    let event = read(file)?;
    let binding = verify_binding(&event).map_err(|error| problem(file, error.to_string()))?;
    by(file, &binding.npub, npub)?;
    Ok(proven(binding.signature_key.to_hex(), &event, now))
}

fn proven(key: String, event: &Event, now: UnixMs) -> ProvenKey {
    ProvenKey {
        key,
        proof_event: event.id.to_hex(),
        at: now,
    }
}

fn by(file: &Path, author: &PublicKey, npub: &Npub) -> Result<(), OperatorError> {
    if author.to_bytes() == *npub.as_bytes() {
        return Ok(());
    }
    Err(problem(
        file,
        format!("it is signed by another npub than {npub}"),
    ))
}

fn read(file: &Path) -> Result<Event, OperatorError> {
    let unreadable = |error: std::io::Error| problem(file, error.to_string());
    let mut text = String::new();
    std::fs::File::open(file)
        .and_then(|handle| handle.take(MAX_BYTES + 1).read_to_string(&mut text))
        .map_err(unreadable)?;
    if text.len() as u64 > MAX_BYTES {
        return Err(problem(file, format!("larger than {MAX_BYTES} bytes")));
    }
    Event::from_json(text.trim()).map_err(|_| problem(file, "not a Nostr event in JSON".to_owned()))
}

fn problem(file: &Path, why: String) -> OperatorError {
    OperatorError::Proof {
        file: file.display().to_string(),
        why,
    }
}
