//! Imports judged by the verifier, against a real store and key.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use keyturn_proto::PresentedSecret;
use keyturn_store::documents::{AdminGroupDoc, AuditRecord, GroupState};
use keyturn_store::mac::LocalMacKey;
use keyturn_store::sqlite::SqliteStore;
use keyturn_store::store::{AuditTrail as _, Registry as _};
use keyturn_store::verifier::{Settings, Verifier, Which};
use zeroize::Zeroizing;

use super::lines::{LineError, Report};
use super::*;

const NOW: UnixMs = UnixMs(1_760_000_000_000);
const SECRET: &str = "hunter2 from 2009, kept";

struct World {
    store: SqliteStore,
    mac: LocalMacKey,
    _dir: tempfile::TempDir,
}

impl World {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&dir.path().join("store.db")).unwrap();
        for alias in ["ops", "night"] {
            let group = AdminGroupDoc {
                alias: alias.to_owned(),
                mls_group_id: None,
                nostr_group_id: None,
                welcomers: Vec::new(),
                status: GroupState::Active,
                updated_at: NOW,
            };
            let record = audit("group.bound", "test", NOW);
            store.put_group(group, record).await.unwrap();
        }
        Self {
            store,
            mac: LocalMacKey::from_keys(&[7; 32], &[]),
            _dir: dir,
        }
    }

    fn importer(&self, dry_run: bool) -> Importer<'_> {
        Importer::new(&self.store, &self.mac, NOW, dry_run)
    }

    async fn import(&self, entry: &Entry) -> Result<Imported, Refused> {
        self.importer(false).import(entry).await
    }

    async fn lines(&self, file: &str, dry_run: bool) -> Vec<Report> {
        let mut reports = Vec::new();
        let report = |report| {
            reports.push(report);
            Ok::<_, std::convert::Infallible>(())
        };
        let importer = self.importer(dry_run);
        importer
            .import_lines(file.as_bytes(), report)
            .await
            .unwrap();
        reports
    }

    async fn verifies(&self, client: &str, secret: &str) -> bool {
        let store = Arc::new(self.store.clone());
        let mac = LocalMacKey::from_keys(&[7; 32], &[]);
        let verifier = Verifier::new(store, mac, Settings::default()).unwrap();
        let here = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let secret = PresentedSecret::new(secret);
        let found = verifier.verify(client, &secret, here, NOW).await;
        found.is_ok_and(|verified| verified.which == Which::Current)
    }

    async fn trail(&self, client: &str) -> Vec<AuditRecord> {
        let client = client.parse().unwrap();
        self.store.read(Some(&client), 100).await.unwrap()
    }
}

fn plain(secret: &str) -> Material {
    Material::plain(Zeroizing::new(secret.to_owned())).unwrap()
}

fn bcrypt_of(secret: &str) -> String {
    bcrypt::hash(secret, 4).unwrap()
}

fn entry(groups: &[&str], material: Material) -> Entry {
    Entry {
        client_id: "old-client".parse().unwrap(),
        groups: groups.iter().map(|&alias| alias.to_owned()).collect(),
        material,
    }
}

#[tokio::test]
async fn a_plaintext_secret_verifies_and_bears_nothing_that_only_generated_ones_have() {
    let world = World::new().await;
    let imported = world.import(&entry(&["ops"], plain(SECRET))).await;
    let Ok(Imported::Now(version_id)) = imported else {
        panic!("{imported:?}")
    };
    assert!(world.verifies("old-client", SECRET).await);
    assert!(!world.verifies("old-client", "hunter2").await);
    let id = "old-client".parse().unwrap();
    let version = world.store.versions(&id).await.unwrap().remove(0);
    assert_eq!(version.version_id, version_id);
    assert_eq!(version.origin, Origin::Imported);
    assert_eq!(version.state, VersionState::Current);
    let derived = (version.prefilter, version.ack_public_key, version.prehash);
    assert_eq!(derived, (None, None, None));
    let record = world.trail("old-client").await.remove(0);
    assert_eq!(record.event, "client.imported");
    assert_eq!(record.reason, "plaintext");
    assert_eq!(record.version_id, Some(version_id));
}

