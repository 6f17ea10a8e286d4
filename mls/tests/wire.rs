//! The encoding: vectors, and what must be refused.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod common;

use std::collections::BTreeSet;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use common::{Clock, Peer, RELAY};
use keyturn_mls::wire::group_data::{GroupData, GroupDataError, GroupImage};
use keyturn_mls::wire::group_event::{GroupEventError, VerifiedGroupEvent};
use keyturn_mls::{
    KeyPackageError, MlsGroupId, NostrGroupId, StorageKey, StorageKeyError, verify_binding,
    verify_key_package,
};
use nostr::secp256k1::schnorr::Signature;
use nostr::{Event, EventBuilder, JsonUtil, Keys, Kind, PublicKey, Tag, TagKind, Tags};

/// Keys that are valid points, in ascending order.
fn admins() -> BTreeSet<PublicKey> {
    [
        "79be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798",
        "c6047f9441ed7d6d3045406e95c07cd85c778e4b8cef3ca7abac09b95c709ee5",
    ]
    .iter()
    .map(|hex| PublicKey::from_hex(hex).unwrap())
    .collect()
}

fn data() -> GroupData {
    GroupData {
        nostr_group_id: NostrGroupId::new([0x11; 32]),
        name: "admins".into(),
        description: "é".repeat(32),
        admins: admins(),
        relays: ["wss://a.example".to_owned(), "wss://b.example".to_owned()].into(),
        image: GroupImage::default(),
    }
}

/// Written by hand from the field list, not by the encoder.
fn vector() -> Vec<u8> {
    let mut bytes = vec![0x00, 0x02];
    bytes.extend([0x11; 32]);
    bytes.push(6);
    bytes.extend(b"admins");
    bytes.extend([0x40, 64]);
    bytes.extend("é".repeat(32).bytes());
    bytes.extend([0x40, 64]);
    for admin in admins() {
        bytes.extend(admin.to_bytes());
    }
    bytes.push(32);
    bytes.push(15);
    bytes.extend(b"wss://a.example");
    bytes.push(15);
    bytes.extend(b"wss://b.example");
    bytes.extend([0, 0, 0, 0]);
    bytes
}

#[test]
fn group_data_matches_its_vector_both_ways() {
    assert_eq!(data().encode().unwrap(), vector());
    assert_eq!(GroupData::decode(&vector()).unwrap(), data());
    let mut image = data();
    image.image = GroupImage {
        hash: Some([1; 32]),
        key: Some([2; 32]),
        nonce: Some([3; 12]),
        upload_key: Some([4; 32]),
    };
    let bytes = image.encode().unwrap();
    assert_eq!(GroupData::decode(&bytes).unwrap(), image);
    assert_eq!(bytes.len(), vector().len() + 32 + 32 + 12 + 32);
}

#[test]
fn malformed_group_data_is_refused() {
    let with = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = vector();
        change(&mut bytes);
        GroupData::decode(&bytes).unwrap_err()
    };
    assert_eq!(with(&|b| b.push(0)), GroupDataError::Trailing);
    assert_eq!(with(&|b| b[1] = 0), GroupDataError::Version(0));
    assert_eq!(with(&|b| b[1] = 3), GroupDataError::Version(3));
    assert_eq!(with(&|b| b.truncate(50)), GroupDataError::Truncated);
    assert_eq!(with(&|b| b[34] = 0xc0), GroupDataError::Length);
    // 6 as a two-byte length.
    assert_eq!(
        with(&|b| {
            b.splice(34..35, [0x40, 6]);
        }),
        GroupDataError::Length
    );
    assert_eq!(with(&|b| b[35] = 0xff), GroupDataError::Text);
    let start = 34 + 7 + 66 + 2;
    assert_eq!(
        with(&|b| {
            let (first, second) = b[start..start + 64].split_at_mut(32);
            first.swap_with_slice(second);
        }),
        GroupDataError::Admins
    );
    assert_eq!(
        with(&|b| {
            let first = b[start..start + 32].to_vec();
            b[start + 32..start + 64].copy_from_slice(&first);
        }),
        GroupDataError::Admins
    );
    assert_eq!(
        with(&|b| {
            let at = b.iter().rposition(|byte| *byte == b'b').unwrap();
            b[at] = b'a';
        }),
        GroupDataError::Relays
    );
    assert_eq!(
        with(&|b| {
            let end = b.len() - 4;
            b.splice(end..end + 1, [1, 9]);
        }),
        GroupDataError::Image
    );
    for end in 0..vector().len() {
        assert!(GroupData::decode(&vector()[..end]).is_err(), "{end} bytes");
    }
}

