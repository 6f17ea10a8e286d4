//! What becomes of a rotation other than a promotion, and of the secrets before and after it: conflict, cancel, expiry, the end of grace,
//! revocation, emergency. Through a real relay process; judged by the store and by the verifier.
#![allow(clippy::unwrap_used, clippy::panic)]

use keyturn_admin::session::RequestError;
use keyturn_admin::{AdminSession, Update};
use keyturn_proto::notify::{NotifyState, Outcome};
use keyturn_proto::{Action, ErrorClass, MlsGroupId, Params, RotationId, VersionId};
use keyturn_store::documents::{ClientStatus, VersionState};
use keyturn_store::verifier::Which;
use keyturn_tests::steady::{self, Wish, carry_through};
use keyturn_tests::verdict::{Held, Judge};
use keyturn_tests::world::{CLIENT, deadline, reason};
use keyturn_tests::{Relay, World, eventually};
use tokio::time::Instant;

const PROGRAM: &str = env!("CARGO_BIN_EXE_keyturn-under-test");

/// A world after a first rotation.
struct Stage {
    world: World,
    relay: Relay,
    judge: Judge,
    held: Held,
    alice: AdminSession,
    bob: AdminSession,
    group: MlsGroupId,
    first: VersionId,
}

impl Stage {
    async fn set() -> Self {
        let mut world = World::new(PROGRAM, |_| {}).await;
        let (relay, mut alice, mut bob, group) = world.with_group().await;
        let (_, first) = world.rotate(&mut alice, &mut bob, &group).await;
        let held = Held::default();
        held.note(&first);
        Self {
            judge: Judge::of(&world, CLIENT),
            first: first.notify.header.version_id,
            world,
            relay,
            held,
            alice,
            bob,
            group,
        }
    }

    /// Alice asks; what the answer says.
    async fn ask(&mut self, action: Action, params: Params) -> Result<NotifyState, ErrorClass> {
        let wish = Wish::new(action, &self.group, params);
        self.ask_for(&wish).await
    }

    async fn ask_for(&mut self, wish: &Wish) -> Result<NotifyState, ErrorClass> {
        let signer = self.world.issuer.signer();
        match self.alice.request(wish.spec(), signer, deadline()).await {
            Ok(reply) => Ok(reply.answer.body),
            Err(RequestError::Refused { class, .. }) => Err(class),
            Err(error) => panic!("{error}"),
        }
    }

    /// A rotation that waits for acks: its id, and the version that both admins hold.
    async fn begun(&mut self, action: Action) -> (RotationId, VersionId) {
        let wish = Wish::new(action, &self.group, reason("begun"));
        let answer = self.ask_for(&wish).await.unwrap();
        let NotifyState::Accepted {
            version_id: Some(version),
            ..
        } = answer
        else {
            panic!("{answer:?}")
        };
        for admin in [&mut self.alice, &mut self.bob] {
            steady::open(admin, &wish.id, &self.held).await;
        }
        (wish.id, version)
    }

    /// A whole rotation; the version it made.
    async fn rotate(&mut self, params: Params) -> VersionId {
        let wish = Wish::new(Action::Rotation, &self.group, params);
        let (signer, held) = (self.world.issuer.signer(), &self.held);
        carry_through(signer, &mut self.alice, &mut self.bob, &wish, held).await;
        let current = self.judge.client().await.current_version.unwrap();
        let rotation = self.judge.rotation(&wish.id).await.unwrap();
        assert_eq!(rotation.new_version, Some(current));
        current
    }

    async fn verify(&self, version: VersionId) -> Option<Which> {
        let verified = self.judge.verify(&self.held.secret(version)).await;
        verified.map(|(found, which)| {
            assert_eq!(found, version, "it matched another version");
            which
        })
    }

    async fn state(&self, version: VersionId) -> VersionState {
        let client = CLIENT.parse().unwrap();
        let versions = self.judge.store.versions(&client).await.unwrap();
        let found = versions.iter().find(|found| found.version_id == version);
        found.unwrap().state
    }
}

fn ended(answer: &NotifyState) -> (Outcome, Option<VersionId>, Option<VersionId>) {
    match answer {
        NotifyState::Done {
            outcome,
            current_version,
            previous_version,
            ..
        } => (*outcome, *current_version, *previous_version),
        other => panic!("not over: {other:?}"),
    }
}

