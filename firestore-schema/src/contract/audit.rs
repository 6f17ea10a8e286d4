//! The audit trail: chains that stay whole whatever races, heads that say where they end and how the client stands.

use std::collections::BTreeMap;

use keyturn_proto::UnixMs;
use keyturn_proto::notify::Outcome;

use super::World;
use super::fixture::{
    DELAY, GRACE, NOW, RETENTION, ack, at, audit, cancel, client, client_id, event_id, operation,
    prepare, reserve, revoke, rollback, version_id,
};
use crate::audit::{ChainCheck, chain_id, verify_chain};
use crate::documents::{AuditChainDoc, AuditEntry, AuditRecord, ClientStatus};
use crate::store::{Reserved, Stored};

super::case_list![
    every_record_lies_in_one_chain_and_all_chains_are_whole,
    the_entries_of_one_transaction_follow_each_other,
    the_head_is_the_last_entry,
    a_record_without_a_client_goes_to_the_chain_of_the_instance,
    an_append_is_made_once,
    racing_appends_lose_nothing,
    refusals_that_race_a_rotation_leave_its_chain_whole,
    a_repeat_appends_nothing,
    a_refused_change_leaves_no_entry,
    the_head_of_a_client_says_how_it_stands,
    a_client_that_was_only_named_has_no_standing,
    chains_and_entries_are_read_page_by_page,
    what_follows_the_end_of_a_rotation_is_recorded_once,
];

impl World {
    /// Every entry, page by page, with pages of `limit`.
    async fn entries(&self, limit: usize) -> Vec<Stored<AuditEntry>> {
        let mut all: Vec<Stored<AuditEntry>> = Vec::new();
        loop {
            let after = all.last().map(|entry| entry.id.clone());
            let page = self.store.entries(after.as_deref(), limit).await.unwrap();
            assert!(page.len() <= limit);
            if page.is_empty() {
                return all;
            }
            all.extend(page);
        }
    }

    async fn heads(&self, limit: usize) -> Vec<AuditChainDoc> {
        let mut all: Vec<AuditChainDoc> = Vec::new();
        loop {
            let after = all.last().map(|head| head.id.clone());
            let page = self.store.chains(after.as_deref(), limit).await.unwrap();
            assert!(page.len() <= limit);
            if page.is_empty() {
                return all;
            }
            for head in page {
                let doc = head.doc.unwrap();
                assert_eq!(doc.id, head.id);
                all.push(doc);
            }
        }
    }

    /// The head and the entries of one chain.
    async fn chain(&self, name: &str) -> (AuditChainDoc, Vec<AuditEntry>) {
        let id = chain_id(name);
        let head = self.store.chain_head(&id).await.unwrap().unwrap();
        let entries = self.store.chain(&id, 1, usize::MAX).await.unwrap();
        let entries = entries.into_iter().map(|entry| entry.doc.unwrap());
        (head.doc.unwrap(), entries.collect())
    }

    async fn client_chain(&self) -> (AuditChainDoc, Vec<AuditEntry>) {
        self.chain(&format!("client:{}", client_id())).await
    }

    /// Every chain is whole, and together they hold what the trail reads. Returns the number of entries.
    async fn check_trail(&self) -> usize {
        let heads = self.heads(usize::MAX).await;
        let mut entries = 0;
        for head in &heads {
            let found = self.store.chain(&head.id, 1, usize::MAX).await.unwrap();
            assert_eq!(verify_chain(&head.id, Some(head), &found), []);
            entries += found.len();
        }
        assert_eq!(self.entries(usize::MAX).await.len(), entries);
        let read = self.store.read(None, usize::MAX).await.unwrap();
        assert_eq!(read.len(), entries);
        entries
    }
}

fn nameless(event: &str, now: UnixMs) -> AuditRecord {
    AuditRecord {
        client_id: None,
        ..audit(event, now)
    }
}

async fn every_record_lies_in_one_chain_and_all_chains_are_whole(w: World) {
    w.settle().await;
    let then = w.promoted(2, NOW).await;
    w.store.append(nameless("alarm", then)).await.unwrap();
    w.store
        .rollback(rollback(&operation(9), then))
        .await
        .unwrap();
    let read = w.store.read(None, usize::MAX).await.unwrap();
    assert_eq!(w.check_trail().await, read.len());
    // What was read of a client is its chain, in its order.
    let of_client = w.store.read(Some(&client_id()), usize::MAX).await.unwrap();
    let (_, entries) = w.client_chain().await;
    let chained: Vec<AuditRecord> = entries.into_iter().map(|entry| entry.record).collect();
    assert_eq!(chained, of_client);
}

async fn the_entries_of_one_transaction_follow_each_other(w: World) {
    w.settle().await;
    let (id, _) = w.prepared(2, NOW).await;
    let before = w.client_chain().await.0.seq;
    w.acked(&id, 2, at(DELAY)).await;
    let (head, entries) = w.client_chain().await;
    // Two acks; the second one promotes in its transaction.
    let events: Vec<&str> = entries[usize::try_from(before).unwrap()..]
        .iter()
        .map(|entry| entry.record.event.as_str())
        .collect();
    assert_eq!(
        events,
        ["ack.recorded", "ack.recorded", "rotation.promoted"]
    );
    assert_eq!(head.seq, before + 3);
}

