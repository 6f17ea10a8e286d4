//! What an operator's commands need to be there: a configuration and the key of the TOTP seeds.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

/// Puts it in place, with `store` in the section of that name.
pub fn install(dir: &Path, store: &str) {
    let config = format!(
        r#"
[relay]
data_dir = "relay"
[mls]
database = "member.db"
storage_key_file = "mls-storage.key"
nostr_secret_key_file = "nostr.nsec"
relays = ["wss://relay.example.org"]
[store]
{store}
[mac]
key_file = "mac.key"
[issuer]
jwks_url = "https://auth.example.org/.well-known/jwks.json"
[admission]
challenge_key_file = "challenge.key"
totp_seed_key_file = "totp-seed.key"
"#
    );
    std::fs::write(dir.join("keyturn.toml"), config).unwrap();
    let key = dir.join("totp-seed.key");
    std::fs::write(&key, "07".repeat(32)).unwrap();
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
}
