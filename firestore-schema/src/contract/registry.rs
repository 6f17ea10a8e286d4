//! Clients, admins, groups and the audit trail.

use keyturn_proto::ClientId;
use keyturn_proto::notify::Outcome;

use super::World;
use super::fixture::{
    NOW, REQUESTER, SECOND, THIRD, admin, at, audit, client, client_id, group, npub, operation,
    version, version_id,
};
use super::world::conflict;
use crate::documents::{
    AdminDoc, AdminGroupDoc, ClientStatus, GroupState, Origin, PolicyOverrides, ProvenKey,
    VersionDoc, VersionState,
};
use crate::store::StoreError;

super::case_list![
    a_client_is_created_once_with_its_first_version,
    a_client_can_begin_without_a_version,
    a_first_version_must_be_the_clients_own_and_current,
    an_imported_version_keeps_its_bcrypt_setting,
    what_is_derived_from_a_secret_belongs_to_its_origin,
    clients_are_listed_in_pages,
    a_suspension_withdraws_the_rotation_and_is_lifted_by_the_operator,
    revoking_a_client_retires_everything_for_good,
    groups_and_policy_change_without_touching_versions,
    enrolling_again_keeps_the_totp_state_unless_the_seed_changes,
    a_key_is_proven_once_and_for_one_admin_only,
    groups_are_registered_suspended_and_approved,
    one_mls_group_has_one_alias,
    an_alias_can_be_the_id_of_a_document,
    what_was_changed_meanwhile_is_not_overwritten,
    of_two_changes_made_from_one_reading_one_is_stored,
    the_audit_trail_is_ordered_filtered_and_limited,
    the_store_answers_a_ping,
];

async fn a_client_is_created_once_with_its_first_version(w: World) {
    w.settle().await;
    let stored = w.client().await;
    assert_eq!(stored.current_version, Some(version_id(1)));
    assert_eq!(stored.snapshot.len(), 1);
    w.check_snapshot().await;
    let before = w.picture().await;
    let again = w
        .store
        .create_client(client(client_id()), None, audit("client.created", NOW));
    conflict(again.await, "client.exists");
    assert_eq!(w.picture().await, before);
}

async fn a_client_can_begin_without_a_version(w: World) {
    w.store
        .create_client(client(client_id()), None, audit("client.created", NOW))
        .await
        .unwrap();
    for n in [REQUESTER, SECOND, THIRD] {
        let audit = audit("admin.enrolled", NOW);
        w.store.put_admin(admin(n, false), audit).await.unwrap();
    }
    let stored = w.client().await;
    assert_eq!((stored.current_version, stored.snapshot.len()), (None, 0));
    w.promoted(1, NOW).await;
    let rotation = w.rotation(&operation(1)).await;
    assert_eq!((rotation.old_version, rotation.grace_until), (None, None));
}

fn imported(prehash: Option<&str>) -> VersionDoc {
    VersionDoc {
        origin: Origin::Imported,
        prefilter: None,
        prehash: prehash.map(str::to_owned),
        ..version(1, None, VersionState::Current, NOW)
    }
}

/// bcrypt's identifier, cost and salt.
const SETTING: &str = "$2b$10$abcdefghijklmnopqrstuu";

async fn an_imported_version_keeps_its_bcrypt_setting(w: World) {
    let record = audit("client.imported", NOW);
    let first = imported(Some(SETTING));
    let created = w
        .store
        .create_client(client(client_id()), Some(first.clone()), record);
    created.await.unwrap();
    assert_eq!(w.version(version_id(1)).await, first);
    assert_eq!(
        w.client().await.snapshot[0].prehash.as_deref(),
        Some(SETTING)
    );
    for n in [REQUESTER, SECOND, THIRD] {
        let audit = audit("admin.enrolled", NOW);
        w.store.put_admin(admin(n, false), audit).await.unwrap();
    }
    // It goes through its grace like any other, and the one that replaces it has none.
    w.promoted(2, NOW).await;
    let snapshot = w.client().await.snapshot;
    let settings: Vec<_> = snapshot.iter().map(|entry| &entry.prehash).collect();
    assert_eq!(settings, [&None, &Some(SETTING.to_owned())]);
    w.check_snapshot().await;
}

