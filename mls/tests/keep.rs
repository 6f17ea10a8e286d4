//! What is kept, and what is not: inbox, deferred messages, plaintext, keys of what was sealed.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod common;

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ciborium::Value;
use common::{Clock, Peer, group};
use keyturn_mls::error::OpenError;
use keyturn_mls::{AppMessage, Disposition, Inbound, Member, MemberConfig, MlsGroupId, StorageKey};
use rusqlite::Connection;
use rusqlite::types::ValueRef;

/// The member's files as a SIGKILL at this moment would leave them, in a directory of their own.
fn copy_files(from: &Peer) -> tempfile::TempDir {
    let to = tempfile::TempDir::new().unwrap();
    for entry in std::fs::read_dir(from.dir.path()).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.path().join(entry.file_name())).unwrap();
    }
    to
}

fn open_copy(dir: &Path, of: &Peer) -> Member {
    let mut config = MemberConfig::new(
        dir.join("member.db"),
        StorageKey::from_text(&of.key).unwrap(),
        of.keys.clone(),
    );
    config.settle = common::SETTLE;
    Member::open(config).unwrap()
}

/// The database through its key, without the member.
fn keyed(dir: &Path, key: &str) -> Connection {
    let db = Connection::open(dir.join("member.db")).unwrap();
    db.execute_batch(&format!("PRAGMA key = \"x'{key}'\";"))
        .unwrap();
    db
}

/// Every cell of every table, as bytes, and every page of the decrypted file.
fn plain_bytes(dir: &Path, key: &str) -> Vec<u8> {
    let db = keyed(dir, key);
    let mut all = Vec::new();
    let tables: Vec<String> = db
        .prepare("SELECT name FROM sqlite_master WHERE type = 'table'")
        .unwrap()
        .query_map([], |row| row.get(0))
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap();
    assert!(tables.iter().any(|name| name == "openmls_group_data"));
    for table in tables {
        let mut statement = db.prepare(&format!("SELECT * FROM {table}")).unwrap();
        let width = statement.column_count();
        let mut rows = statement.query([]).unwrap();
        while let Some(row) = rows.next().unwrap() {
            for i in 0..width {
                match row.get_ref(i).unwrap() {
                    ValueRef::Text(bytes) | ValueRef::Blob(bytes) => all.extend_from_slice(bytes),
                    _ => {}
                }
                all.push(0);
            }
        }
    }
    // The decrypted pages, free ones included: SQLCipher writes them out into a database without a key.
    let plain = dir.join("plain.db");
    db.execute_batch(&format!(
        "ATTACH DATABASE '{}' AS plain KEY ''; SELECT sqlcipher_export('plain'); DETACH DATABASE plain;",
        plain.display()
    ))
    .unwrap();
    all.extend(std::fs::read(plain).unwrap());
    all
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack
        .windows(needle.len())
        .any(|window| window == needle)
}

/// The canary as it could be written down: raw, base64 in its three alignments, hex, CBOR number arrays.
fn forms(canary: &str) -> Vec<(String, Vec<u8>)> {
    let mut forms = vec![
        ("raw".to_owned(), canary.as_bytes().to_vec()),
        ("hex".to_owned(), hex::encode(canary).into_bytes()),
        ("HEX".to_owned(), hex::encode_upper(canary).into_bytes()),
        (
            "json numbers".to_owned(),
            serde_json::to_string(canary.as_bytes())
                .unwrap()
                .trim_matches(['[', ']'])
                .as_bytes()
                .to_vec(),
        ),
        (
            "cbor numbers".to_owned(),
            canary.bytes().flat_map(|byte| [0x18, byte]).collect(),
        ),
    ];
    for shift in 0..3 {
        let shifted = format!("{}{canary}", "x".repeat(shift));
        for (name, text) in [
            ("base64", STANDARD.encode(&shifted)),
            ("base64url", URL_SAFE_NO_PAD.encode(&shifted)),
        ] {
            // The ends of the text depend on what surrounds it; the middle does not.
            forms.push((format!("{name} +{shift}"), text[4..text.len() - 4].into()));
        }
    }
    forms
}