async fn the_head_is_the_last_entry(w: World) {
    w.settle().await;
    for n in 0..3 {
        w.store.append(audit("refused", at(n))).await.unwrap();
        let (head, entries) = w.client_chain().await;
        let last = entries.last().unwrap();
        assert_eq!((head.seq, &head.hash), (last.seq, &last.hash));
        assert_eq!(head.chain, last.chain);
        assert_eq!(head.client_id, Some(client_id()));
        assert_eq!(head.updated_at, at(n));
    }
}

async fn a_record_without_a_client_goes_to_the_chain_of_the_instance(w: World) {
    w.store.append(nameless("alarm", NOW)).await.unwrap();
    w.store.append(nameless("alarm", at(1))).await.unwrap();
    let heads = w.heads(usize::MAX).await;
    assert_eq!(heads.len(), 1);
    assert!(heads[0].chain.starts_with("instance:"), "{heads:?}");
    assert_eq!((heads[0].seq, &heads[0].client_id), (2, &None));
    assert_eq!(heads[0].status, None);
    w.check_trail().await;
}

async fn an_append_is_made_once(w: World) {
    let record = audit("refused", NOW);
    w.store.append(record.clone()).await.unwrap();
    let (_, entries) = w.client_chain().await;
    assert_eq!(entries.len(), 1);
    assert_eq!(entries[0].record, record);
    // The same thing happening again is another entry.
    w.store.append(record).await.unwrap();
    assert_eq!(w.client_chain().await.1.len(), 2);
    w.check_trail().await;
}

async fn racing_appends_lose_nothing(w: World) {
    let racing = (0..20u64).map(|n| {
        let store = w.store.clone();
        tokio::spawn(async move { store.append(audit(&format!("refused.{n}"), at(n))).await })
    });
    for task in racing.collect::<Vec<_>>() {
        task.await.unwrap().unwrap();
    }
    let (head, entries) = w.client_chain().await;
    assert_eq!(head.seq, 20);
    let mut count: BTreeMap<String, u32> = BTreeMap::new();
    for entry in entries {
        *count.entry(entry.record.event).or_default() += 1;
    }
    assert_eq!(count.len(), 20, "{count:?}");
    w.check_trail().await;
}

async fn refusals_that_race_a_rotation_leave_its_chain_whole(w: World) {
    w.settle().await;
    let refusals = (0..10u64).map(|n| {
        let store = w.store.clone();
        tokio::spawn(async move { store.append(audit("request.refused", at(n))).await })
    });
    let refusals: Vec<_> = refusals.collect();
    let (id, _) = w.prepared(2, NOW).await;
    w.acked(&id, 2, at(DELAY)).await;
    for task in refusals {
        task.await.unwrap().unwrap();
    }
    assert_eq!(w.client().await.current_version, Some(version_id(2)));
    let events = w.events().await;
    let count = |name: &str| events.iter().filter(|event| *event == name).count();
    assert_eq!(count("request.refused"), 10);
    assert_eq!(count("rotation.promoted"), 1);
    let (head, _) = w.client_chain().await;
    assert_eq!(head.last_rotation_at, Some(at(DELAY)));
    w.check_trail().await;
}

async fn a_repeat_appends_nothing(w: World) {
    w.settle().await;
    let (id, active) = w.prepared(2, NOW).await;
    let before = w.check_trail().await;
    let again = w.store.reserve(reserve(&id, NOW)).await.unwrap();
    assert!(matches!(again, Reserved::Repeat(_)), "{again:?}");
    w.store
        .prepare(prepare(&active, 2, at(DELAY), NOW))
        .await
        .unwrap();
    assert_eq!(w.check_trail().await, before);
    w.acked(&id, 2, at(DELAY)).await;
    let before = w.check_trail().await;
    let late = ack(&id, 2, super::fixture::SECOND, true, at(DELAY));
    w.store.record_ack(late).await.unwrap();
    w.store
        .promote(
            &id,
            RETENTION,
            super::fixture::FENCE,
            at(DELAY),
            audit("rotation.promoted", at(DELAY)),
        )
        .await
        .unwrap();
    assert_eq!(w.check_trail().await, before);
}

async fn a_refused_change_leaves_no_entry(w: World) {
    w.settle().await;
    let before = w.check_trail().await;
    let exists = w
        .store
        .create_client(client(client_id()), None, audit("client.created", NOW))
        .await;
    super::world::conflict(exists, "client.exists");
    assert_eq!(w.check_trail().await, before);
}