async fn what_is_derived_from_a_secret_belongs_to_its_origin(w: World) {
    let create = |first| {
        let audit = audit("client.imported", NOW);
        w.store
            .create_client(client(client_id()), Some(first), audit)
    };
    let generated = VersionDoc {
        origin: Origin::Generated,
        ..imported(Some(SETTING))
    };
    let with_prefilter = VersionDoc {
        prefilter: Some("00000001".to_owned()),
        ..imported(None)
    };
    let with_ack_key = VersionDoc {
        ack_public_key: Some("key".to_owned()),
        ..imported(None)
    };
    let malformed = [
        "",
        "$2b$10$",
        "$2x$10$abcdefghijklmnopqrstuu",
        "$2b$31$abcdefghijklmnopqrstuu",
    ];
    let malformed = malformed.map(|setting| imported(Some(setting)));
    for version in [generated, with_prefilter, with_ack_key]
        .into_iter()
        .chain(malformed)
    {
        conflict(create(version).await, "version.malformed");
    }
    assert_eq!(w.store.client(&client_id()).await.unwrap(), None);
}

async fn a_first_version_must_be_the_clients_own_and_current(w: World) {
    let create = |first| {
        let audit = audit("client.created", NOW);
        w.store
            .create_client(client(client_id()), Some(first), audit)
    };
    let mut foreign = version(1, None, VersionState::Current, NOW);
    foreign.client_id = "other".parse().unwrap();
    conflict(create(foreign).await, "version.mismatch");
    let pending = version(1, None, VersionState::Pending, NOW);
    conflict(create(pending).await, "version.mismatch");
    let mut malformed = version(1, None, VersionState::Current, NOW);
    malformed.secret_hash = "plain".to_owned();
    conflict(create(malformed).await, "version.malformed");
    assert_eq!(w.store.client(&client_id()).await.unwrap(), None);
    assert!(w.events().await.is_empty());
}

async fn clients_are_listed_in_pages(w: World) {
    let ids: Vec<ClientId> = ["a", "b", "c", "d", "e"]
        .map(|id| id.parse().unwrap())
        .into();
    for id in ids.iter().rev() {
        w.store
            .create_client(client(id.clone()), None, audit("client.created", NOW))
            .await
            .unwrap();
    }
    let mut seen = Vec::new();
    loop {
        let page = w.store.clients(seen.last(), 2).await.unwrap();
        if page.is_empty() {
            break;
        }
        assert!(page.len() <= 2);
        seen.extend(page.into_iter().map(|doc| doc.client_id));
    }
    assert_eq!(seen, ids);
}

async fn a_suspension_withdraws_the_rotation_and_is_lifted_by_the_operator(w: World) {
    w.settle().await;
    let (id, _) = w.prepared(2, NOW).await;
    let client = client_id();
    let set = |status| {
        let audit = audit("client.updated", NOW);
        w.store
            .update_client(&client, Some(status), None, None, NOW, audit)
    };
    let suspended = set(ClientStatus::Suspended).await.unwrap();
    assert_eq!(suspended.status, ClientStatus::Suspended);
    assert_eq!(suspended.current_version, Some(version_id(1)));
    assert_eq!(w.rotation(&id).await.outcome, Some(Outcome::Canceled));
    assert_eq!(w.state(2).await, VersionState::Cancelled);
    let active = set(ClientStatus::Active).await.unwrap();
    assert_eq!(active.status, ClientStatus::Active);
    assert!(!active.policy.held);
    w.promoted(3, NOW).await;
}

async fn revoking_a_client_retires_everything_for_good(w: World) {
    w.settle().await;
    let then = w.promoted(2, NOW).await;
    let (id, _) = w.prepared(3, then).await;
    let client = client_id();
    let set = |status| {
        let audit = audit("client.updated", then);
        w.store
            .update_client(&client, Some(status), None, None, then, audit)
    };
    let revoked = set(ClientStatus::Revoked).await.unwrap();
    assert_eq!(revoked.status, ClientStatus::Revoked);
    assert!(revoked.snapshot.is_empty());
    assert_eq!(revoked.active_rotation, None);
    assert_eq!(w.rotation(&id).await.outcome, Some(Outcome::Revoked));
    conflict(set(ClientStatus::Suspended).await, "client.status");
    let nobody: ClientId = "nobody".parse().unwrap();
    let audit = audit("client.updated", NOW);
    let unknown = w.store.update_client(&nobody, None, None, None, NOW, audit);
    assert_eq!(unknown.await, Err(StoreError::NotFound { what: "client" }));
}