fn group_event(content: &str, tags: Vec<Tag>) -> Event {
    EventBuilder::new(Kind::MlsGroupMessage, content)
        .tags(tags)
        .sign_with_keys(&Keys::generate())
        .unwrap()
}

#[test]
fn malformed_group_events_are_refused() {
    let h = || Tag::custom(TagKind::h(), ["11".repeat(32)]);
    let content = STANDARD.encode([0; 40]);
    let error = |event: &Event| VerifiedGroupEvent::verify(event).err();
    assert_eq!(error(&group_event(&content, vec![h()])), None);
    assert_eq!(
        error(&group_event(&content, vec![])),
        Some(GroupEventError::GroupTag)
    );
    assert_eq!(
        error(&group_event(&content, vec![h(), h()])),
        Some(GroupEventError::GroupTag)
    );
    let short = Tag::custom(TagKind::h(), ["11"]);
    assert_eq!(
        error(&group_event(&content, vec![short])),
        Some(GroupEventError::GroupTag)
    );
    let hex = Tag::custom(TagKind::custom("encoding"), ["hex"]);
    assert_eq!(
        error(&group_event(&content, vec![h(), hex])),
        Some(GroupEventError::Encoding)
    );
    for bad in [
        "",
        "no base64!",
        &STANDARD.encode([0; 28]),
        content.trim_end_matches('='),
    ] {
        assert_eq!(
            error(&group_event(bad, vec![h()])),
            Some(GroupEventError::Content),
            "{bad}"
        );
    }
    let huge = "A".repeat(keyturn_mls::wire::group_event::MAX_CONTENT + 4);
    assert_eq!(
        error(&group_event(&huge, vec![h()])),
        Some(GroupEventError::Content)
    );
    let mut forged = group_event(&content, vec![h()]);
    forged.sig = Signature::from_slice(&[0; 64]).unwrap();
    assert_eq!(error(&forged), Some(GroupEventError::Signature));
    let other = EventBuilder::text_note("hello")
        .sign_with_keys(&Keys::generate())
        .unwrap();
    assert_eq!(error(&other), Some(GroupEventError::Kind));
}

/// The event with other tags or content, signed again by `keys`.
fn again(event: &Event, keys: &Keys, change: impl FnOnce(&mut Vec<Tag>, &mut String)) -> Event {
    let mut tags = event.tags.clone().to_vec();
    let mut content = event.content.clone();
    change(&mut tags, &mut content);
    EventBuilder::new(event.kind, content)
        .tags(Tags::from_list(tags))
        .custom_created_at(event.created_at)
        .sign_with_keys(keys)
        .unwrap()
}

#[test]
fn key_package_events_carry_what_the_profile_says() {
    let clock = Clock::start();
    let mut peer = Peer::new();
    let events = peer.publish_key_package(&[RELAY.into()], clock.0).unwrap();
    assert_eq!(events.addressable.kind, Kind::Custom(30443));
    assert_eq!(events.legacy.kind, Kind::Custom(443));
    let tags = |event: &Event| -> Vec<Vec<String>> {
        event
            .tags
            .iter()
            .map(|tag| tag.as_slice().to_vec())
            .collect()
    };
    let addressable = tags(&events.addressable);
    assert_eq!(
        addressable[0][0], "d",
        "the relay replaces only if d comes first"
    );
    assert_eq!(addressable[0][1].len(), 64);
    assert_eq!(addressable[1..], tags(&events.legacy)[..]);
    let legacy = tags(&events.legacy);
    for expected in [
        &["mls_protocol_version", "1.0"][..],
        &["mls_ciphersuite", "0x0001"],
        &["mls_extensions", "0x000a", "0xf2ee"],
        &["mls_proposals", "0x000a"],
        &["relays", RELAY],
        &["encoding", "base64"],
    ] {
        assert!(
            legacy.iter().any(|tag| tag == expected),
            "{expected:?} in {legacy:?}"
        );
    }
    let a = verify_key_package(&events.addressable, clock.0).unwrap();
    let b = verify_key_package(&events.legacy, clock.0).unwrap();
    assert_eq!(a.npub(), peer.npub());
    assert_eq!(a.signature_key(), peer.signature_key());
    assert_eq!(b.signature_key(), peer.signature_key());
    assert!(a.supports_self_remove());
    let next = peer.publish_key_package(&[RELAY.into()], clock.0).unwrap();
    assert_eq!(
        next.addressable.tags.identifier(),
        events.addressable.tags.identifier(),
        "one replaces the other"
    );
    assert_ne!(next.addressable.content, events.addressable.content);
    assert!(
        next.addressable.created_at > events.addressable.created_at,
        "also within one second: of two equally old ones a relay keeps the lower id, not the newer"
    );
}

