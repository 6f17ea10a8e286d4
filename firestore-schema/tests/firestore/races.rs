//! Two relays on one database, each with a connection of its own: whoever comes first wins, the other one notices, and nothing is lost or done twice.

use std::time::SystemTime;

use keyturn_proto::UnixMs;
use keyturn_proto::notify::Outcome;
use keyturn_store::audit::verify_chain;
use keyturn_store::contract::fixture::{
    DELAY, FENCE, NOW, REQUESTER, RETENTION, SECOND, THIRD, ack, at, audit, cancel, client_id,
    npub, operation, prepare, reserve, version_id,
};
use keyturn_store::documents::{
    ActiveRotation, AdminGroupDoc, AuditRecord, GroupState, ProvenKey, RotationState,
};
use keyturn_store::firestore::FirestoreStore;
use keyturn_store::store::{
    AuditTrail as _, Cancel, Registry as _, Reserved, SecretStore as _, StoreError,
};

use super::Place;
use super::rest::plain;

/// Races per kind. Each goes through every step of a rotation or its end.
const ROUNDS: u32 = 100;

/// When operation `n` begins: after the end of the one before.
fn start(n: u32) -> UnixMs {
    at(u64::from(n) * 2 * DELAY)
}

/// When its version may become current.
fn ready(n: u32) -> UnixMs {
    UnixMs(start(n).0 + DELAY)
}

/// A record that names no client: each relay writes it to a chain of its own, so that the chain's head does not order what is tested.
fn nameless(event: &str) -> AuditRecord {
    AuditRecord {
        client_id: None,
        ..audit(event, NOW)
    }
}

/// Two relays, and the operations of the rounds: two ids each.
struct Two {
    place: Place,
    one: FirestoreStore,
    other: FirestoreStore,
}

impl Two {
    async fn settled() -> Self {
        let place = Place::fresh().await;
        Self {
            one: place.settled().await,
            other: place.relay("second").await,
            place,
        }
    }

    async fn reserved(&self, n: u32) -> ActiveRotation {
        match self
            .one
            .reserve(reserve(&operation(n), start(n)))
            .await
            .unwrap()
        {
            Reserved::New(active) => active,
            other => panic!("not reserved: {other:?}"),
        }
    }

    async fn prepared(&self, n: u32) -> ActiveRotation {
        let active = self.reserved(n).await;
        let sealed = prepare(&active, n, ready(n), start(n));
        self.one.prepare(sealed).await.unwrap();
        active
    }

    async fn withdraw(&self, n: u32, fence: u64) {
        let withdraw = Cancel {
            fence: Some(fence),
            ..cancel(&operation(n), Outcome::Canceled, NOW)
        };
        self.one.cancel(withdraw).await.unwrap();
    }

    /// No chain has a gap, a fork or a double after all that.
    async fn check_chains(&self) {
        for head in self.one.chains(None, usize::MAX).await.unwrap() {
            let entries = self.one.chain(&head.id, 1, usize::MAX).await.unwrap();
            assert_eq!(verify_chain(&head.id, head.doc.as_ref(), &entries), []);
        }
    }

    /// When each record of an event was committed, by Firestore's clock.
    async fn committed(&self, event: &str) -> Vec<SystemTime> {
        let entries = self.place.list("", "audit").await;
        let named = entries.iter().filter(|it| plain(it)["event"] == event);
        let mut times: Vec<SystemTime> = named
            .map(|it| humantime::parse_rfc3339(it["createTime"].as_str().unwrap()).unwrap())
            .collect();
        times.sort();
        times
    }

