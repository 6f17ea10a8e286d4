//! Calls that go wrong at the worst moment. Whatever happens to a commit or to its answer: what it does is done once, and the caller is told what was done.

use std::time::{Duration, Instant};

use keyturn_proto::notify::Outcome;
use keyturn_store::audit::{Instance, verify_chain};
use keyturn_store::contract::fixture::{
    DELAY, FENCE, NOW, REQUESTER, RETENTION, SECOND, ack, admin, at, audit, cancel, client,
    client_id, npub, operation, prepare, refusal, reserve, version_id, withdraw,
};
use keyturn_store::documents::{ActiveRotation, ClientStatus};
use keyturn_store::firestore::FirestoreStore;
use keyturn_store::store::{
    ActionResult, AuditTrail as _, BurnNonce, Burned, Registry as _, Reserved, SecretStore as _,
    StoreError, Withdrawn,
};

use super::Place;
use super::proxy::{Fault, Proxy};

/// gRPC status codes.
const PERMISSION_DENIED: u32 = 7;
const RESOURCE_EXHAUSTED: u32 = 8;
const FAILED_PRECONDITION: u32 = 9;
const ABORTED: u32 = 10;
const UNAVAILABLE: u32 = 14;

/// A store behind a proxy, on a database with a client and three admins.
struct Shaky {
    place: Place,
    proxy: Proxy,
    store: FirestoreStore,
}

impl Shaky {
    async fn settled(timeout: Duration) -> Self {
        let place = Place::fresh().await;
        place.settled().await;
        let proxy = Proxy::before(&place.endpoint).await;
        let settings = place.settings(&proxy.endpoint(), timeout);
        let instance = Instance::named("shaky").unwrap();
        let store = FirestoreStore::open_as(settings, &instance).await.unwrap();
        Self {
            place,
            proxy,
            store,
        }
    }

    async fn failures(&self) -> u32 {
        let admin = self.store.admin(&npub(REQUESTER)).await.unwrap().unwrap();
        admin.totp.unwrap().failures
    }

    async fn wrong_code(&self) -> Result<u32, StoreError> {
        let record = audit("totp.wrong", NOW);
        let counted = self
            .store
            .totp_failed(npub(REQUESTER), u32::MAX, 1, NOW, record, None);
        Ok(counted.await?.totp.unwrap().failures)
    }

    async fn count(&self, event: &str) -> usize {
        let trail = self.store.read(None, usize::MAX).await.unwrap();
        trail.iter().filter(|record| record.event == event).count()
    }

    async fn reserved(&self, n: u32) -> ActiveRotation {
        match self.store.reserve(reserve(&operation(n), NOW)).await {
            Ok(Reserved::New(active)) => active,
            other => panic!("not new: {other:?}"),
        }
    }

    async fn check_chains(&self) {
        for head in self.store.chains(None, usize::MAX).await.unwrap() {
            let entries = self.store.chain(&head.id, 1, usize::MAX).await.unwrap();
            assert_eq!(verify_chain(&head.id, head.doc.as_ref(), &entries), []);
        }
    }
}

/// What may happen to any commit without anybody noticing.
const SURVIVED: [Fault; 6] = [
    Fault::AnswerLost,
    Fault::CallLost,
    Fault::Status(ABORTED),
    Fault::Status(UNAVAILABLE),
    Fault::Status(RESOURCE_EXHAUSTED),
    Fault::DoneBut(RESOURCE_EXHAUSTED),
];

