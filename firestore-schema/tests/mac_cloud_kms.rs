//! The real Cloud KMS client against a server on loopback: what it sends, what it believes, what it tries again, and what it never does.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "mac_cloud_kms/credentials.rs"]
mod credentials;
#[path = "mac_cloud_kms/faults.rs"]
mod faults;
#[path = "mac_cloud_kms/inspect.rs"]
mod inspect;

use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use keyturn_proto::{ClientId, UnixMs, VersionId};
use keyturn_store::fake_kms::{Algorithm, Failure, FakeKms, Method, Purpose, State};
use keyturn_store::mac::cloud_kms::{BreakerSettings, KeyName, Settings};
use keyturn_store::mac::probe::{ProbeError, probe};
use keyturn_store::mac::{CloudKmsKey, LocalMacKey, MacError, MacKey, MacKeyring, SecretHash};
use zeroize::Zeroizing;

const SECRET: &str = "2nC0WJ6d-3Jb0L6Wj7o5n9Jx9aQmH6r1bE3xqfIuF9k";
/// Nothing here takes longer; a slow machine gets the benefit of the doubt.
const PATIENCE: Duration = Duration::from_secs(60);

fn client() -> ClientId {
    "ext-totp-svc".parse().unwrap()
}

fn version() -> VersionId {
    "01JM8VEZAMG2DK6T4S9N7TT1C8".parse().unwrap()
}

fn number(of: u64) -> NonZeroU64 {
    NonZeroU64::new(of).unwrap()
}

/// Attempts follow each other quickly, and no deadline is in the way.
fn settings(server: &FakeKms) -> Settings {
    Settings {
        endpoint: Some(server.endpoint().parse().unwrap()),
        attempt_timeout: PATIENCE,
        timeout: PATIENCE,
        attempts: 3,
        first_pause: Duration::from_millis(1),
        breaker: BreakerSettings {
            failures: 1_000,
            ..BreakerSettings::default()
        },
        ..Settings::new(server.key().clone(), number(1))
    }
}

async fn signed(key: &dyn MacKey) -> Result<(SecretHash, String), MacError> {
    let made = key.sign(&client(), &version(), SECRET).await?;
    Ok((made.hash, made.key_ref))
}

async fn verifies(
    key: &dyn MacKey,
    key_ref: &str,
    secret: &str,
    hash: &SecretHash,
) -> Result<bool, MacError> {
    key.verify(key_ref, &client(), &version(), secret, hash)
        .await
}

#[tokio::test]
async fn the_hash_is_the_one_of_the_protocol() {
    let server = FakeKms::start().await.unwrap();
    let material: [u8; 32] = std::array::from_fn(|index| index as u8);
    let second = server.add_version_of(server.key(), &material);
    let key = CloudKmsKey::new(Settings {
        version: second,
        ..settings(&server)
    });
    let (hash, key_ref) = signed(&key).await.unwrap();
    assert_eq!(hash.as_str(), "LSDynK4JQHtB-kC5lcSb7pfuuFdYN5g2qn63-HGD764");
    assert_eq!(
        key_ref,
        "projects/test/locations/europe-west3/keyRings/ring/cryptoKeys/pepper/cryptoKeyVersions/2"
    );
    assert_eq!(key.primary_ref(), key_ref);
    assert_eq!(verifies(&key, &key_ref, SECRET, &hash).await, Ok(true));
    assert_eq!(verifies(&key, &key_ref, "guess", &hash).await, Ok(false));
    let local = LocalMacKey::from_keys(&material, &[]);
    let (same, _) = signed(&local).await.unwrap();
    assert!(same == hash, "one input, whoever hashes");
}