#[test]
fn no_plaintext_is_stored_by_sender_or_receiver() {
    const CANARY: &str = "canary-6f1d0c7b9e2a4853-canary";
    let mut clock = Clock::start();
    let (mut peers, group) = group(2, 1, &mut clock);
    let sealed = peers[0].say(&group, &format!("{{\"secret\":\"{CANARY}\"}}"), &clock);
    let deferred = peers[0].say(&group, &format!("{{\"later\":\"{CANARY}\"}}"), &clock);
    let (opened, bodies) = peers[1].take(&sealed, &clock);
    assert!(bodies[0].contains(CANARY), "{opened:?}");
    peers[1]
        .receive(&deferred, clock.live(), &mut |message: &AppMessage| {
            assert!(contains(&message.body, CANARY.as_bytes()));
            Disposition::Defer {
                label: "later".into(),
            }
        })
        .unwrap();
    // The control: the search finds what is there.
    let noted = peers[0].say(&group, "{}", &clock);
    let note = format!("note {CANARY}");
    for peer in &peers {
        let files = copy_files(peer);
        let raw: Vec<u8> = std::fs::read_dir(files.path())
            .unwrap()
            .flat_map(|entry| std::fs::read(entry.unwrap().path()).unwrap())
            .collect();
        let plain = plain_bytes(files.path(), &peer.key);
        assert!(
            contains(&plain, group.as_bytes()),
            "the dump shows the database"
        );
        for (form, needle) in forms(CANARY) {
            assert!(!contains(&raw, &needle), "{form} in the files");
            assert!(
                !contains(&plain, &needle),
                "{form} in the decrypted database"
            );
        }
        assert!(!contains(&raw, b"SQLite format 3"), "the file is encrypted");
    }
    peers[1]
        .receive(&noted, clock.live(), &mut |_: &AppMessage| {
            Disposition::Inbox(note.clone().into_bytes())
        })
        .unwrap();
    let files = copy_files(&peers[1]);
    assert!(contains(
        &plain_bytes(files.path(), &peers[1].key),
        CANARY.as_bytes()
    ));
}

/// Makes a copy of `of`'s database forget that it saw its own event, believe it sits on leaf `leaf`, and
/// take every ratchet it kept for sending for one to receive with; then gives it the event. That is all an
/// attacker with the file and its key can do with OpenMLS.
fn pretend_and_open(
    of: &Peer,
    files: &Path,
    leaf: u32,
    event: &nostr::Event,
    clock: &Clock,
) -> bool {
    let db = keyed(files, &of.key);
    db.execute("DELETE FROM seen", []).unwrap();
    let rows: Vec<(String, Vec<u8>)> = db
        .prepare(
            "SELECT data_type, group_data FROM openmls_group_data \
             WHERE data_type IN ('own_leaf_index', 'message_secrets')",
        )
        .unwrap()
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap();
    let mut turned = 0;
    for (kind, bytes) in rows {
        let mut value: Value = ciborium::from_reader(bytes.as_slice()).unwrap();
        if kind == "own_leaf_index" {
            value = leaf.into();
        } else {
            turn(&mut value, leaf, &mut turned);
        }
        let mut bytes = Vec::new();
        ciborium::into_writer(&value, &mut bytes).unwrap();
        db.execute(
            "UPDATE openmls_group_data SET group_data = ?1 WHERE data_type = ?2",
            rusqlite::params![bytes, kind],
        )
        .unwrap();
    }
    assert!(turned > 0, "the stored form is the one this test knows");
    drop(db);
    let mut opened = false;
    open_copy(files, of)
        .receive(event, clock.live(), &mut |message: &AppMessage| {
            opened |= message.body.as_slice() == b"{\"secret\":1}";
            Disposition::Consume
        })
        .unwrap();
    opened
}

