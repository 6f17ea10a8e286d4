//! Values on the command line, parsed once.

use std::time::UNIX_EPOCH;

use keyturn_proto::UnixMs;
use nostr::PublicKey;

pub(super) fn public_key(text: &str) -> Result<PublicKey, &'static str> {
    PublicKey::parse(text).map_err(|_| "expected an npub or 64 hex digits")
}

pub(super) fn hex_32(text: &str) -> Result<[u8; 32], &'static str> {
    let mut bytes = [0; 32];
    hex::decode_to_slice(text, &mut bytes).map_err(|_| "expected 64 hex digits")?;
    Ok(bytes)
}

/// RFC 3339; a date alone is its beginning.
pub(super) fn time(text: &str) -> Result<UnixMs, &'static str> {
    const RULE: &str = "expected a time like 2026-01-31T00:00:00Z";
    let whole = if text.len() == 10 {
        format!("{text}T00:00:00Z")
    } else {
        text.to_owned()
    };
    let at = humantime::parse_rfc3339(&whole).map_err(|_| RULE)?;
    let since = at.duration_since(UNIX_EPOCH).map_err(|_| RULE)?;
    Ok(UnixMs(u64::try_from(since.as_millis()).map_err(|_| RULE)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_checked_where_they_enter() {
        let npub = "npub10xlxvlhemja6c4dqv22uapctqupfhlxm9h8z3k2e72q4k9hcz7vqpkge6d";
        let hex = "79be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798";
        assert!(public_key(npub).is_ok_and(|key| public_key(hex) == Ok(key)));
        assert!(public_key("npub1").is_err());
        assert_eq!(hex_32(&"0a".repeat(32)), Ok([10; 32]));
        assert!(hex_32("0a").is_err());
        assert_eq!(time("1970-01-02"), Ok(UnixMs(86_400_000)));
        assert_eq!(time("1970-01-01T00:00:01.5Z"), Ok(UnixMs(1500)));
        assert!(time("yesterday").is_err() && time("1970-13-01").is_err());
    }
}