    async fn events(&self, event: &str) -> usize {
        let trail = self.one.read(Some(&client_id()), usize::MAX).await.unwrap();
        trail.iter().filter(|record| record.event == event).count()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_two_reservations_wins() {
    let two = Two::settled().await;
    for round in 1..=ROUNDS {
        let (a, b) = (operation(2 * round), operation(2 * round + 1));
        let (first, second) = tokio::join!(
            two.one.reserve(reserve(&a, NOW)),
            two.other.reserve(reserve(&b, NOW))
        );
        let winner = match (first.unwrap(), second.unwrap()) {
            (Reserved::New(won), Reserved::Busy(by)) | (Reserved::Busy(by), Reserved::New(won)) => {
                assert_eq!(by, won.rotation_id);
                won
            }
            other => panic!("{other:?}"),
        };
        let client = two.one.client(&client_id()).await.unwrap().unwrap();
        assert_eq!(client.active_rotation.as_ref(), Some(&winner));
        let active = two.other.active_rotations().await.unwrap();
        assert_eq!(active.len(), 1);
        let withdraw = cancel(&winner.rotation_id, Outcome::Canceled, NOW);
        two.one.cancel(withdraw).await.unwrap();
    }
    assert_eq!(two.events("rotation.reserved").await, ROUNDS as usize);
    two.check_chains().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_takeover_and_the_prepare_of_the_attempt_before_exclude_each_other() {
    let two = Two::settled().await;
    for round in 1..=ROUNDS {
        let n = round + 1;
        let mut command = reserve(&operation(n), start(n));
        // The fence of the takeover before.
        command.rotation.fence = u64::from(round);
        let Reserved::New(active) = two.one.reserve(command).await.unwrap() else {
            panic!("not reserved")
        };
        let next = active.fence + 1;
        let sealed = prepare(&active, n, ready(n), start(n));
        let (prepared, taken) = tokio::join!(
            two.one.prepare(sealed.clone()),
            two.other
                .take_over(&active, next, NOW, audit("rotation.taken_over", NOW))
        );
        // A takeover voids what was prepared before it, so it always succeeds; the prepare came before it or never.
        let taken = taken.unwrap();
        assert_eq!((taken.attempt, taken.fence), (2, next));
        assert!(
            matches!(prepared, Ok(_) | Err(StoreError::Fenced)),
            "{prepared:?}"
        );
        let rotation = two.one.rotation(&operation(n)).await.unwrap().unwrap();
        assert_eq!(rotation.state, RotationState::Reserved);
        assert_eq!(rotation.new_version, None);
        let versions = two.one.versions(&client_id()).await.unwrap();
        assert!(versions.iter().all(|doc| doc.version_id != version_id(n)));
        assert_eq!(two.one.prepare(sealed).await, Err(StoreError::Fenced));
        two.withdraw(n, next).await;
    }
    two.check_chains().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_is_promoted_or_cancelled_and_never_both() {
    let two = Two::settled().await;
    let (mut promotions, mut withdrawals) = (0, 0);
    for round in 1..=ROUNDS {
        let n = round + 1;
        two.prepared(n).await;
        for by in [REQUESTER, SECOND] {
            let early = ack(&operation(n), n, by, true, start(n));
            two.one.record_ack(early).await.unwrap();
        }
        let before = two.one.client(&client_id()).await.unwrap().unwrap();
        let id = operation(n);
        let (promoted, cancelled) = tokio::join!(
            two.one.promote(
                &id,
                RETENTION,
                FENCE,
                ready(n),
                audit("rotation.promoted", NOW)
            ),
            two.other.cancel(cancel(&id, Outcome::Canceled, ready(n)))
        );
        let rotation = two.one.rotation(&id).await.unwrap().unwrap();
        let after = two.one.client(&client_id()).await.unwrap().unwrap();
        match (promoted, cancelled) {
            (Ok(done), Err(StoreError::Conflict { .. })) => {
                assert_eq!(
                    (done.outcome, rotation.outcome),
                    (Some(Outcome::Promoted), Some(Outcome::Promoted))
                );
                assert_eq!(after.current_version, Some(version_id(n)));
                promotions += 1;
            }
            (Err(StoreError::Conflict { .. }), Ok(_)) => {
                assert_eq!(rotation.outcome, Some(Outcome::Canceled));
                assert_eq!(after.current_version, before.current_version);
                withdrawals += 1;
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(after.active_rotation, None);
    }
    assert_eq!(promotions + withdrawals, ROUNDS);
    two.check_chains().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_acks_at_once_are_both_counted_and_promote_once() {
    let two = Two::settled().await;
    for round in 1..=ROUNDS {
        let n = round + 1;
        two.prepared(n).await;
        let id = operation(n);
        let (first, second) = tokio::join!(
            two.one.record_ack(ack(&id, n, REQUESTER, true, ready(n))),
            two.other.record_ack(ack(&id, n, SECOND, true, ready(n)))
        );
        let (first, second) = (first.unwrap(), second.unwrap());
        assert!(first.counted && second.counted);
        assert!(first.promoted != second.promoted, "promoted once");
        let rotation = two.one.rotation(&id).await.unwrap().unwrap();
        assert_eq!(rotation.quorum.acks.len(), 2);
        assert_eq!(rotation.outcome, Some(Outcome::Promoted));
    }
    assert_eq!(two.events("rotation.promoted").await, ROUNDS as usize);
    assert_eq!(two.events("ack.recorded").await, 2 * ROUNDS as usize);
    two.check_chains().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_has_one_holder() {
    let two = Two::settled().await;
    let mut fence = 0;
    for round in 0..u64::from(ROUNDS) {
        let now = at(round * 1000);
        let (one, other) = tokio::join!(
            two.one.lease("rotation", "one", 1000, now),
            two.other.lease("rotation", "other", 1000, now)
        );
        let held = match (one, other) {
            (Ok(held), Err(StoreError::Conflict { why: "lease.held" }))
            | (Err(StoreError::Conflict { why: "lease.held" }), Ok(held)) => held,
            other => panic!("{other:?}"),
        };
        assert!(held.fence > fence);
        fence = held.fence;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_wrong_code_and_no_record_is_lost() {
    let two = Two::settled().await;
    let count = |store: FirestoreStore| async move {
        for _ in 0..ROUNDS {
            let record = audit("totp.wrong", NOW);
            store
                .totp_failed(npub(REQUESTER), u32::MAX, 1, NOW, record, None)
                .await
                .unwrap();
            store.append(audit("request.refused", NOW)).await.unwrap();
        }
    };
    tokio::join!(count(two.one.clone()), count(two.other.clone()));
    let admin = two.one.admin(&npub(REQUESTER)).await.unwrap().unwrap();
    assert_eq!(admin.totp.unwrap().failures, 2 * ROUNDS);
    assert_eq!(two.events("totp.wrong").await, 2 * ROUNDS as usize);
    assert_eq!(two.events("request.refused").await, 2 * ROUNDS as usize);
    two.check_chains().await;
}

/// What no two documents may share is kept unique although each relay writes a document of its own.
#[tokio::test(flavor = "multi_thread")]
async fn neither_a_key_nor_a_group_is_given_twice() {
    let two = Two::settled().await;
    // Each of them judges the whole collection, which grows: fewer say as much.
    for round in 1..=30u8 {
        let key = ProvenKey {
            key: hex::encode([round; 32]),
            proof_event: "bb".repeat(32),
            at: NOW,
        };
        let record = || nameless("admin.key_proven");
        let (second, third) = (npub(SECOND), npub(THIRD));
        let (a, b) = tokio::join!(
            two.one.prove_key(&second, key.clone(), record()),
            two.other.prove_key(&third, key.clone(), record())
        );
        let taken = |result| {
            matches!(
                result,
                Err(StoreError::Conflict {
                    why: "key.other_admin"
                })
            )
        };
        assert!(a.is_ok() != b.is_ok(), "{a:?} {b:?}");
        assert!(taken(a) || taken(b));

        let group = |alias: &str| AdminGroupDoc {
            alias: format!("{alias}-{round}"),
            mls_group_id: Some(keyturn_proto::MlsGroupId::from_bytes(&[round; 16]).unwrap()),
            nostr_group_id: None,
            welcomers: Vec::new(),
            status: GroupState::Active,
            updated_at: NOW,
        };
        let record = || nameless("group.registered");
        let (a, b) = tokio::join!(
            two.one.put_group(group("a"), record()),
            two.other.put_group(group("b"), record())
        );
        assert!(a.is_ok() != b.is_ok(), "{a:?} {b:?}");
    }
}

/// An ack of an admin whose enrolment ends at the same moment: it counts only if it came first.
#[tokio::test(flavor = "multi_thread")]
async fn an_ack_does_not_outlive_the_enrolment_it_rests_on() {
    let two = Two::settled().await;
    let mut counted = 0;
    // After each of them the whole trail is read.
    for round in 1..=ROUNDS / 2 {
        let n = round + 1;
        two.prepared(n).await;
        let mut gone = two.one.admin(&npub(SECOND)).await.unwrap().unwrap();
        gone.active = false;
        let id = operation(n);
        // The enrolment ends while the ack reads, each round a little further on, or once it has been sent.
        let before = two.one.cost();
        let (acked, put) = tokio::join!(
            two.one.record_ack(ack(&id, n, SECOND, true, start(n))),
            async {
                let further = u64::from(round % 10);
                loop {
                    let now = two.one.cost();
                    if now.reads >= before.reads + further || now.commits > before.commits {
                        break;
                    }
                    tokio::task::yield_now().await;
                }
                two.other.put_admin(gone, nameless("admin.revoked")).await
            }
        );
        put.unwrap();
        if acked.unwrap().counted {
            counted += 1;
            let (acks, ends) = tokio::join!(
                two.committed("ack.recorded"),
                two.committed("admin.revoked")
            );
            assert!(
                acks.last() < ends.last(),
                "an ack after the end of its enrolment"
            );
        }
        let mut back = two.one.admin(&npub(SECOND)).await.unwrap().unwrap();
        back.active = true;
        let record = nameless("admin.enrolled");
        two.one.put_admin(back, record).await.unwrap();
        two.withdraw(n, FENCE).await;
    }
    // Otherwise nothing was compared.
    assert!(counted > 0, "the ack never came first");
}