#[test]
fn key_package_events_that_prove_nothing_are_refused() {
    let mut clock = Clock::start();
    let mut peer = Peer::new();
    let event = peer
        .publish_key_package(&[RELAY.into()], clock.0)
        .unwrap()
        .addressable;
    let keys = peer.keys.clone();
    let error = |event: &Event, clock: &Clock| verify_key_package(event, clock.0).unwrap_err();
    let named = |name: &'static str| move |tag: &Tag| tag.as_slice()[0] == name;

    let mut synthetic = event.clone();
    synthetic.sig = Signature::from_slice(&[0; 64]).unwrap();
    assert_eq!(error(&synthetic, &clock), KeyPackageError::Signature);
    // Somebody publishes another's key package as his own.
    let stolen = again(&event, &Keys::generate(), |_, _| {});
    assert_eq!(error(&stolen, &clock), KeyPackageError::Identity);
    for name in ["mls_protocol_version", "mls_ciphersuite", "encoding", "d"] {
        let without = again(&event, &keys, |tags, _| {
            tags.retain(|tag| !named(name)(tag))
        });
        assert_eq!(error(&without, &clock), KeyPackageError::Tag(name));
    }
    let wrong = again(&event, &keys, |tags, _| {
        tags.retain(|tag| !named("i")(tag));
        tags.push(Tag::custom(TagKind::custom("i"), ["00".repeat(32)]));
    });
    assert_eq!(error(&wrong, &clock), KeyPackageError::Reference);
    let hex = again(&event, &keys, |_, content| {
        *content = hex::encode(STANDARD.decode(content.as_bytes()).unwrap());
    });
    assert_eq!(error(&hex, &clock), KeyPackageError::Content);
    let trailing = again(&event, &keys, |_, content| {
        let mut bytes = STANDARD.decode(content.as_bytes()).unwrap();
        bytes.push(0);
        *content = STANDARD.encode(bytes);
    });
    assert_eq!(error(&trailing, &clock), KeyPackageError::Content);
    let flipped = again(&event, &keys, |_, content| {
        let mut bytes = STANDARD.decode(content.as_bytes()).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        *content = STANDARD.encode(bytes);
    });
    assert!(matches!(
        error(&flipped, &clock),
        KeyPackageError::Invalid(_)
    ));
    let note = EventBuilder::text_note("x").sign_with_keys(&keys).unwrap();
    assert_eq!(error(&note, &clock), KeyPackageError::Kind(1));
    clock.pass(Duration::from_secs(85 * 86_400));
    assert_eq!(error(&event, &clock), KeyPackageError::Lifetime);
}

#[test]
fn a_binding_proves_npub_and_key_of_each_other() {
    let mut clock = Clock::start();
    let (peers, group) = common::group(2, 1, &mut clock);
    let event = peers[1].binding(&group, clock.0).unwrap();
    let binding = verify_binding(&event).unwrap();
    assert_eq!(binding.npub, peers[1].npub());
    assert_eq!(binding.group, group);
    assert_eq!(binding.signature_key, peers[1].signature_key());

    // Neither npub nor group nor key can be exchanged, although the event itself is well signed.
    let thief = Keys::generate();
    assert!(verify_binding(&again(&event, &thief, |_, _| {})).is_err());
    let replace = |name: &'static str, value: String| {
        again(&event, &peers[1].keys, move |tags, _| {
            for tag in tags.iter_mut() {
                if tag.as_slice()[0] == name {
                    *tag = Tag::custom(TagKind::custom(name), [value.clone()]);
                }
            }
        })
    };
    assert!(verify_binding(&replace("mls", "00".repeat(16))).is_err());
    assert!(verify_binding(&replace("mls_key", peers[0].signature_key().to_hex())).is_err());
    assert!(verify_binding(&replace("key_sig", "00".repeat(64))).is_err());
    let doubled = again(&event, &peers[1].keys, |tags, _| tags.push(tags[0].clone()));
    assert!(verify_binding(&doubled).is_err());
    let mut forged = event;
    forged.sig = Signature::from_slice(&[0; 64]).unwrap();
    assert!(verify_binding(&forged).is_err());
    let elsewhere: MlsGroupId = "00".repeat(16).parse().unwrap();
    assert!(peers[1].binding(&elsewhere, clock.0).is_err());
}

