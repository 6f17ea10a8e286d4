//! The outbox: what may go out, what may be deleted, what was withdrawn.

use keyturn_proto::UnixMs;
use keyturn_proto::notify::Outcome;

use super::World;
use super::fixture::{DELAY, NOW, RETENTION, at, cancel, event_id};
use crate::documents::OutboxDoc;
use crate::lifecycle::due::publishable;
use crate::store::{Due, WithdrawnAfter};

super::case_list![
    a_page_of_the_outbox_goes_on_after_the_last_event,
    a_promoted_rotation_still_publishes_and_a_cancelled_one_does_not,
    ciphertext_goes_after_its_retention_and_not_before,
    the_id_of_a_withdrawn_event_is_kept_without_its_ciphertext,
    withdrawn_events_come_in_the_order_they_were_withdrawn,
];

async fn a_page_of_the_outbox_goes_on_after_the_last_event(w: World) {
    w.settle().await;
    let (_, first) = w.prepared(2, NOW).await;
    let mut taken = first;
    for n in 3..6 {
        taken = w.taken_over(&taken, at(u64::from(n))).await;
        w.prepare_again(&taken, n, at(u64::from(n))).await;
    }
    let all = [2, 3, 4, 5].map(event_id);
    assert_eq!(w.outbox_page().await, all);
    let page = |after: Option<String>, limit| {
        let store = w.store.clone();
        async move { store.outbox_page(after.as_deref(), limit).await.unwrap() }
    };
    let ids = |page: Vec<OutboxDoc>| -> Vec<String> {
        page.into_iter().map(|event| event.event_id).collect()
    };
    assert_eq!(ids(page(None, 3).await), all[..3]);
    assert_eq!(ids(page(Some(event_id(4)), 3).await), all[3..]);
    assert!(page(Some(event_id(5)), 3).await.is_empty());
    let present = w.store.outbox(&taken.rotation_id).await.unwrap();
    assert_eq!(ids(present), all[3..], "the others are of earlier attempts");
}

async fn a_promoted_rotation_still_publishes_and_a_cancelled_one_does_not(w: World) {
    w.settle().await;
    let then = w.promoted(2, NOW).await;
    let (id, _) = w.prepared(3, then).await;
    assert_eq!(w.publishable(then).await, [event_id(2), event_id(3)]);
    let withdraw = cancel(&id, Outcome::Canceled, then);
    w.store.cancel(withdraw).await.unwrap();
    assert_eq!(w.publishable(then).await, [event_id(2)]);
    let end = UnixMs(then.0 + RETENTION);
    assert_eq!(w.publishable(UnixMs(end.0 - 1)).await, [event_id(2)]);
    assert!(w.publishable(end).await.is_empty(), "it is to be deleted");
}

async fn ciphertext_goes_after_its_retention_and_not_before(w: World) {
    w.settle().await;
    let (id, _) = w.prepared(2, NOW).await;
    // Not yet over: nobody may delete it.
    w.purge(2, None, at(10 * RETENTION)).await;
    assert_eq!(w.store.outbox(&id).await.unwrap().len(), 1);
    w.acked(&id, 2, at(DELAY)).await;
    let end = at(DELAY + RETENTION);
    assert_eq!(
        w.store.outbox(&id).await.unwrap()[0].delete_after,
        Some(end)
    );
    w.purge(2, None, UnixMs(end.0 - 1)).await;
    assert_eq!(w.store.outbox(&id).await.unwrap().len(), 1);
    assert_eq!(w.to_purge(end).await, [event_id(2)]);
    w.purge(2, None, end).await;
    assert!(w.store.outbox(&id).await.unwrap().is_empty());
    let withdrawn = w.store.withdrawn(&WithdrawnAfter::default(), 10).await;
    assert!(withdrawn.unwrap().is_empty());
}

async fn the_id_of_a_withdrawn_event_is_kept_without_its_ciphertext(w: World) {
    w.settle().await;
    let then = w.promoted(2, NOW).await;
    let id = super::fixture::operation(2);
    let (end, keep) = (then.0 + RETENTION, then.0 + 2 * RETENTION);
    let keep_until = Some(UnixMs(keep));
    w.purge(2, keep_until, UnixMs(end - 1)).await;
    assert_eq!(w.outbox_page().await.len(), 1, "not yet");

    w.purge(2, keep_until, UnixMs(end)).await;
    assert!(w.outbox_page().await.is_empty());
    assert!(w.store.outbox(&id).await.unwrap().is_empty());
    let listed = w.store.withdrawn(&WithdrawnAfter::default(), 10).await;
    let listed = listed.unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].event_id, event_id(2));
    assert_eq!(listed[0].event_json, "");
    assert_eq!(listed[0].withdrawn_at, Some(UnixMs(end)));

    // Again, as after a crash: nothing moves until its own time has come.
    w.purge(2, Some(UnixMs(keep + 5)), UnixMs(end + 1)).await;
    let again = w.store.withdrawn(&WithdrawnAfter::default(), 10).await;
    assert_eq!(again.unwrap(), listed);
    assert!(w.to_purge(UnixMs(keep - 1)).await.is_empty());
    assert_eq!(w.to_purge(UnixMs(keep)).await, [event_id(2)]);
    w.purge(2, Some(UnixMs(keep + 5)), UnixMs(keep)).await;
    let gone = w.store.withdrawn(&WithdrawnAfter::default(), 10).await;
    assert!(gone.unwrap().is_empty());
}

async fn withdrawn_events_come_in_the_order_they_were_withdrawn(w: World) {
    w.settle().await;
    let mut now = NOW;
    for n in 2..6 {
        now = w.promoted(n, now).await;
    }
    let end = now.0 + RETENTION;
    let keep = Some(UnixMs(end + RETENTION));
    for (n, by) in [(4, 0), (2, 1), (5, 1), (3, 2)] {
        w.purge(n, keep, UnixMs(end + by)).await;
    }
    let mut after = WithdrawnAfter::default();
    let mut seen = Vec::new();
    loop {
        let page = w.store.withdrawn(&after, 2).await.unwrap();
        seen.extend(page.iter().map(|event| event.event_id.clone()));
        let Some(last) = page.last() else { break };
        after = WithdrawnAfter {
            at: last.withdrawn_at.unwrap(),
            event_id: last.event_id.clone(),
        };
    }
    assert_eq!(seen, [4, 2, 5, 3].map(event_id));
}

impl World {
    async fn publishable(&self, now: UnixMs) -> Vec<String> {
        let mut ids = Vec::new();
        for event in self.store.outbox_page(None, usize::MAX).await.unwrap() {
            let rotation = self.rotation(&event.rotation_id).await;
            if publishable(&rotation, &event, now) {
                ids.push(event.event_id);
            }
        }
        ids
    }

    async fn purge(&self, n: u32, keep_until: Option<UnixMs>, now: UnixMs) {
        let ids = [event_id(n)];
        let purged = self.store.purge(&ids, keep_until, now);
        purged.await.unwrap();
    }

    async fn to_purge(&self, now: UnixMs) -> Vec<String> {
        let due = self.store.due(now, 100).await.unwrap();
        let purge = due.into_iter().find_map(|due| match due {
            Due::Purge(events) => Some(events),
            _ => None,
        });
        let events = purge.unwrap_or_default().into_iter();
        events.map(|event| event.event_id).collect()
    }
}
