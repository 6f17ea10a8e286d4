//! What an operator enrols, adds and binds, and what of it may be shown.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use keyturn_proto::{MlsGroupId, Npub, UnixMs};
use keyturn_store::documents::{ClientScope, ClientStatus, GroupState, ProvenKey};
use keyturn_store::sqlite::SqliteStore;
use keyturn_store::store::{AuditTrail as _, Registry as _};

use super::*;
use crate::admission::SeedKey;

const NOW: UnixMs = UnixMs(1_760_000_000_000);
const ALICE: Npub = Npub::from_bytes([0xa1; 32]);

struct World {
    store: SqliteStore,
    seed_key: SeedKey,
    _dir: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&dir.path().join("store.db")).unwrap();
        Self {
            store,
            seed_key: SeedKey::new(&[2; 32]),
            _dir: dir,
        }
    }

    async fn enrol(&self, new_seed: bool, keys: Vec<ProvenKey>) -> Option<String> {
        let enrolment = admins::Enrolment {
            npub: ALICE,
            scope: ClientScope::All,
            keys,
            new_seed,
            issuer: "Keyturn".to_owned(),
        };
        let enrolled = admins::enrol(&self.store, &self.seed_key, enrolment, NOW)
            .await
            .unwrap();
        enrolled.otpauth.map(|uri| uri.to_string())
    }

    async fn events(&self) -> Vec<String> {
        let records = self.store.read(None, 100).await.unwrap();
        assert!(records.iter().all(|record| record.actor == Actor::Operator));
        records.into_iter().map(|record| record.event).collect()
    }
}

fn key(byte: u8) -> ProvenKey {
    ProvenKey {
        key: hex::encode([byte; 32]),
        proof_event: hex::encode([byte; 32]),
        at: NOW,
    }
}

#[tokio::test]
async fn a_seed_is_shown_once_and_stays_until_a_new_one_is_asked_for() {
    let world = World::new();
    let uri = world.enrol(false, vec![key(1)]).await.unwrap();
    assert!(uri.starts_with("otpauth://totp/"));
    let stored = world.store.admin(&ALICE).await.unwrap().unwrap();
    let totp = stored.totp.unwrap();
    let seed = world.seed_key.open(&totp.seed_ciphertext, &ALICE).unwrap();
    assert_eq!(
        seed.otpauth("Keyturn", &ALICE.to_string())
            .unwrap()
            .as_str(),
        uri
    );
    assert!(!uri.contains(&totp.seed_ciphertext));

    assert_eq!(world.enrol(false, vec![key(2)]).await, None);
    let view = admins::list(&world.store).await.unwrap().remove(0);
    assert_eq!(view.signature_keys, vec![key(1).key, key(2).key]);
    assert!(view.active && view.totp);
    assert!(
        !serde_json::to_string(&view)
            .unwrap()
            .contains(&totp.seed_ciphertext)
    );

    assert_ne!(world.enrol(true, vec![]).await.unwrap(), uri);
    let expected = [
        "admin.enrolled",
        "admin.key_proven",
        "admin.changed",
        "admin.key_proven",
        "admin.enrolled",
    ];
    assert_eq!(world.events().await, expected);
}

#[tokio::test]
async fn whoever_was_revoked_starts_anew() {
    let world = World::new();
    let first = world.enrol(false, vec![key(1)]).await.unwrap();
    admins::revoke(&world.store, &ALICE, NOW).await.unwrap();
    assert!(!admins::list(&world.store).await.unwrap()[0].active);
    let second = world.enrol(false, vec![]).await.unwrap();
    assert_ne!(first, second);
    assert!(
        admins::list(&world.store).await.unwrap()[0]
            .signature_keys
            .is_empty()
    );

    let nobody = Npub::from_bytes([9; 32]);
    let error = admins::revoke(&world.store, &nobody, NOW)
        .await
        .unwrap_err();
    assert!(
        matches!(error, OperatorError::Unknown { what: "admin", .. }),
        "{error}"
    );
}

fn binding(alias: &str, id: Option<u8>) -> groups::Binding {
    groups::Binding {
        alias: alias.to_owned(),
        mls_group_id: id.map(|id| MlsGroupId::from_bytes(&[id; 16]).unwrap()),
        nostr_group_id: id.map(|id| [id; 32]),
        welcomers: vec![ALICE],
    }
}

#[tokio::test]
async fn a_client_needs_bound_groups_and_begins_without_a_secret() {
    let world = World::new();
    let id: ClientId = "ext-totp-svc".parse().unwrap();
    let add = || clients::add(&world.store, id.clone(), vec!["ops".to_owned()], NOW);
    let error = add().await.unwrap_err();
    assert!(
        matches!(error, OperatorError::Unknown { what: "group", .. }),
        "{error}"
    );
    groups::bind(&world.store, binding("ops", None), NOW)
        .await
        .unwrap();
    add().await.unwrap();
    let error = add().await.unwrap_err();
    assert!(
        matches!(error, OperatorError::Exists { what: "client", .. }),
        "{error}"
    );

    let shown = clients::show(&world.store, &id).await.unwrap();
    assert_eq!(
        (shown.client.current_version, shown.versions.len()),
        (None, 0)
    );
    assert_eq!(
        clients::list(&world.store).await.unwrap(),
        vec![shown.client]
    );
    let nobody: ClientId = "nobody".parse().unwrap();
    assert!(clients::show(&world.store, &nobody).await.is_err());
    assert_eq!(world.events().await, ["group.bound", "client.added"]);
}