/// `own_index` becomes `leaf`, an `EncryptionRatchet` a `DecryptionRatchet` with the same head.
fn turn(value: &mut Value, leaf: u32, turned: &mut usize) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(|item| turn(item, leaf, turned)),
        Value::Map(entries) => {
            for (key, item) in entries {
                match key.as_text() {
                    Some("own_index") => {
                        *item = leaf.into();
                        *turned += 1;
                    }
                    Some("EncryptionRatchet") => {
                        *key = "DecryptionRatchet".into();
                        *item = Value::Map(vec![
                            ("past_secrets".into(), Value::Array(Vec::new())),
                            ("ratchet_head".into(), item.clone()),
                        ]);
                    }
                    _ => turn(item, leaf, turned),
                }
            }
        }
        _ => {}
    }
}

#[test]
fn invariant_what_was_sealed_cannot_be_opened_from_the_sealers_database() {
    let mut clock = Clock::start();
    let (mut peers, group) = group(2, 1, &mut clock);
    // Not the first of the epoch: the sending ratchet exists, its head is what the next message uses.
    let first = copy_files(&peers[0]);
    let event = peers[0].say(&group, "{\"secret\":1}", &clock);
    assert!(
        pretend_and_open(&peers[0], first.path(), 1, &event, &clock),
        "control: the attempt works on a database without a sending ratchet"
    );
    let before_sealing = copy_files(&peers[0]);
    let receivers_before = copy_files(&peers[1]);
    let event = peers[0].say(&group, "{\"secret\":1}", &clock);
    let after_sealing = copy_files(&peers[0]);

    assert!(
        pretend_and_open(&peers[0], before_sealing.path(), 1, &event, &clock),
        "control: the attempt works on a database copied before sealing"
    );
    assert!(!pretend_and_open(
        &peers[0],
        after_sealing.path(),
        1,
        &event,
        &clock
    ));

    // Still so after more epochs and a restart.
    let staged = peers[0].self_update(&group, clock.0).unwrap();
    common::publish(&mut peers, 0, &staged, &clock);
    clock.settle();
    peers[0].say(&group, "{}", &clock);
    peers[0].reopen();
    let later = copy_files(&peers[0]);
    assert!(!pretend_and_open(
        &peers[0],
        later.path(),
        1,
        &event,
        &clock
    ));

    let mut opened = 0;
    open_copy(receivers_before.path(), &peers[1])
        .receive(&event, clock.live(), &mut |_: &AppMessage| {
            opened += 1;
            Disposition::Consume
        })
        .unwrap();
    assert_eq!(
        opened, 1,
        "control: the receiver's database from before opens it"
    );
    peers[1].take(&event, &clock);
    let receivers_after = copy_files(&peers[1]);
    keyed(receivers_after.path(), &peers[1].key)
        .execute("DELETE FROM seen", [])
        .unwrap();
    let again = open_copy(receivers_after.path(), &peers[1])
        .receive(&event, clock.live(), &mut |_: &AppMessage| {
            panic!("opened twice")
        })
        .unwrap();
    assert!(matches!(&again[..], [Inbound::Invalid { .. }]), "{again:?}");
}

#[test]
fn before_anything_is_sealed_no_snapshot_and_no_log_is_left() {
    let mut clock = Clock::start();
    let (mut peers, group) = group(3, 2, &mut clock);
    let staged = peers[1].self_update(&group, clock.0).unwrap();
    common::publish(&mut peers, 1, &staged, &clock);
    let snapshots = |peer: &Peer| -> i64 {
        let files = copy_files(peer);
        keyed(files.path(), &peer.key)
            .query_row(
                "SELECT count(*) FROM commits WHERE snapshot IS NOT NULL",
                [],
                |row| row.get(0),
            )
            .unwrap()
    };
    assert_eq!(
        snapshots(&peers[0]),
        1,
        "control: kept while it may still lose"
    );
    clock.settle();
    peers[0].say(&group, "{}", &clock);
    assert_eq!(snapshots(&peers[0]), 0);
    let log = peers[0].dir.path().join("member.db-wal");
    assert_eq!(std::fs::metadata(log).unwrap().len(), 0);
}