#[tokio::test]
async fn a_bcrypt_hash_verifies_by_its_secret_and_is_not_stored() {
    let world = World::new().await;
    let hash = bcrypt_of(SECRET);
    let material = Material::bcrypt(&hash).unwrap();
    world.import(&entry(&["ops"], material)).await.unwrap();
    assert!(world.verifies("old-client", SECRET).await);
    // Whoever stole the old table has nothing.
    assert!(!world.verifies("old-client", &hash).await);
    let id = "old-client".parse().unwrap();
    let stored = serde_json::to_string(&(
        world.store.client(&id).await.unwrap(),
        world.store.versions(&id).await.unwrap(),
        world.trail("old-client").await,
    ))
    .unwrap();
    assert!(stored.contains(&hash[..29]), "the setting is there");
    assert!(!stored.contains(&hash[29..]), "the hash is not");
    assert_eq!(world.trail("old-client").await[0].reason, "bcrypt, cost 4");
}

#[tokio::test]
async fn a_repeat_is_fine_and_a_difference_is_named_audited_and_changes_nothing() {
    let world = World::new().await;
    let both = ["ops", "night"];
    let first = world.import(&entry(&both, plain(SECRET))).await.unwrap();
    let Imported::Now(version) = first else {
        panic!("{first:?}")
    };
    let turned = ["night", "ops"];
    let again = world.import(&entry(&turned, plain(SECRET))).await;
    assert_eq!(again, Ok(Imported::Already(version)));
    for (groups, material, refused) in [
        (&both[..], plain("another secret"), Refused::OtherSecret),
        (&both[..1], plain(SECRET), Refused::OtherGroups),
        (
            &both[..],
            Material::bcrypt(&bcrypt_of(SECRET)).unwrap(),
            Refused::OtherKind,
        ),
    ] {
        let found = world.import(&entry(groups, material)).await;
        assert_eq!(found, Err(refused));
    }
    assert!(world.verifies("old-client", SECRET).await);
    let events: Vec<_> = world
        .trail("old-client")
        .await
        .into_iter()
        .map(|record| record.reason)
        .collect();
    let expected = [
        "plaintext",
        "import.other_secret",
        "import.other_groups",
        "import.other_kind",
    ];
    assert_eq!(events, expected);
}

#[tokio::test]
async fn a_client_registered_by_hand_is_left_alone() {
    let world = World::new().await;
    let id = "old-client".parse().unwrap();
    let groups = vec!["ops".to_owned()];
    crate::operator::clients::add(&world.store, id, groups, NOW)
        .await
        .unwrap();
    let found = world.import(&entry(&["ops"], plain(SECRET))).await;
    assert_eq!(found, Err(Refused::NotImported));
    assert!(!world.verifies("old-client", SECRET).await);
}

#[tokio::test]
async fn groups_must_be_named_and_bound() {
    let world = World::new().await;
    let found = world.import(&entry(&[], plain(SECRET))).await;
    assert_eq!(found, Err(Refused::NoGroup));
    let found = world
        .import(&entry(&["ops", "nobody"], plain(SECRET)))
        .await;
    assert_eq!(found, Err(Refused::UnknownGroup("nobody".to_owned())));
}