async fn groups_and_policy_change_without_touching_versions(w: World) {
    w.settle().await;
    let before = w.client().await;
    let policy = PolicyOverrides {
        quorum: Some(3),
        held: true,
        ..PolicyOverrides::default()
    };
    let groups = vec!["ops".to_owned(), "night".to_owned()];
    let after = w
        .store
        .update_client(
            &client_id(),
            None,
            Some(groups.clone()),
            Some(policy),
            at(1),
            audit("client.updated", at(1)),
        )
        .await
        .unwrap();
    assert_eq!(after.admin_groups, groups);
    assert_eq!(after.policy.quorum, Some(3));
    assert!(!after.policy.held, "only a suspension holds a client");
    assert_eq!(after.updated_at, at(1));
    assert_eq!(
        (after.snapshot, after.current_version, after.status),
        (before.snapshot, before.current_version, before.status)
    );
    assert_eq!(w.events().await.last().unwrap(), "client.updated");
}

async fn enrolling_again_keeps_the_totp_state_unless_the_seed_changes(w: World) {
    w.settle().await;
    for _ in 0..3 {
        let audit = audit("totp.wrong", NOW);
        w.store
            .totp_failed(npub(REQUESTER), 3, 60_000, NOW, audit, None)
            .await
            .unwrap();
    }
    let enrol = |doc| w.store.put_admin(doc, audit("admin.enrolled", at(1)));
    let read = || async { w.store.admin(&npub(REQUESTER)).await.unwrap().unwrap() };
    let again = AdminDoc {
        updated_at: read().await.updated_at,
        ..admin(REQUESTER, true)
    };
    enrol(again).await.unwrap();
    assert_eq!(read().await.totp.unwrap().locked_until, Some(at(60_000)));
    let mut reseeded = AdminDoc {
        updated_at: read().await.updated_at,
        ..admin(REQUESTER, true)
    };
    reseeded.totp.as_mut().unwrap().seed_ciphertext = "another".to_owned();
    enrol(reseeded).await.unwrap();
    assert_eq!(read().await.totp.unwrap().locked_until, None);
    assert_eq!(w.store.admins().await.unwrap().len(), 3);
}

async fn a_key_is_proven_once_and_for_one_admin_only(w: World) {
    w.settle().await;
    let key = ProvenKey {
        key: "aa".repeat(32),
        proof_event: "bb".repeat(32),
        at: at(1),
    };
    let prove = |n| {
        let audit = audit("admin.key_proven", at(1));
        let (key, npub) = (key.clone(), npub(n));
        let store = &w.store;
        async move { store.prove_key(&npub, key, audit).await }
    };
    let proven = prove(REQUESTER).await.unwrap();
    assert_eq!(proven.signature_keys, std::slice::from_ref(&key));
    let before = w.picture().await;
    assert_eq!(prove(REQUESTER).await.unwrap(), proven);
    conflict(prove(SECOND).await, "key.other_admin");
    assert_eq!(prove(99).await, Err(StoreError::NotFound { what: "admin" }));
    assert_eq!(w.picture().await, before);
}

async fn groups_are_registered_suspended_and_approved(w: World) {
    let put = |doc| w.store.put_group(doc, audit("group.registered", NOW));
    put(group("ops", None)).await.unwrap();
    put(group("ops", Some(1))).await.unwrap();
    put(group("night", None)).await.unwrap();
    let groups = w.store.groups().await.unwrap();
    // Later than the reading it was made from, whatever the clock said.
    let changed = AdminGroupDoc {
        updated_at: at(1),
        ..group("ops", Some(1))
    };
    assert_eq!(groups, [group("night", None), changed]);
    let suspended = GroupState::Suspended {
        reason: "roster changed".to_owned(),
    };
    let set = |alias: &'static str, state| {
        let audit = audit("group.suspended", at(9));
        w.store.set_group_state(alias, state, at(9), audit)
    };
    let doc = set("ops", suspended.clone()).await.unwrap();
    assert_eq!((doc.status, doc.updated_at), (suspended.clone(), at(9)));
    let before = w.picture().await;
    set("ops", suspended).await.unwrap();
    assert_eq!(w.picture().await, before);
    set("ops", GroupState::Active).await.unwrap();
    assert_eq!(
        set("nothing", GroupState::Active).await,
        Err(StoreError::NotFound {
            what: "admin group"
        })
    );
}