const LONG: Duration = Duration::from_secs(60);
/// A quarter of it is waited for an answer that does not come; the others have to come within that.
const LOSES_SOME: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_rotation_survives_the_loss_of_any_commit_or_answer() {
    for (number, fault) in (0u32..).zip(SURVIVED) {
        let shaky = Shaky::settled(LONG).await;
        let next = || shaky.proxy.next_commits([fault]);
        let n = number + 2;
        next();
        let active = shaky.reserved(n).await;
        next();
        let sealed = prepare(&active, n, at(DELAY), NOW);
        let prepared = shaky.store.prepare(sealed).await.unwrap();
        assert_eq!(prepared.new_version, Some(version_id(n)), "{fault:?}");
        for (by, promotes) in [(REQUESTER, false), (SECOND, true)] {
            next();
            let ack = ack(&operation(n), n, by, true, at(DELAY));
            let result = shaky.store.record_ack(ack).await.unwrap();
            // Not "counted before": it was this very call.
            assert!(result.counted, "{fault:?}");
            assert_eq!(result.promoted, promotes, "{fault:?}");
        }
        next();
        shaky
            .store
            .mark_announced(&operation(n), at(DELAY))
            .await
            .unwrap();
        for event in [
            "rotation.reserved",
            "rotation.prepared",
            "rotation.promoted",
        ] {
            assert_eq!(shaky.count(event).await, 1, "{fault:?}: {event}");
        }
        assert_eq!(shaky.count("ack.recorded").await, 2, "{fault:?}");
        shaky.check_chains().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_withdrawal_and_a_refusal_in_doubt_are_what_they_were() {
    let shaky = Shaky::settled(LONG).await;
    let numbers = 2u32..;
    for (n, fault) in numbers.zip(SURVIVED) {
        shaky.reserved(n).await;
        let command = withdraw(&operation(n + 50), None, NOW);
        shaky.proxy.next_commits([fault]);
        match shaky.store.withdraw(command.clone()).await {
            // Not "decided before": it was this very call.
            Ok(Withdrawn::Done(ended)) => assert_eq!(ended.rotation_id, operation(n)),
            other => panic!("{fault:?}: {other:?}"),
        }
        match shaky.store.withdraw(command).await {
            Ok(Withdrawn::Repeat(known)) => {
                assert_eq!(known.target_rotation_id, Some(operation(n)));
            }
            other => panic!("{fault:?}: {other:?}"),
        }
        shaky.proxy.next_commits([fault]);
        let refusals = vec![refusal(n, NOW), refusal(n + 100, NOW)];
        shaky.store.record(refusals).await.unwrap();
    }
    assert_eq!(shaky.count("rotation.canceled").await, SURVIVED.len());
    assert_eq!(shaky.count("request.refused").await, 2 * SURVIVED.len());
    shaky.check_chains().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_would_do_harm_twice_is_done_once() {
    let shaky = Shaky::settled(LONG).await;
    for (before, fault) in (0u32..).zip(SURVIVED) {
        shaky.proxy.next_commits([fault]);
        assert_eq!(shaky.wrong_code().await, Ok(before + 1), "{fault:?}");
        assert_eq!(shaky.failures().await, before + 1, "{fault:?}");
        let event = format!("alarm.{before}");
        shaky.proxy.next_commits([fault]);
        shaky.store.append(audit(&event, NOW)).await.unwrap();
        assert_eq!(shaky.count(&event).await, 1, "{fault:?}");
        // The first one is done, not "done before".
        shaky.proxy.next_commits([fault]);
        let action = operation(100 + before);
        let revoke = keyturn_store::contract::fixture::revoke(&action, None, NOW);
        let revoked = shaky.store.revoke(revoke.clone()).await.unwrap();
        assert!(matches!(revoked, ActionResult::Done(_)), "{fault:?}");
        let again = shaky.store.revoke(revoke).await.unwrap();
        assert!(matches!(again, ActionResult::Repeat(_)), "{fault:?}");
        shaky.proxy.next_commits([fault]);
        let id: keyturn_proto::ClientId = format!("client-{before}").parse().unwrap();
        let made = shaky
            .store
            .create_client(client(id), None, audit("client.created", NOW));
        made.await.unwrap();
        shaky.proxy.next_commits([fault]);
        shaky
            .store
            .put_admin(
                admin(40 + u8::try_from(before).unwrap(), false),
                audit("admin.enrolled", NOW),
            )
            .await
            .unwrap();
        shaky.proxy.next_commits([fault]);
        let held = shaky
            .store
            .lease("rotation", "us", 1000, at(u64::from(before) * 5000))
            .await
            .unwrap();
        // Each lapsed before the next: one change of hands each, and no more.
        assert_eq!(held.fence, u64::from(before) + 1, "{fault:?}");
        shaky.proxy.next_commits([fault]);
        let burn = BurnNonce {
            nonce_hash: format!("nonce-{before}"),
            owner_event: "ours".to_owned(),
            expires_at: at(1000),
            now: NOW,
            audit: audit("nonce.burnt", NOW),
        };
        assert_eq!(shaky.store.burn_nonce(burn).await, Ok(Burned::Fresh));
    }
    shaky.check_chains().await;
}

/// The answer is lost: the store finds its own mark, and sends nothing again.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_whose_answer_is_lost_is_not_sent_again() {
    let shaky = Shaky::settled(LONG).await;
    shaky.proxy.next_commits([Fault::AnswerLost]);
    assert_eq!(shaky.wrong_code().await, Ok(1));
    assert_eq!(shaky.proxy.commits(), 1);
    assert_eq!(shaky.store.cost().retries, 1);
}

/// A quota that is used up says nothing of a commit that was done before somebody said so.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_of_which_only_a_used_up_quota_is_heard_is_looked_for() {
    let shaky = Shaky::settled(LONG).await;
    shaky
        .proxy
        .next_commits([Fault::DoneBut(RESOURCE_EXHAUSTED)]);
    assert_eq!(shaky.wrong_code().await, Ok(1));
    assert_eq!(shaky.proxy.commits(), 1);
    assert_eq!(shaky.failures().await, 1);
}

/// The conditions do not hold; whether our own first copy broke them, only the mark can tell, and it cannot be read.
#[tokio::test(flavor = "multi_thread")]
async fn without_a_look_at_the_mark_nobody_says_that_nothing_happened() {
    let shaky = Shaky::settled(LONG).await;
    shaky
        .proxy
        .next_commits([Fault::Blinding(FAILED_PRECONDITION)]);
    let told = shaky.wrong_code().await;
    assert!(matches!(told, Err(StoreError::Unknown { .. })), "{told:?}");
    shaky.proxy.heal();
    assert_eq!(shaky.failures().await, 0);
    assert_eq!(shaky.wrong_code().await, Ok(1));
}

/// The first commit is still on its way when the second one, the same, has landed.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_lands_after_its_repeat_changes_nothing() {
    let shaky = Shaky::settled(LOSES_SOME).await;
    shaky.proxy.next_commits([Fault::Kept]);
    assert_eq!(shaky.wrong_code().await, Ok(1));
    assert_eq!(shaky.proxy.commits(), 2);
    let late = shaky.proxy.deliver().await;
    assert_eq!(late.len(), 1);
    assert_ne!(late[0], "0", "its conditions do not hold any more");
    assert_eq!(shaky.failures().await, 1);
    assert_eq!(shaky.count("totp.wrong").await, 1);
    shaky.check_chains().await;
}

