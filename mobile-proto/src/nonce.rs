//! The nonce of a proof: `<challenge>.<binding>` (protocol.md §6.2).
//!
//! The challenge is the relay's and opaque to everybody else; the binding is [`crate::canonical::request_binding`] in base64url. A binding
//! holds no dot, so the last dot parts the two whatever the challenge looks like.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::encoding::{b64url, from_b64url_array};
use crate::error::Invalid;
use crate::time::UnixMs;

/// Longest challenge in bytes.
pub const MAX_CHALLENGE: usize = 512;

/// Where the relay's HTTP listener hands out challenges.
pub const CHALLENGE_PATH: &str = "/kr/v1/challenge";

/// The answer of `GET` [`CHALLENGE_PATH`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Challenge {
    /// Good for one nonce, from the moment it is issued until `expires_at`.
    pub challenge: String,
    /// Unix milliseconds by the relay's clock.
    pub expires_at: UnixMs,
}

/// Joins a challenge and the binding of one request.
#[must_use]
pub fn compose(challenge: &str, binding: &[u8; 32]) -> String {
    format!("{challenge}.{}", b64url(binding))
}

/// Parts a nonce again.
///
/// # Errors
/// [`Invalid`] when either half is missing, the challenge is too long, or the binding is not 32 bytes of canonical base64url.
pub fn split(nonce: &str) -> Result<(&str, [u8; 32]), Invalid> {
    const RULE: Invalid = Invalid::new("nonce", "\"<challenge>.<base64url of 32 bytes>\"");
    let (challenge, binding) = nonce.rsplit_once('.').ok_or(RULE)?;
    if !(1..=MAX_CHALLENGE).contains(&challenge.len()) {
        return Err(RULE);
    }
    let binding = from_b64url_array::<32>("nonce", binding).map_err(|_| RULE)?;
    Ok((challenge, *binding))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_composed_splits_back(challenge in "[A-Za-z0-9._-]{1,60}", binding in any::<[u8; 32]>()) {
            let nonce = compose(&challenge, &binding);
            prop_assert_eq!(split(&nonce).unwrap(), (challenge.as_str(), binding));
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,120}") {
            let _ = split(&text);
        }
    }

    #[test]
    fn a_broken_nonce_is_refused() {
        let good = compose("c", &[7; 32]);
        let (padded, long) = (format!("{good}="), compose(&"c".repeat(513), &[7; 32]));
        for bad in ["", ".", "c", "c.", "c.AAAA", &good[1..], &padded, &long] {
            assert!(split(bad).is_err(), "{bad:?} was accepted");
        }
    }
}
