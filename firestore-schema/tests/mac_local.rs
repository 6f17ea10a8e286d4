//! The local MAC key: the protocol's vector, file modes, several keys.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::os::unix::fs::PermissionsExt as _;

use keyturn_proto::{ClientId, VersionId};
use keyturn_store::mac::{KeyFileError, LocalMacKey, MacError, MacKey as _, SecretHash};

fn subject() -> (ClientId, VersionId) {
    (
        "ext-totp-svc".parse().unwrap(),
        "01JM8VEZAMG2DK6T4S9N7TT1C8".parse().unwrap(),
    )
}

const SECRET: &str = "2nC0WJ6d-3Jb0L6Wj7o5n9Jx9aQmH6r1bE3xqfIuF9k";

fn counting_key() -> [u8; 32] {
    std::array::from_fn(|i| u8::try_from(i).unwrap())
}

#[tokio::test]
async fn the_vector_of_the_protocol_holds() {
    let key = LocalMacKey::from_keys(&counting_key(), &[]);
    let (client, version) = subject();
    let made = key.sign(&client, &version, SECRET).await.unwrap();
    assert_eq!(
        made.hash.as_str(),
        "LSDynK4JQHtB-kC5lcSb7pfuuFdYN5g2qn63-HGD764"
    );
    let ours = key.verify(&made.key_ref, &client, &version, SECRET, &made.hash);
    assert!(ours.await.unwrap());
    let wrong = key.verify(&made.key_ref, &client, &version, "wrong", &made.hash);
    assert!(!wrong.await.unwrap());
    let other: ClientId = "other".parse().unwrap();
    let moved = key.verify(&made.key_ref, &other, &version, SECRET, &made.hash);
    assert!(!moved.await.unwrap());
}

#[test]
fn padded_or_non_canonical_hashes_are_refused() {
    for text in [
        "LSDynK4JQHtB-kC5lcSb7pfuuFdYN5g2qn63-HGD764=",
        // The last character carries two unused bits; this spelling has one of them set.
        "LSDynK4JQHtB-kC5lcSb7pfuuFdYN5g2qn63-HGD765",
        "LSDynK4JQHtB+kC5lcSb7pfuuFdYN5g2qn63+HGD764",
        "",
    ] {
        assert!(
            matches!(SecretHash::parse(text), Err(MacError::MalformedHash)),
            "{text}"
        );
    }
}

#[tokio::test]
async fn an_older_key_goes_on_verifying_and_the_first_one_makes_new_hashes() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (dir.path().join("old"), dir.path().join("new"));
    LocalMacKey::create(&old).unwrap();
    LocalMacKey::create(&new).unwrap();
    let (client, version) = subject();
    let before = LocalMacKey::open(&[&old]).unwrap();
    let made = before.sign(&client, &version, SECRET).await.unwrap();

    let both = LocalMacKey::open(&[&new, &old]).unwrap();
    let still = both.verify(&made.key_ref, &client, &version, SECRET, &made.hash);
    assert!(still.await.unwrap());
    assert_ne!(both.primary_ref(), made.key_ref);
    assert!(both.primary_ref().starts_with("local:hmac-sha-256:"));

    let without = LocalMacKey::open(&[&new]).unwrap();
    let lost = without.verify(&made.key_ref, &client, &version, SECRET, &made.hash);
    assert_eq!(
        lost.await.unwrap_err(),
        MacError::UnknownKey(made.key_ref.clone())
    );
}

#[test]
fn a_key_file_is_created_once_and_owner_only() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("key");
    LocalMacKey::create(&path).unwrap();
    let mode = std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    let content = std::fs::read(&path).unwrap();
    let Err(KeyFileError::Io { verb, .. }) = LocalMacKey::create(&path) else {
        panic!("an existing key was replaced")
    };
    assert_eq!(verb, "create");
    assert_eq!(std::fs::read(&path).unwrap(), content);
}

#[test]
fn a_key_file_that_others_can_read_is_refused_by_name_and_mode() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("key");
    LocalMacKey::create(&path).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
    let Err(error) = LocalMacKey::open(&[&path]) else {
        panic!("a group-readable key was accepted")
    };
    let text = error.to_string();
    assert!(
        text.contains("0640") && text.contains(path.to_str().unwrap()),
        "{text}"
    );
}

#[test]
fn only_32_bytes_make_a_key() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, content: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        path
    };
    let raw = LocalMacKey::open(&[write("raw", &counting_key())]).unwrap();
    let text = format!("{}\n", keyturn_proto::encoding::b64url(&counting_key()));
    let encoded = LocalMacKey::open(&[write("text", text.as_bytes())]).unwrap();
    assert_eq!(raw.primary_ref(), encoded.primary_ref());
    for (name, content) in [
        ("empty", &b""[..]),
        ("short", &[7; 31]),
        ("long", &[7; 33]),
        ("huge", &[7; 4096]),
        ("padded", b"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="),
    ] {
        let found = LocalMacKey::open(&[write(name, content)]);
        assert!(matches!(found, Err(KeyFileError::Content { .. })), "{name}");
    }
    let none: [&std::path::Path; 0] = [];
    assert!(matches!(LocalMacKey::open(&none), Err(KeyFileError::None)));
}