async fn one_mls_group_has_one_alias(w: World) {
    let put = |doc| w.store.put_group(doc, audit("group.registered", NOW));
    put(group("ops", Some(1))).await.unwrap();
    conflict(put(group("night", Some(1))).await, "group.id_taken");
    put(group("night", Some(2))).await.unwrap();
}

async fn what_was_changed_meanwhile_is_not_overwritten(w: World) {
    w.settle().await;
    let put = |doc| w.store.put_admin(doc, audit("admin.changed", at(1)));
    let read = w.store.admin(&npub(REQUESTER)).await.unwrap().unwrap();
    // Meanwhile a code was wrong: the failure must not be forgotten.
    let wrong = audit("totp.wrong", NOW);
    let failed = w.store.totp_failed(npub(REQUESTER), 3, 1, NOW, wrong, None);
    failed.await.unwrap();
    let before = w.picture().await;
    conflict(put(read).await, "admin.changed");
    conflict(put(fresh(REQUESTER)).await, "admin.changed");
    assert_eq!(w.picture().await, before);

    let put = |doc| w.store.put_group(doc, audit("group.bound", at(1)));
    put(group("ops", None)).await.unwrap();
    let read = group("ops", Some(1));
    let suspended = GroupState::Suspended {
        reason: "by the operator".to_owned(),
    };
    let record = audit("group.suspended", NOW);
    let suspend = w.store.set_group_state("ops", suspended, NOW, record);
    suspend.await.unwrap();
    let before = w.picture().await;
    conflict(put(read).await, "group.changed");
    assert_eq!(w.picture().await, before);
    assert_ne!(
        w.store.groups().await.unwrap()[0].status,
        GroupState::Active
    );
}

/// An enrolment that was made without reading first.
fn fresh(n: u8) -> AdminDoc {
    AdminDoc {
        updated_at: at(5),
        ..admin(n, true)
    }
}

async fn of_two_changes_made_from_one_reading_one_is_stored(w: World) {
    w.settle().await;
    for round in 0..5 {
        let read = w.store.admin(&npub(SECOND)).await.unwrap().unwrap();
        let racing = (0..4).map(|_| {
            let (store, doc) = (w.store.clone(), read.clone());
            tokio::spawn(async move { store.put_admin(doc, audit("admin.changed", NOW)).await })
        });
        let mut stored = 0;
        for task in racing.collect::<Vec<_>>() {
            match task.await.unwrap() {
                Ok(()) => stored += 1,
                lost => conflict(lost, "admin.changed"),
            }
        }
        assert_eq!(stored, 1, "round {round}");
    }
}

async fn an_alias_can_be_the_id_of_a_document(w: World) {
    for alias in ["", ".", "..", "a/b", "__ops__", "a\nb", &"x".repeat(1501)] {
        let put = w
            .store
            .put_group(group(alias, None), audit("group.registered", NOW));
        let invalid = StoreError::InvalidId {
            what: "admin group",
        };
        assert_eq!(put.await, Err(invalid), "{alias:?}");
    }
    assert!(w.store.groups().await.unwrap().is_empty());
}

async fn the_audit_trail_is_ordered_filtered_and_limited(w: World) {
    for n in 0..5u64 {
        let mut record = audit(&format!("event.{n}"), at(n));
        if n % 2 == 1 {
            record.client_id = None;
        }
        w.store.append(record).await.unwrap();
    }
    assert_eq!(
        w.events().await,
        ["event.0", "event.1", "event.2", "event.3", "event.4"]
    );
    let names = |records: Vec<crate::documents::AuditRecord>| {
        records
            .into_iter()
            .map(|record| record.event)
            .collect::<Vec<_>>()
    };
    let latest = w.store.read(None, 2).await.unwrap();
    assert_eq!(names(latest), ["event.3", "event.4"]);
    let of_client = w.store.read(Some(&client_id()), 2).await.unwrap();
    assert_eq!(names(of_client), ["event.2", "event.4"]);
}

async fn the_store_answers_a_ping(w: World) {
    w.store.ping().await.unwrap();
}