#[tokio::test]
async fn a_new_version_makes_new_hashes_and_old_ones_go_on_verifying() {
    let server = FakeKms::start().await.unwrap();
    let before = CloudKmsKey::new(settings(&server));
    let (old_hash, old_ref) = signed(&before).await.unwrap();
    let second = server.add_version(server.key());
    let after = CloudKmsKey::new(Settings {
        version: second,
        ..settings(&server)
    });
    let (new_hash, new_ref) = signed(&after).await.unwrap();
    assert!(new_ref.ends_with("/cryptoKeyVersions/2") && new_hash != old_hash);
    for (key_ref, hash, right) in [
        (&old_ref, &old_hash, true),
        (&new_ref, &new_hash, true),
        (&old_ref, &new_hash, false),
        (&new_ref, &old_hash, false),
    ] {
        assert_eq!(verifies(&after, key_ref, SECRET, hash).await, Ok(right));
    }
    assert_eq!(
        verifies(&before, &new_ref, SECRET, &new_hash).await,
        Ok(true),
        "an instance that was not restarted yet"
    );
}

#[tokio::test]
async fn nothing_is_sent_to_a_key_that_is_not_configured() {
    let server = FakeKms::start().await.unwrap();
    let stranger: KeyName = "projects/evil/locations/global/keyRings/r/cryptoKeys/k"
        .parse()
        .unwrap();
    server.create_key(&stranger, Purpose::Mac, Algorithm::HmacSha256);
    server.add_version(&stranger);
    let key = CloudKmsKey::new(settings(&server));
    let (hash, own) = signed(&key).await.unwrap();
    for key_ref in [
        stranger.version(number(1)),
        "local:hmac-sha-256:0000000000000000".to_owned(),
        String::new(),
        server.key().to_string(),
        format!("{own}:macSign"),
        format!("{own}/../../../k/cryptoKeyVersions/1"),
        format!("{own}?x=1"),
        own.replace("/1", "/01"),
        own.replace("projects/test", "projects/Test"),
    ] {
        assert_eq!(
            verifies(&key, &key_ref, SECRET, &hash).await,
            Err(MacError::UnknownKey(key_ref.clone())),
        );
    }
    assert_eq!(server.calls(Method::Verify), 0);

    // Once the operator has named it, it verifies; and makes no hashes.
    let key = CloudKmsKey::new(Settings {
        previous_keys: vec![stranger.clone()],
        ..settings(&server)
    });
    let named = stranger.version(number(1));
    assert_eq!(verifies(&key, &named, SECRET, &hash).await, Ok(false));
    assert_eq!(signed(&key).await.unwrap().1, own);
    assert_eq!(server.asked(), [own.clone(), named, own]);
}

#[tokio::test]
async fn a_hash_that_is_none_is_not_sent() {
    let server = FakeKms::start().await.unwrap();
    let key = CloudKmsKey::new(settings(&server));
    assert_eq!(SecretHash::parse("AA").err(), Some(MacError::MalformedHash));
    assert_eq!(server.calls(Method::Verify), 0);
    assert!(key.healthy(), "nobody was asked yet");
}

#[tokio::test]
async fn a_running_system_moves_from_a_key_file_to_cloud_kms() {
    let server = FakeKms::start().await.unwrap();
    let material = [7; 32];
    let file = Arc::new(LocalMacKey::from_keys(
        &material,
        &[Zeroizing::new([8; 32])],
    ));
    let (old_hash, old_ref) = signed(file.as_ref()).await.unwrap();
    let service = Arc::new(CloudKmsKey::new(settings(&server)));
    let both = MacKeyring::new(service, vec![file]);
    let (hash, key_ref) = signed(&both).await.unwrap();
    assert_eq!(key_ref, both.primary_ref());
    assert!(key_ref.starts_with("projects/test/"));
    assert_eq!(verifies(&both, &key_ref, SECRET, &hash).await, Ok(true));
    assert_eq!(verifies(&both, &old_ref, SECRET, &old_hash).await, Ok(true));
    assert_eq!(
        verifies(&both, &old_ref, "guess", &old_hash).await,
        Ok(false)
    );
    assert_eq!(
        server.calls(Method::Verify),
        1,
        "the file's own are not sent"
    );
    assert_eq!(
        verifies(&both, "gone", SECRET, &hash).await,
        Err(MacError::UnknownKey("gone".to_owned()))
    );
}