#[test]
fn a_storage_key_comes_from_a_private_file_or_from_text() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::TempDir::new().unwrap();
    let path = dir.path().join("member.key");
    assert!(matches!(
        StorageKey::from_file(&path),
        Err(StorageKeyError::Io { .. })
    ));
    StorageKey::from_file_or_create(&path).unwrap();
    let mode = std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    let text = std::fs::read_to_string(&path).unwrap();
    StorageKey::from_file_or_create(&path).unwrap();
    assert_eq!(
        std::fs::read_to_string(&path).unwrap(),
        text,
        "never replaced"
    );
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
    assert!(matches!(
        StorageKey::from_file(&path),
        Err(StorageKeyError::Mode { mode: 0o640, .. })
    ));

    // Every spelling names the same key: each opens the database made under the first.
    let raw: Vec<u8> = (0..32).map(|i| i * 8 + 7).collect();
    let spellings = [
        hex::encode(&raw),
        hex::encode_upper(&raw),
        format!(" {}\n", STANDARD.encode(&raw)),
        base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(&raw),
    ];
    let keys = Keys::generate();
    for spelling in spellings {
        let key = StorageKey::from_text(&spelling).unwrap();
        let config = keyturn_mls::MemberConfig::new(dir.path().join("m.db"), key, keys.clone());
        keyturn_mls::Member::open(config).unwrap();
    }
    for bad in [
        "",
        "00",
        &"g".repeat(64),
        &"00".repeat(31),
        &STANDARD.encode([0; 31]),
    ] {
        assert!(
            matches!(StorageKey::from_text(bad), Err(StorageKeyError::Text)),
            "{bad}"
        );
    }
}

#[test]
fn a_gift_wrap_that_is_not_a_welcome_from_its_sealer_changes_nothing() {
    use keyturn_mls::Decision;
    use keyturn_mls::error::WelcomeError;
    use keyturn_mls::wire::welcome::UnwrapError;
    use nostr::nips::nip44;

    let clock = Clock::start();
    let mut guest = Peer::new();
    let (sealer, throwaway) = (Keys::generate(), Keys::generate());
    let wrap = |rumor: String, seal_kind: Kind| {
        let encrypt = |keys: &Keys, text: String| {
            nip44::encrypt(keys.secret_key(), &guest.npub(), text, nip44::Version::V2).unwrap()
        };
        let seal = EventBuilder::new(seal_kind, encrypt(&sealer, rumor))
            .sign_with_keys(&sealer)
            .unwrap();
        EventBuilder::new(Kind::GiftWrap, encrypt(&throwaway, seal.as_json()))
            .tag(Tag::public_key(guest.npub()))
            .sign_with_keys(&throwaway)
            .unwrap()
    };
    let rumor = |author: &Keys, kind: Kind, content: &str| {
        let mut rumor = EventBuilder::new(kind, content).build(author.public_key());
        rumor.ensure_id();
        rumor.as_json()
    };
    let cases = [
        (
            wrap(
                rumor(&Keys::generate(), Kind::MlsWelcome, "AAAA"),
                Kind::Seal,
            ),
            Some(UnwrapError::Author),
        ),
        (
            wrap(rumor(&sealer, Kind::TextNote, "AAAA"), Kind::Seal),
            Some(UnwrapError::NotWelcome),
        ),
        (
            wrap(rumor(&sealer, Kind::MlsWelcome, "AAAA"), Kind::TextNote),
            Some(UnwrapError::Malformed),
        ),
        (
            wrap(rumor(&sealer, Kind::MlsWelcome, "?"), Kind::Seal),
            Some(UnwrapError::Content),
        ),
        (wrap("{}".into(), Kind::Seal), Some(UnwrapError::Malformed)),
        (
            wrap(rumor(&sealer, Kind::MlsWelcome, "AAAA"), Kind::Seal),
            None,
        ),
    ];
    for (event, expected) in cases {
        let error = guest
            .open_welcome(
                &event,
                |_| -> Decision { panic!("must not be asked") },
                clock.0,
            )
            .unwrap_err();
        match expected {
            Some(expected) => assert!(
                matches!(&error, WelcomeError::Unwrap(found) if *found == expected),
                "{error:?}"
            ),
            None => assert!(matches!(error, WelcomeError::Malformed), "{error:?}"),
        }
    }
    assert!(guest.groups().unwrap().is_empty());
}

#[test]
fn the_secrets_of_expired_key_packages_are_deleted() {
    let mut clock = Clock::start();
    let mut peer = Peer::new();
    peer.key_package(clock.0);
    peer.key_package(clock.0);
    clock.pass(Duration::from_secs(85 * 86_400));
    peer.publish_key_package(&[RELAY.into()], clock.0).unwrap();
    peer.close();
    let db = rusqlite::Connection::open(peer.path()).unwrap();
    db.execute_batch(&format!("PRAGMA key = \"x'{}'\";", peer.key))
        .unwrap();
    for table in ["openmls_key_packages", "key_packages"] {
        let left: i64 = db
            .query_row(&format!("SELECT count(*) FROM {table}"), [], |row| {
                row.get(0)
            })
            .unwrap();
        assert_eq!(left, 1, "{table}");
    }
}