async fn the_head_of_a_client_says_how_it_stands(w: World) {
    w.settle().await;
    type Standing = (
        Option<ClientStatus>,
        Option<UnixMs>,
        Option<UnixMs>,
        Option<UnixMs>,
    );
    let standing = async || -> Standing {
        let (head, _) = w.client_chain().await;
        (
            head.status,
            head.secret_since,
            head.last_rotation_at,
            head.grace_until,
        )
    };
    let active = Some(ClientStatus::Active);
    assert_eq!(standing().await, (active, Some(NOW), None, None));

    // Under way: nothing changes for whoever uses the secret.
    let (id, _) = w.prepared(2, NOW).await;
    assert_eq!(standing().await, (active, Some(NOW), None, None));
    w.store
        .cancel(cancel(&id, Outcome::Canceled, at(1)))
        .await
        .unwrap();
    assert_eq!(standing().await, (active, Some(NOW), None, None));

    let then = w.promoted(3, at(2)).await;
    let grace = UnixMs(then.0 + GRACE);
    assert_eq!(
        standing().await,
        (active, Some(then), Some(then), Some(grace))
    );
    w.store
        .rollback(rollback(&operation(9), then))
        .await
        .unwrap();
    assert_eq!(standing().await, (active, Some(NOW), Some(then), None));

    let then = w.promoted(4, then).await;
    let end = UnixMs(then.0 + GRACE);
    w.store
        .retire(
            &client_id(),
            &version_id(1),
            super::fixture::FENCE,
            end,
            audit("retired", end),
        )
        .await
        .unwrap();
    assert_eq!(standing().await, (active, Some(then), Some(then), None));

    w.store
        .revoke(revoke(&operation(8), Some(version_id(4)), end))
        .await
        .unwrap();
    let suspended = Some(ClientStatus::Suspended);
    assert_eq!(standing().await, (suspended, None, Some(then), None));
    w.store
        .update_client(
            &client_id(),
            Some(ClientStatus::Revoked),
            None,
            None,
            end,
            audit("client.revoked", end),
        )
        .await
        .unwrap();
    let revoked = Some(ClientStatus::Revoked);
    assert_eq!(standing().await, (revoked, None, Some(then), None));
    w.check_trail().await;
}

async fn a_client_that_was_only_named_has_no_standing(w: World) {
    w.store.append(audit("request.refused", NOW)).await.unwrap();
    let (head, _) = w.client_chain().await;
    assert_eq!((head.status, head.secret_since), (None, None));
    w.store
        .create_client(client(client_id()), None, audit("client.created", at(1)))
        .await
        .unwrap();
    let (head, _) = w.client_chain().await;
    assert_eq!((head.status, head.seq), (Some(ClientStatus::Active), 2));
}

async fn chains_and_entries_are_read_page_by_page(w: World) {
    for n in 0..7u64 {
        let mut record = audit("refused", at(n));
        record.client_id = Some(format!("client-{}", n % 3).parse().unwrap());
        w.store.append(record).await.unwrap();
    }
    w.store.append(nameless("alarm", at(9))).await.unwrap();
    let whole = w.entries(usize::MAX).await;
    assert_eq!(whole.len(), 8);
    let mut sorted: Vec<&str> = whole.iter().map(|entry| entry.id.as_str()).collect();
    sorted.sort_unstable();
    assert!(whole.iter().map(|entry| entry.id.as_str()).eq(sorted));
    let heads = w.heads(usize::MAX).await;
    assert_eq!(heads.len(), 4);
    for limit in [1, 2, 3] {
        assert_eq!(w.entries(limit).await, whole);
        assert_eq!(w.heads(limit).await, heads);
    }
    for head in &heads {
        // From the middle on, and never an entry of the next chain.
        let mut check = ChainCheck::new(&head.id);
        for seq in 1..=head.seq {
            let page = w.store.chain(&head.id, seq, 1).await.unwrap();
            assert_eq!(page.len(), 1);
            check.push(&page[0]);
        }
        assert_eq!(check.finish(Some(head)), []);
        let beyond = w.store.chain(&head.id, head.seq + 1, 9).await.unwrap();
        assert_eq!(beyond, []);
    }
    assert_eq!(w.store.chain_head(&chain_id("client:none")).await, Ok(None));
}

async fn what_follows_the_end_of_a_rotation_is_recorded_once(w: World) {
    w.settle().await;
    let then = w.promoted(2, NOW).await;
    let before = w.events().await.len();
    for _ in 0..2 {
        w.store.mark_announced(&operation(2), then).await.unwrap();
    }
    let kept = UnixMs(then.0 + RETENTION);
    for _ in 0..2 {
        let ids = [event_id(2), "unknown".to_owned()];
        w.store.purge(&ids, None, kept).await.unwrap();
    }
    let records = w.store.read(None, usize::MAX).await.unwrap();
    let told: Vec<(&str, &str)> = records[before..]
        .iter()
        .map(|record| (record.event.as_str(), record.reason.as_str()))
        .collect();
    let expected = [
        ("rotation.announced", "promoted"),
        ("outbox.purged", "1 events"),
    ];
    assert_eq!(told, expected);
    assert_eq!(records[before].client_id, Some(client_id()));
    assert_eq!(records[before + 1].rotation_id, Some(operation(2)));
    w.check_trail().await;
}
