//! Values on the command line, parsed once.

use nostr::PublicKey;

pub(super) fn public_key(text: &str) -> Result<PublicKey, &'static str> {
    PublicKey::parse(text).map_err(|_| "expected an npub or 64 hex digits")
}

pub(super) fn hex_32(text: &str) -> Result<[u8; 32], &'static str> {
    let mut bytes = [0; 32];
    hex::decode_to_slice(text, &mut bytes).map_err(|_| "expected 64 hex digits")?;
    Ok(bytes)
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
    }
}
