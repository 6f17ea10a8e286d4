//! The member database.

use std::fs;

use keyturn::doctor::Level;
use keyturn_mls::{Member, MemberConfig, StorageKey};
use keyturn_proto::MlsGroupId;
use keyturn_store::documents::{AdminGroupDoc, GroupState};
use keyturn_store::store::Registry as _;
use nostr::{Keys, ToBech32 as _};

use crate::audit;
use crate::patient::Patient;

#[tokio::test(flavor = "multi_thread")]
async fn a_member_database_that_does_not_open_is_named() {
    let patient = Patient::new().await;
    patient.chmod("member.db", 0o640);
    patient
        .finds("mls", Level::Fail, "mode 0640", "chmod 600 ")
        .await;
    patient.file("mls.key", &"06".repeat(32), 0o600);
    patient
        .finds(
            "mls",
            Level::Fail,
            "the storage key does not open",
            "mls.storage_key_file",
        )
        .await;
    patient.file("mls.key", &"07".repeat(32), 0o600);
    let nsec = fs::read_to_string(patient.path("nostr.nsec")).unwrap();
    let stranger = Keys::generate().secret_key().to_bech32().unwrap();
    patient.file("nostr.nsec", &stranger, 0o600);
    patient
        .finds(
            "mls",
            Level::Fail,
            "belongs to",
            "mls.nostr_secret_key_file",
        )
        .await;
    patient.file("nostr.nsec", "not an nsec", 0o600);
    patient
        .finds("mls", Level::Warn, "was not opened", "secrets")
        .await;
    patient.file("nostr.nsec", &nsec, 0o600);
    let open = Member::open(MemberConfig::new(
        patient.path("member.db"),
        StorageKey::from_text(&"07".repeat(32)).unwrap(),
        Keys::parse(&nsec).unwrap(),
    ))
    .unwrap();
    patient
        .finds("mls", Level::Warn, "another process", "fuser")
        .await;
    drop(open);

    let now = patient.now;
    let group = |id: Option<&[u8]>| AdminGroupDoc {
        alias: "ops".to_owned(),
        mls_group_id: id.map(|id| MlsGroupId::from_bytes(id).unwrap()),
        nostr_group_id: None,
        welcomers: vec![patient.admin],
        status: GroupState::Active,
        updated_at: now,
    };
    let store = patient.store();
    store
        .put_group(group(Some(b"another")), audit(now))
        .await
        .unwrap();
    patient
        .finds(
            "mls",
            Level::Fail,
            "member database was lost",
            "Lost member database",
        )
        .await;
    patient
        .finds(
            "mls",
            Level::Warn,
            "which no alias is bound to",
            "--mls-group-id",
        )
        .await;
    let unbound = AdminGroupDoc {
        updated_at: store.groups().await.unwrap()[0].updated_at,
        ..group(None)
    };
    store.put_group(unbound, audit(now)).await.unwrap();
    patient
        .finds(
            "mls",
            Level::Warn,
            "was not joined yet",
            "keyturn-admin group invite",
        )
        .await;
}