#[tokio::test]
async fn a_file_is_judged_line_by_line_and_running_it_again_finishes_it() {
    let world = World::new().await;
    let file = format!(
        r#"{{"client_id": "a", "groups": ["ops"], "secret": "{SECRET}"}}

{{"client_id": "b", "groups": ["ops"], "bcrypt": "{}"}}
{{"client_id": "c", "groups": ["later"], "secret": "{SECRET}"}}
{{"client_id": "a", "groups": ["ops"], "secret": "{SECRET}"}}
{{"client_id": "d", "groups": ["ops"], "secret": "{SECRET}", "bcrypt": "x"}}
{{"client_id": "e", "groups": ["ops"], "secret": 20090101}}
{{"client_id": "f", "groups": ["ops"], "pasword": "{SECRET}"}}
{{"client_id": "a/b", "groups": ["ops"], "secret": "{SECRET}"}}
{{"client_id": "g", "groups": ["ops"], "bcrypt": "$2b$31$abcdefghijklmnopqrstuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuu"}}
{SECRET}
"#,
        bcrypt_of(SECRET)
    );
    let dry = world.lines(&file, true).await;
    assert_eq!(dry[0].result, Ok(Imported::Would));
    assert!(!world.verifies("a", SECRET).await);

    let reports = world.lines(&file, false).await;
    let numbers: Vec<_> = reports.iter().map(|report| report.line).collect();
    assert_eq!(numbers, [1, 3, 4, 5, 6, 7, 8, 9, 10, 11]);
    for (dry, real) in dry.iter().zip(&reports) {
        assert_eq!(dry.result.is_ok(), real.result.is_ok(), "{}", real.line);
    }
    assert!(matches!(reports[0].result, Ok(Imported::Now(_))));
    assert!(matches!(reports[1].result, Ok(Imported::Now(_))));
    assert!(world.verifies("a", SECRET).await && world.verifies("b", SECRET).await);
    let error = |n: usize| reports[n].result.clone().unwrap_err();
    assert_eq!(
        error(2),
        LineError::Refused(Refused::UnknownGroup("later".to_owned()))
    );
    assert_eq!(error(3), LineError::Repeated);
    assert_eq!(error(4), LineError::OneSecret);
    assert!(matches!(error(5), LineError::Shape { column: 1.. }));
    assert!(matches!(error(6), LineError::Shape { .. }));
    assert!(matches!(error(7), LineError::ClientId(_)));
    assert!(matches!(error(8), LineError::Material(_)));
    assert!(matches!(error(9), LineError::Shape { .. }));
    for report in &reports {
        if let Err(error) = &report.result {
            let shown = format!("{error} {error:?}");
            assert!(!shown.contains("hunter2"), "{shown}");
            assert!(!shown.contains("20090101"), "{shown}");
        }
    }

    let again = world.lines(&file.replace("later", "night"), false).await;
    assert!(matches!(again[0].result, Ok(Imported::Already(_))));
    assert!(matches!(again[1].result, Ok(Imported::Already(_))));
    assert!(matches!(again[2].result, Ok(Imported::Now(_))));
}

#[test]
fn what_is_no_secret_is_named_and_not_repeated() {
    let of = |bytes: &[u8]| Material::of_bytes(bytes, false).err().unwrap();
    assert_eq!(of(b""), MaterialError::Empty);
    assert_eq!(of(b"\n"), MaterialError::Empty);
    assert_eq!(of(b"one\ntwo"), MaterialError::Control);
    assert_eq!(of(b"one\0two"), MaterialError::Control);
    assert_eq!(of(&[0xff, 0xfe]), MaterialError::NotText);
    assert_eq!(of(&[b'x'; 1025]), MaterialError::TooLong);
    assert_eq!(of(bcrypt_of("x").as_bytes()), MaterialError::IsBcrypt);
    let hash = format!("{}\r\n", bcrypt_of("x"));
    assert!(Material::of_bytes(hash.as_bytes(), true).is_ok());
    assert!(Material::of_bytes(b"hunter2", true).is_err());

    // Blanks belong to a secret; the line's own end does not.
    let kept = Material::of_bytes(b" a secret \n", false).unwrap();
    assert_eq!(kept.mac_input(), " a secret ");
    assert!(kept.warning().is_some(), "short");
    assert!(plain(SECRET).warning().is_none());
    let slow = "$2b$13$abcdefghijklmnopqrstuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuu";
    assert!(Material::bcrypt(slow).unwrap().warning().is_some());
}