#[test]
fn deferred_messages_stay_closed_across_restarts_until_asked_for() {
    let mut clock = Clock::start();
    let (mut peers, group) = group(2, 1, &mut clock);
    let event = peers[0].say(&group, "{\"secret\":1}", &clock);
    let (sender, admin) = (peers[0].npub(), 1);
    let mut defer = |_: &AppMessage| Disposition::Defer {
        label: "notify".into(),
    };
    let got = peers[admin]
        .receive(&event, clock.live(), &mut defer)
        .unwrap();
    assert!(matches!(&got[..], [Inbound::Deferred(message)] if message.sender == sender));
    let again = peers[admin]
        .receive(&event, clock.live(), &mut defer)
        .unwrap();
    assert!(matches!(&again[..], [Inbound::Duplicate { .. }]));

    // Life goes on: later messages, an epoch, a restart.
    let later = peers[0].say(&group, "{\"n\":2}", &clock);
    assert_eq!(peers[admin].take(&later, &clock).1, ["{\"n\":2}"]);
    let staged = peers[admin].self_update(&group, clock.0).unwrap();
    common::publish(&mut peers, admin, &staged, &clock);
    peers[admin].reopen();
    let waiting = peers[admin].deferred(&group).unwrap();
    assert_eq!(waiting.len(), 1);
    assert_eq!(
        (waiting[0].event_id, waiting[0].label.as_str()),
        (event.id, "notify")
    );

    // Asked and put off again: still there.
    peers[admin].receive_deferred(event.id, &mut defer).unwrap();
    let mut shown = Vec::new();
    let opened = peers[admin]
        .receive_deferred(event.id, &mut |message: &AppMessage| {
            shown = message.body.to_vec();
            Disposition::Consume
        })
        .unwrap();
    assert!(
        matches!(opened, Some(Inbound::Message { epoch: 2, .. })),
        "{opened:?}"
    );
    assert_eq!(shown, b"{\"secret\":1}");
    assert!(peers[admin].deferred(&group).unwrap().is_empty());
    assert_eq!(
        peers[admin].receive_deferred(event.id, &mut defer).unwrap(),
        None
    );
}

#[test]
fn the_inbox_survives_a_kill_between_opening_and_handling() {
    let mut clock = Clock::start();
    let (mut peers, group) = group(2, 1, &mut clock);
    let event = peers[0].say(&group, "{\"request\":1}", &clock);
    // A kill inside the transaction, then one right after it.
    let mut inside = None;
    let files = peers[1].dir.path().to_owned();
    let got = peers[1]
        .receive(&event, clock.live(), &mut |message: &AppMessage| {
            let to = tempfile::TempDir::new().unwrap();
            for entry in std::fs::read_dir(&files).unwrap() {
                let entry = entry.unwrap();
                std::fs::copy(entry.path(), to.path().join(entry.file_name())).unwrap();
            }
            inside = Some(to);
            Disposition::Inbox(message.body.to_vec())
        })
        .unwrap();
    let after = copy_files(&peers[1]);

    let mut killed_inside = open_copy(inside.unwrap().path(), &peers[1]);
    assert!(killed_inside.inbox().unwrap().is_empty());
    let redelivered = killed_inside
        .receive(&event, clock.live(), &mut |_: &AppMessage| {
            Disposition::Consume
        })
        .unwrap();
    assert!(
        matches!(&redelivered[..], [Inbound::Message { .. }]),
        "{redelivered:?}"
    );

    let mut killed_after = open_copy(after.path(), &peers[1]);
    let redelivered = killed_after
        .receive(&event, clock.live(), &mut |_: &AppMessage| {
            panic!("opened twice")
        })
        .unwrap();
    assert!(matches!(&redelivered[..], [Inbound::Duplicate { .. }]));
    let rows = killed_after.inbox().unwrap();
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0].body.as_slice(), b"{\"request\":1}");
    assert_eq!(rows[0].sender, peers[0].npub());
    assert_eq!(rows[0].signature_key, peers[0].signature_key());
    assert!(matches!(&got[..], [Inbound::Message { inbox: Some(id), .. }] if *id == rows[0].id));
    assert!(killed_after.inbox_done(rows[0].id).unwrap());
    assert!(!killed_after.inbox_done(rows[0].id).unwrap());
}

