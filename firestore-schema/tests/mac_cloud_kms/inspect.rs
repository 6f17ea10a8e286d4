//! What an operator's look at a key finds.

use keyturn_store::mac::cloud_kms::{InspectError, KeyVersion, Protection, VersionState};

use super::*;

#[tokio::test]
async fn versions_are_listed_with_their_states_over_pages() {
    let server = FakeKms::start().await.unwrap();
    for _ in 0..1_100 {
        server.add_version(server.key());
    }
    for (version, state) in [
        (2, State::Disabled),
        (3, State::DestroyScheduled),
        (4, State::Destroyed),
    ] {
        server.set_state(server.key(), number(version), state);
    }
    let key = CloudKmsKey::new(settings(&server));
    let versions = key.versions(server.key()).await.unwrap();
    assert_eq!(versions.len(), 1_101);
    assert_eq!(server.calls(Method::ListVersions), 3);
    assert_eq!(
        versions[0],
        KeyVersion {
            number: number(1),
            state: VersionState::Enabled,
            hmac_sha256: true,
            protection: Protection::Hsm,
        }
    );
    let states: Vec<_> = versions.iter().map(|version| version.state).collect();
    assert_eq!(
        states[1..5],
        [
            VersionState::Disabled,
            VersionState::DestroyScheduled,
            VersionState::Destroyed,
            VersionState::Enabled,
        ]
    );
    assert!(key.is_for_macs(server.key()).await.unwrap());
}

#[tokio::test]
async fn what_is_wrong_with_a_key_or_with_the_rights_is_told_apart() {
    let server = FakeKms::start().await.unwrap();
    let cipher: KeyName = "projects/p/locations/l/keyRings/r/cryptoKeys/cipher"
        .parse()
        .unwrap();
    server.create_key(&cipher, Purpose::EncryptDecrypt, Algorithm::HmacSha512);
    server.add_version(&cipher);
    let key = CloudKmsKey::new(settings(&server));
    assert_eq!(key.is_for_macs(&cipher).await, Ok(false));
    assert!(!key.versions(&cipher).await.unwrap()[0].hmac_sha256);
    let nowhere: KeyName = "projects/p/locations/l/keyRings/r/cryptoKeys/none"
        .parse()
        .unwrap();
    assert_eq!(key.versions(&nowhere).await, Err(InspectError::NotFound));
    server.deny("cloudkms.cryptoKeyVersions.list");
    server.deny("cloudkms.cryptoKeys.get");
    assert_eq!(
        key.versions(server.key()).await,
        Err(InspectError::Denied {
            permission: "cloudkms.cryptoKeyVersions.list"
        })
    );
    assert_eq!(
        key.is_for_macs(server.key()).await,
        Err(InspectError::Denied {
            permission: "cloudkms.cryptoKeys.get"
        })
    );
    assert!(signed(&key).await.is_ok(), "the relay needs neither right");
    server.fail(Failure::Proxy(503));
    assert!(matches!(
        key.versions(server.key()).await,
        Err(InspectError::Failed(MacError::Unavailable {
            retryable: true,
            ..
        }))
    ));
}
