//! The key file of an installation.

use std::fs;

use keyturn::doctor::Level;
use keyturn_store::mac::LocalMacKey;

use crate::patient::Patient;

#[tokio::test(flavor = "multi_thread")]
async fn a_mac_key_that_is_wrong_or_gone_is_named() {
    let patient = Patient::new().await;
    patient.chmod("mac.key", 0o640);
    patient
        .finds("mac", Level::Fail, "mode 0640", "chmod 600 ")
        .await;
    fs::remove_file(patient.path("mac.key")).unwrap();
    patient
        .finds("mac", Level::Fail, "mac.key", "restore the key file")
        .await;
    LocalMacKey::create(&patient.path("mac.key")).unwrap();
    patient
        .finds(
            "mac",
            Level::Fail,
            "is not here, and secrets of 1 clients cannot be verified without it: ext-totp-svc",
            "Lost keys",
        )
        .await;
    patient
        .finds("mac", Level::Ok, "signs and verifies", "")
        .await;
    patient.file("mac.key", "short", 0o600);
    patient
        .finds(
            "mac",
            Level::Fail,
            "must hold 32 bytes",
            "restore the key file",
        )
        .await;
    // Nothing was hashed yet: a new key loses nothing.
    patient
        .sql()
        .execute_batch("DELETE FROM versions; DELETE FROM clients")
        .unwrap();
    fs::remove_file(patient.path("mac.key")).unwrap();
    patient
        .finds("mac", Level::Fail, "mac.key", "openssl rand 32 > ")
        .await;
}