/// The first commit lands between our look and its repeat: the repeat fails, and the mark says that it was ours.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_lands_before_its_repeat_is_recognised() {
    let shaky = Shaky::settled(LOSES_SOME).await;
    shaky.proxy.next_commits([Fault::Kept, Fault::AfterKept]);
    assert_eq!(shaky.wrong_code().await, Ok(1));
    assert_eq!(shaky.proxy.commits(), 2);
    assert_eq!(shaky.failures().await, 1);
    assert_eq!(shaky.count("totp.wrong").await, 1);

    shaky.proxy.next_commits([Fault::Kept, Fault::AfterKept]);
    let active = shaky.reserved(2).await;
    assert_eq!((active.attempt, active.fence), (1, 1));
    assert_eq!(shaky.count("rotation.reserved").await, 1);
}

/// Somebody else changed the document while ours was on its way: what we read does not hold, so it is judged anew.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_commit_that_others_overtook_is_judged_again() {
    let shaky = Shaky::settled(LONG).await;
    let other = shaky.place.relay("other").await;
    shaky.proxy.next_commits([Fault::Kept]);
    let (ours, theirs) = tokio::join!(shaky.wrong_code(), async {
        tokio::time::timeout(LONG, async {
            while shaky.proxy.commits() == 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
        .expect("our commit is on its way");
        let record = audit("totp.wrong", NOW);
        let npub = npub(REQUESTER);
        other
            .totp_failed(npub, u32::MAX, 1, NOW, record, None)
            .await
    });
    assert_eq!(theirs.unwrap().totp.unwrap().failures, 1);
    assert_eq!(ours, Ok(2));
    let late = shaky.proxy.deliver().await;
    assert_ne!(late, ["0"]);
    assert_eq!(shaky.failures().await, 2);
    assert_eq!(shaky.count("totp.wrong").await, 2);
    shaky.check_chains().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_never_answers_holds_nobody_for_longer_than_the_deadline() {
    let deadline = Duration::from_secs(6);
    let shaky = Shaky::settled(deadline).await;
    shaky.proxy.next_reads([Fault::Silence; 100]);
    let started = Instant::now();
    let read = shaky.store.client(&client_id()).await;
    assert!(
        matches!(read, Err(StoreError::Unavailable { .. })),
        "{read:?}"
    );
    assert!(started.elapsed() < deadline * 5, "{:?}", started.elapsed());
    shaky.proxy.heal();
    shaky.proxy.next_commits([Fault::Silence; 100]);
    let started = Instant::now();
    let written = shaky.wrong_code().await;
    // It was sent, so nobody can say.
    assert!(
        matches!(written, Err(StoreError::Unknown { .. })),
        "{written:?}"
    );
    assert!(started.elapsed() < deadline * 5, "{:?}", started.elapsed());
    shaky.proxy.heal();
    assert_eq!(shaky.failures().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_are_asked_again_and_refusals_are_not() {
    let shaky = Shaky::settled(LONG).await;
    shaky.proxy.next_reads([
        Fault::Status(UNAVAILABLE),
        Fault::AnswerLost,
        Fault::CallLost,
    ]);
    let client = shaky.store.client(&client_id()).await.unwrap().unwrap();
    assert_eq!(client.status, ClientStatus::Active);
    assert_eq!(shaky.store.cost().retries, 3);
    shaky.proxy.next_commits([Fault::Status(PERMISSION_DENIED)]);
    let refused = StoreError::Unavailable {
        cause: "this account may not do that (IAM)",
    };
    assert_eq!(shaky.wrong_code().await, Err(refused));
    assert_eq!(shaky.proxy.commits(), 1);
    assert_eq!(shaky.store.cost().retries, 3);
    // Nothing of it stays behind: the next one goes through.
    assert_eq!(shaky.wrong_code().await, Ok(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_that_was_in_doubt_is_the_end_it_was() {
    let shaky = Shaky::settled(LONG).await;
    let active = shaky.reserved(2).await;
    let sealed = prepare(&active, 2, at(DELAY), NOW);
    shaky.store.prepare(sealed).await.unwrap();
    for by in [REQUESTER, SECOND] {
        let early = ack(&operation(2), 2, by, true, NOW);
        shaky.store.record_ack(early).await.unwrap();
    }
    shaky.proxy.next_commits([Fault::AnswerLost]);
    let record = audit("rotation.promoted", at(DELAY));
    let promoted = shaky
        .store
        .promote(&operation(2), RETENTION, FENCE, at(DELAY), record)
        .await
        .unwrap();
    assert_eq!(promoted.outcome, Some(Outcome::Promoted));
    let later = reserve(&operation(3), at(2 * DELAY));
    let reserved = shaky.store.reserve(later).await;
    assert!(matches!(reserved, Ok(Reserved::New(_))), "{reserved:?}");
    shaky.proxy.next_commits([Fault::CallLost]);
    let ended = shaky
        .store
        .cancel(cancel(&operation(3), Outcome::Canceled, NOW))
        .await
        .unwrap();
    assert_eq!(ended.outcome, Some(Outcome::Canceled));
    assert_eq!(shaky.count("rotation.ended").await, 1);
    let client = shaky.store.client(&client_id()).await.unwrap().unwrap();
    assert_eq!(client.current_version, Some(version_id(2)));
}