#[tokio::test]
async fn the_operator_suspends_and_reactivates_a_client() {
    let world = World::new();
    let id: ClientId = "c".parse().unwrap();
    groups::bind(&world.store, binding("ops", Some(1)), NOW)
        .await
        .unwrap();
    clients::add(&world.store, id.clone(), vec!["ops".to_owned()], NOW)
        .await
        .unwrap();
    clients::set_status(&world.store, &id, ClientStatus::Suspended, NOW)
        .await
        .unwrap();
    let held = clients::show(&world.store, &id).await.unwrap().client;
    assert_eq!((held.status, held.held), (ClientStatus::Suspended, true));
    clients::set_status(&world.store, &id, ClientStatus::Active, NOW)
        .await
        .unwrap();
    let lifted = clients::show(&world.store, &id).await.unwrap().client;
    assert_eq!((lifted.status, lifted.held), (ClientStatus::Active, false));
    let nobody: ClientId = "nobody".parse().unwrap();
    let error = clients::set_status(&world.store, &nobody, ClientStatus::Active, NOW).await;
    assert!(matches!(error, Err(OperatorError::Unknown { .. })));
}

#[tokio::test]
async fn binding_again_keeps_what_is_not_given_and_lifts_no_suspension() {
    let world = World::new();
    groups::bind(&world.store, binding("ops", Some(1)), NOW)
        .await
        .unwrap();
    groups::suspend(&world.store, "ops", NOW).await.unwrap();
    groups::bind(&world.store, binding("ops", None), NOW)
        .await
        .unwrap();
    let group = groups::list(&world.store).await.unwrap().remove(0);
    assert_eq!(group.mls_group_id, binding("", Some(1)).mls_group_id);
    assert!(matches!(group.status, GroupState::Suspended { .. }));
    groups::approve(&world.store, "ops", NOW).await.unwrap();
    assert_eq!(
        groups::list(&world.store).await.unwrap()[0].status,
        GroupState::Active
    );
    assert!(matches!(
        groups::approve(&world.store, "nobody", NOW).await,
        Err(OperatorError::Unknown { .. })
    ));
    for alias in ["", "-x", "a b", "a/b", &"x".repeat(65)] {
        let verdict = groups::bind(&world.store, binding(alias, None), NOW).await;
        assert!(matches!(verdict, Err(OperatorError::Value(_))), "{alias:?}");
    }
}

#[test]
fn a_proof_is_a_signed_event_of_that_npub() {
    use nostr::{EventBuilder, JsonUtil as _, Keys, Kind};
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("event.json");
    let keys = Keys::generate();
    let npub = Npub::from_bytes(keys.public_key().to_bytes());
    let event = EventBuilder::new(Kind::Custom(40913), "")
        .sign_with_keys(&keys)
        .unwrap();
    for text in ["", "{}", &event.as_json(), &"x".repeat(70_000)] {
        std::fs::write(&file, text).unwrap();
        for verdict in [
            proofs::binding(&file, &npub, NOW),
            proofs::key_package(&file, &npub, NOW),
        ] {
            assert!(
                matches!(verdict, Err(OperatorError::Proof { .. })),
                "{text:.40}"
            );
        }
    }
}

#[test]
fn a_key_package_event_and_a_binding_prove_the_key_for_their_author_alone() {
    use keyturn_mls::{Member, MemberConfig, StorageKey};
    use nostr::JsonUtil as _;
    let dir = tempfile::tempdir().unwrap();
    let keys = nostr::Keys::generate();
    let npub = Npub::from_bytes(keys.public_key().to_bytes());
    let storage = StorageKey::generate().unwrap();
    let config = MemberConfig::new(dir.path().join("member.db"), storage, keys);
    let mut member = Member::open(config).unwrap();
    let now = UnixMs::from_secs(nostr::Timestamp::now().as_secs());
    let relays = ["wss://relay.example".to_owned()];
    let events = member.publish_key_package(&relays, now).unwrap();
    let file = dir.path().join("event.json");
    for event in [&events.addressable, &events.legacy] {
        std::fs::write(&file, event.as_json()).unwrap();
        let proven = proofs::key_package(&file, &npub, now).unwrap();
        assert_eq!(proven.key, member.signature_key().to_hex());
        assert_eq!(proven.proof_event, event.id.to_hex());
        assert!(
            proofs::key_package(&file, &ALICE, now).is_err(),
            "another npub"
        );
        assert!(proofs::binding(&file, &npub, now).is_err(), "another kind");
    }
}

#[test]
fn the_qr_code_is_square_and_has_a_margin() {
    let image =
        qr::render("otpauth://totp/Keyturn:npub1x?secret=GEZDGNBVGY3TQOJQ&issuer=Keyturn").unwrap();
    let lines: Vec<_> = image.lines().collect();
    let width = lines[0].chars().count();
    assert!(lines.iter().all(|line| line.chars().count() == width));
    assert_eq!(lines.len(), width.div_ceil(2));
    assert!(lines[0].chars().all(|c| c == '\u{2588}'), "a light margin");
    assert!(qr::render(&"x".repeat(5000)).is_err());
}