#[test]
fn rows_go_by_their_events_and_no_leaf_keeps_more_than_its_share() {
    let mut clock = Clock::start();
    let (mut peers, group) = group(3, 1, &mut clock);
    let mut says = |from: usize, n: usize| {
        let event = peers[from].say(&group, &format!("{{\"request\":{n}}}"), &clock);
        let got = peers[2].receive(&event, clock.live(), &mut |message: &AppMessage| {
            Disposition::Inbox(message.body.to_vec())
        });
        assert!(matches!(
            &got.unwrap()[..],
            [Inbound::Message { inbox: Some(_), .. }]
        ));
        event.id
    };
    let ids: Vec<_> = [0, 1, 0, 0, 0, 1]
        .into_iter()
        .enumerate()
        .map(|(n, from)| says(from, n))
        .collect();
    let left = |peers: &[common::Peer]| -> Vec<_> {
        let rows = peers[2].inbox().unwrap();
        rows.into_iter().map(|row| row.event_id).collect()
    };
    assert_eq!(left(&peers), ids);
    let unknown = nostr::EventId::all_zeros();
    let group = peers[2].inbox().unwrap()[0].group.clone();
    // Said in another group, it settles nothing here.
    let other = MlsGroupId::from_bytes(&[9; 16]).unwrap();
    peers[2].inbox_answered(&[(other, ids[2])]).unwrap();
    assert_eq!(left(&peers), ids);
    let answered = [(group.clone(), ids[2]), (group, unknown)];
    peers[2].inbox_answered(&answered).unwrap();
    assert_eq!(left(&peers), [ids[0], ids[1], ids[3], ids[4], ids[5]]);
    // The oldest go, each leaf's for itself.
    let trimmed = peers[2].trim_inbox(2).unwrap();
    assert_eq!(trimmed, [(peers[0].npub(), ids[0])]);
    assert_eq!(left(&peers), [ids[1], ids[3], ids[4], ids[5]]);
    assert_eq!(peers[2].trim_inbox(2).unwrap(), []);
    let mut trimmed = peers[2].trim_inbox(1).unwrap();
    trimmed.sort_by_key(|(_, event)| ids.iter().position(|id| id == event));
    assert_eq!(
        trimmed,
        [(peers[1].npub(), ids[1]), (peers[0].npub(), ids[3])]
    );
    assert_eq!(left(&peers), [ids[4], ids[5]]);
}

#[test]
fn the_database_is_private_and_opens_only_with_its_key_for_its_npub_and_once() {
    use std::os::unix::fs::PermissionsExt as _;
    let mut peer = Peer::new();
    for entry in std::fs::read_dir(peer.dir.path()).unwrap() {
        let entry = entry.unwrap();
        let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{:?}", entry.file_name());
    }
    let config = peer.config();
    assert!(matches!(
        Member::open(config).err().unwrap(),
        OpenError::Locked { .. }
    ));
    peer.close();
    let mut config = peer.config();
    config.storage_key = StorageKey::generate().unwrap();
    assert!(matches!(
        Member::open(config).err().unwrap(),
        OpenError::WrongKey { .. }
    ));
    let mut config = peer.config();
    config.keys = nostr::Keys::generate();
    assert!(matches!(
        Member::open(config).err().unwrap(),
        OpenError::OtherIdentity { .. }
    ));
    peer.reopen();
}
