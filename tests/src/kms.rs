//! A world whose secrets are hashed by a key in Cloud KMS: the server that stands in for it, and the configuration that names it.

use std::num::NonZeroU64;

use keyturn_store::fake_kms::FakeKms;
use keyturn_store::mac::CloudKmsKey;
use keyturn_store::mac::cloud_kms::Settings;

use crate::world::set;

/// Names `server`'s key and one of its versions in a relay's configuration.
pub fn configure(config: &mut toml::Table, server: &FakeKms, version: NonZeroU64) {
    config["mac"] = toml::Table::new().into();
    set(config, "mac", "kind", "cloud_kms");
    set(config, "mac", "key", server.key().as_str());
    set(config, "mac", "version", version.get() as i64);
    set(config, "mac", "endpoint", server.endpoint());
    set(config, "mac", "timeout", "8s");
    set(config, "mac", "attempt_timeout", "4s");
}

/// The same key for a verifier in this process.
pub fn key(server: &FakeKms, version: NonZeroU64) -> CloudKmsKey {
    CloudKmsKey::new(Settings {
        endpoint: Some(server.endpoint().parse().unwrap()),
        ..Settings::new(server.key().clone(), version)
    })
}