#[tokio::test]
async fn a_probe_tells_a_key_that_works_from_one_that_does_not() {
    let server = FakeKms::start().await.unwrap();
    let key = CloudKmsKey::new(settings(&server));
    let now = UnixMs(1_760_000_000_000);
    assert_eq!(probe(&key, now).await, Ok(()));
    server.deny("cloudkms.cryptoKeyVersions.useToVerify");
    assert_eq!(
        probe(&key, now).await,
        Err(ProbeError::Verify(MacError::Denied {
            permission: "cloudkms.cryptoKeyVersions.useToVerify"
        }))
    );
    server.allow("cloudkms.cryptoKeyVersions.useToVerify");
    server.deny("cloudkms.cryptoKeyVersions.useToSign");
    assert_eq!(
        probe(&key, now).await,
        Err(ProbeError::Sign(MacError::Denied {
            permission: "cloudkms.cryptoKeyVersions.useToSign"
        }))
    );
    assert!(!key.healthy(), "it is known not to sign");
    server.allow("cloudkms.cryptoKeyVersions.useToSign");
    assert_eq!(probe(&key, now).await, Ok(()));
    assert!(key.healthy());
}

#[tokio::test]
async fn many_at_once_each_get_their_own_answer() {
    let server = FakeKms::start().await.unwrap();
    let key = Arc::new(CloudKmsKey::new(settings(&server)));
    let tasks: Vec<_> = (0..64)
        .map(|task| {
            let key = Arc::clone(&key);
            tokio::spawn(async move {
                let secret = format!("secret {task}");
                let made = key.sign(&client(), &version(), &secret).await.unwrap();
                let right = verifies(key.as_ref(), &made.key_ref, &secret, &made.hash).await;
                let wrong = verifies(key.as_ref(), &made.key_ref, SECRET, &made.hash).await;
                assert_eq!((right, wrong), (Ok(true), Ok(false)));
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
}

#[tokio::test]
async fn a_version_that_cannot_be_used_is_an_error_that_does_not_pass() {
    let server = FakeKms::start().await.unwrap();
    let key = CloudKmsKey::new(settings(&server));
    let (hash, key_ref) = signed(&key).await.unwrap();
    for state in [State::Disabled, State::DestroyScheduled, State::Destroyed] {
        server.set_state(server.key(), number(1), state);
        for error in [
            signed(&key).await.err(),
            verifies(&key, &key_ref, SECRET, &hash).await.err(),
        ] {
            assert!(
                matches!(
                    error,
                    Some(MacError::Unavailable {
                        retryable: false,
                        ..
                    })
                ),
                "{state:?}: {error:?}"
            );
        }
    }
    assert_eq!(server.calls(Method::Sign), 4, "asked once each time");
    server.set_state(server.key(), number(1), State::Enabled);
    assert!(signed(&key).await.is_ok());

    // A key of another algorithm, and one of another purpose.
    let longer: KeyName = "projects/p/locations/l/keyRings/r/cryptoKeys/longer"
        .parse()
        .unwrap();
    server.create_key(&longer, Purpose::Mac, Algorithm::HmacSha512);
    let cipher: KeyName = "projects/p/locations/l/keyRings/r/cryptoKeys/cipher"
        .parse()
        .unwrap();
    server.create_key(&cipher, Purpose::EncryptDecrypt, Algorithm::HmacSha256);
    for name in [longer, cipher] {
        server.add_version(&name);
        let key = CloudKmsKey::new(Settings {
            key: name.clone(),
            ..settings(&server)
        });
        let error = signed(&key).await.err().unwrap();
        assert!(
            matches!(
                error,
                MacError::Unavailable {
                    retryable: false,
                    ..
                }
            ),
            "{name}: {error:?}"
        );
        assert!(!key.healthy());
    }
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let [server, elsewhere] = [
        FakeKms::start().await.unwrap(),
        FakeKms::start().await.unwrap(),
    ];
    let key = CloudKmsKey::new(settings(&server));
    let (hash, key_ref) = signed(&key).await.unwrap();
    server.fail(Failure::Redirect(elsewhere.endpoint()));
    assert!(signed(&key).await.is_err());
    assert!(verifies(&key, &key_ref, SECRET, &hash).await.is_err());
    assert_eq!(
        (
            elsewhere.calls(Method::Sign),
            elsewhere.calls(Method::Verify)
        ),
        (0, 0),
        "the payload stays with the service that was named"
    );
}