/// The status as it was answered: client, current, previous, active rotation.
fn status(
    answer: NotifyState,
) -> (
    String,
    Option<VersionId>,
    Option<VersionId>,
    Option<RotationId>,
) {
    match answer {
        NotifyState::Status {
            client_status,
            current_version,
            previous_version,
            active_rotation,
            ..
        } => (
            client_status,
            current_version,
            previous_version,
            active_rotation,
        ),
        other => panic!("no status: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_rotation_is_a_conflict_until_the_first_is_cancelled() {
    let mut stage = Stage::set().await;
    let first = stage.first;
    let (id, pending) = stage.begun(Action::Rotation).await;

    let answer = stage.ask(Action::Status, Params::default()).await.unwrap();
    let expected = ("active".to_owned(), Some(first), None, Some(id.clone()));
    assert_eq!(status(answer), expected);
    let second = stage.ask(Action::Rotation, reason("me too")).await;
    assert_eq!(second, Err(ErrorClass::Conflict));
    let same_id = Wish {
        id: id.clone(),
        ..Wish::new(Action::Rotation, &stage.group, reason("something else"))
    };
    let reused = stage.ask_for(&same_id).await;
    assert_eq!(reused, Err(ErrorClass::Conflict), "the id means another");
    assert_eq!(stage.verify(first).await, Some(Which::Current));
    assert_eq!(
        stage.verify(pending).await,
        None,
        "not before its promotion"
    );

    let answer = stage.ask(Action::Cancel, reason("not needed")).await;
    let cancelled = (Outcome::Canceled, Some(first), None);
    assert_eq!(ended(&answer.unwrap()), cancelled);
    let told = steady::done(&mut stage.bob, &id).await;
    assert_eq!(ended(&told.body), cancelled, "everybody hears of it");
    assert_eq!(stage.state(pending).await, VersionState::Cancelled);
    assert_eq!(stage.verify(pending).await, None);
    assert_eq!(stage.verify(first).await, Some(Which::Current));

    let answer = stage.ask(Action::Status, Params::default()).await.unwrap();
    assert_eq!(status(answer).3, None);
    let nothing = stage.ask(Action::Cancel, reason("once more")).await;
    assert_eq!(nothing, Err(ErrorClass::NotFound));
    let next = stage.rotate(reason("after a cancelled one")).await;
    assert_eq!(stage.verify(next).await, Some(Which::Current));
    assert_eq!(stage.verify(first).await, Some(Which::Previous));
    let over = Params {
        target_rotation_id: stage.judge.versions_of(&id).await[0].rotation_id.clone(),
        ..reason("cancelled before")
    };
    let repeated = stage.ask(Action::Cancel, over).await.unwrap();
    assert_eq!(ended(&repeated).0, Outcome::Canceled, "said once more");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotation_without_enough_acks_expires_at_its_deadline() {
    let mut stage = Stage::set().await;
    let first = stage.first;
    stage.relay.terminate();
    stage.world.configure(|config| {
        let policy = config["policy"].as_table_mut().unwrap();
        policy.insert("ack_deadline".to_owned(), "10s".into());
    });
    stage.relay = stage.world.relay().await;

    let wish = Wish::new(Action::Rotation, &stage.group, reason("one ack of two"));
    let signer = stage.world.issuer.signer();
    steady::insist(signer, &mut stage.alice, &wish).await;
    let opened = steady::open(&mut stage.alice, &wish.id, &stage.held).await;
    steady::ack(&mut stage.alice, &opened).await;
    let told = steady::done(&mut stage.alice, &wish.id).await;
    assert_eq!(ended(&told.body), (Outcome::Expired, Some(first), None));
    let pending = opened.notify.header.version_id;
    assert_eq!(stage.state(pending).await, VersionState::Cancelled);

    // The second ack comes too late, and changes nothing.
    let late = steady::open(&mut stage.bob, &wish.id, &stage.held).await;
    steady::ack(&mut stage.bob, &late).await;
    eventually("the late ack is noted", async || {
        let noted = stage.judge.audited(&wish.id, "ack.late").await;
        (!noted.is_empty()).then_some(())
    })
    .await;
    let rotation = stage.judge.rotation(&wish.id).await.unwrap();
    assert_eq!(rotation.outcome, Some(Outcome::Expired));
    let client = stage.judge.client().await;
    assert_eq!(client.active_rotation, None);
    assert_eq!(client.current_version, Some(first));
    assert_eq!(stage.verify(first).await, Some(Which::Current));
    assert_eq!(stage.verify(pending).await, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_old_secret_dies_at_the_end_of_its_grace_and_not_before() {
    let mut stage = Stage::set().await;
    let first = stage.first;
    let short = Params {
        grace_duration_ms: Some(20_000),
        ..reason("short grace")
    };
    let second = stage.rotate(short).await;
    assert_eq!(stage.verify(second).await, Some(Which::Current));
    assert_eq!(stage.verify(first).await, Some(Which::Previous));

    let until = deadline();
    loop {
        assert!(Instant::now() < until, "nobody was told of the end");
        let update = stage.alice.next_update(until).await.unwrap();
        if let Some(Update::Report { notify, .. }) = update
            && let NotifyState::Retired { version_id } = notify.body
        {
            assert_eq!(version_id, first);
            break;
        }
    }
    assert_eq!(stage.state(first).await, VersionState::Retired);
    assert_eq!(stage.verify(first).await, None, "no tolerance revives it");
    assert_eq!(stage.verify(second).await, Some(Which::Current));
    let answer = stage.ask(Action::Status, Params::default()).await.unwrap();
    assert_eq!(
        status(answer),
        ("active".to_owned(), Some(second), None, None)
    );
    let too_late = stage.ask(Action::Rollback, reason("back, please")).await;
    assert_eq!(too_late, Err(ErrorClass::Conflict));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revocation_takes_effect_at_once() {
    let mut stage = Stage::set().await;
    let first = stage.first;
    let second = stage.rotate(reason("so that two live")).await;

    let one = Params {
        version_id: Some(first),
        ..reason("only the old one leaked")
    };
    let answer = stage.ask(Action::Revoke, one).await.unwrap();
    assert_eq!(ended(&answer), (Outcome::Revoked, Some(second), None));
    assert_eq!(stage.verify(first).await, None);
    assert_eq!(stage.verify(second).await, Some(Which::Current));
    assert_eq!(stage.judge.client().await.status, ClientStatus::Active);

    // Everything, also what was under way.
    let (id, pending) = stage.begun(Action::Rotation).await;
    let answer = stage.ask(Action::Revoke, reason("all leaked")).await;
    assert_eq!(ended(&answer.unwrap()), (Outcome::Revoked, None, None));
    for (version, state) in [
        (second, VersionState::Retired),
        (pending, VersionState::Cancelled),
    ] {
        assert_eq!(stage.verify(version).await, None);
        assert_eq!(stage.state(version).await, state);
    }
    let rotation = stage.judge.rotation(&id).await.unwrap();
    assert_eq!(rotation.outcome, Some(Outcome::Revoked));
    let answer = stage.ask(Action::Status, Params::default()).await.unwrap();
    let nothing = ("suspended".to_owned(), None, None, None);
    assert_eq!(status(answer), nothing);

    let next = stage.rotate(reason("a fresh start")).await;
    assert_eq!(stage.verify(next).await, Some(Which::Current));
    assert_eq!(stage.judge.client().await.status, ClientStatus::Active);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_emergency_kills_the_old_secrets_first_and_leaves_no_grace() {
    let mut stage = Stage::set().await;
    let first = stage.first;
    let second = stage.rotate(reason("so that two live")).await;
    let (id, pending) = stage.begun(Action::Emergency).await;
    // Nobody has acked, and what leaked is dead already.
    for version in [first, second] {
        assert_eq!(stage.verify(version).await, None);
        assert_eq!(stage.state(version).await, VersionState::Retired);
    }
    assert_eq!(stage.verify(pending).await, None);
    assert_eq!(stage.judge.client().await.status, ClientStatus::Suspended);

    stage
        .ask(Action::Cancel, reason("wrong button"))
        .await
        .unwrap();
    let rotation = stage.judge.rotation(&id).await.unwrap();
    assert_eq!(rotation.outcome, Some(Outcome::Canceled));
    for version in [first, second, pending] {
        assert_eq!(stage.verify(version).await, None, "nothing comes back");
    }

    let wish = Wish::new(Action::Emergency, &stage.group, reason("to the end"));
    let (signer, held) = (stage.world.issuer.signer(), &stage.held);
    let told = carry_through(signer, &mut stage.alice, &mut stage.bob, &wish, held).await;
    let current = stage.judge.client().await.current_version;
    assert_eq!(ended(&told.body), (Outcome::Promoted, current, None));
    assert_eq!(stage.verify(current.unwrap()).await, Some(Which::Current));
    assert_eq!(stage.judge.client().await.status, ClientStatus::Active);
}
