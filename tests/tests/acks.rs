//! Acks are proofs: what does not prove that its sender holds the very secret does not make it current.
//!
//! Everything goes through the real relay process. The senders are enrolled members with proven keys, so that nothing but the ack itself is
//! wrong about them.
#![allow(clippy::unwrap_used, clippy::panic)]

use keyturn_proto::ack::RotateAck;
use keyturn_proto::encoding::b64url;
use keyturn_proto::notify::{NotifyState, Outcome};
use keyturn_proto::{Action, ErrorClass, MlsGroupId, RotationId, VersionId, kinds};
use keyturn_store::documents::{RotationState, VersionState};
use keyturn_store::store::{Registry as _, SecretStore as _};
use keyturn_tests::rogue::{Rogue, found};
use keyturn_tests::world::{CLIENT, GROUP, now, set};
use keyturn_tests::{Relay, Trail, World};
use nostr::EventId;

const PROGRAM: &str = env!("CARGO_BIN_EXE_keyturn-under-test");

/// Alice asks; Bob and Carol hold the secret as well; Dave is an admin of another client.
struct Table {
    world: World,
    trail: Trail,
    alice: Rogue,
    bob: Rogue,
    carol: Rogue,
    dave: Rogue,
    group: MlsGroupId,
    elsewhere: MlsGroupId,
    _relay: Relay,
}

impl Table {
    /// The rules of production: two acks, one of them proven, the requester's own does not count.
    async fn new() -> Self {
        let mut world = World::new(PROGRAM, |config| {
            set(config, "policy", "quorum", 2);
            set(config, "policy", "require_proven_ack", true);
            set(config, "policy", "requester_ack_counts", false);
        })
        .await;
        for name in ["alice", "bob", "carol", "dave"] {
            world.enrol(name).await;
        }
        let relay = world.relay().await;
        let mut people = Vec::new();
        for name in ["alice", "bob", "carol", "dave"] {
            let mut person = Rogue::open(&mut world, name, &relay).await;
            person.publish_key_package().await;
            people.push(person);
        }
        let [mut alice, mut bob, mut carol, mut dave] =
            <[Rogue; 4]>::try_from(people).unwrap_or_else(|_| unreachable!("four people"));
        let others = &mut [&mut bob, &mut carol];
        let group = found(&mut world, GROUP, "alice", &mut alice, others).await;
        let elsewhere = found(&mut world, "elsewhere", "dave", &mut dave, &mut []).await;
        world.client(CLIENT, &[GROUP]).await;
        Self {
            trail: Trail::of(&world),
            world,
            alice,
            bob,
            carol,
            dave,
            group,
            elsewhere,
            _relay: relay,
        }
    }

    /// A rotation that waits for its acks.
    async fn prepared(&mut self) -> (RotationId, VersionId) {
        let asked = self
            .alice
            .ask(&self.world, &self.group, CLIENT, Action::Rotation)
            .await;
        let answer = self.alice.answer(asked.event).await;
        let NotifyState::Accepted {
            version_id: Some(version),
            ..
        } = answer
        else {
            panic!("{answer:?}")
        };
        (asked.id, version)
    }

    async fn counted(&self, id: &RotationId) -> Vec<(keyturn_proto::Npub, bool)> {
        let rotation = self.trail.rotation(id).await;
        let acks = rotation.quorum.acks.iter();
        acks.map(|ack| (ack.npub, ack.proven)).collect()
    }
}

/// What the group is told about an ack: whether it was proven, how many proven ones count by now, how many acks are needed.
async fn acked(sender: &mut Rogue, event: EventId) -> (bool, u32, u32) {
    match sender.answer(event).await {
        NotifyState::Acked {
            proven,
            acks,
            required,
        } => (proven, acks, required),
        other => panic!("not recorded: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_acks_that_prove_the_secret_make_it_current() {
    let mut table = Table::new().await;

    // A first rotation, for a proof that was good once.
    let (first, first_version) = table.prepared().await;
    let group = table.group.clone();
    let bobs_old = table.bob.proven_ack(&group, &first).await;
    let carols_old = table.carol.proven_ack(&group, &first).await;
    let event = table.bob.ack(&group, &bobs_old).await;
    assert_eq!(acked(&mut table.bob, event).await, (true, 1, 2));
    table.carol.ack(&group, &carols_old).await;
    assert_eq!(table.alice.over(&first).await, Outcome::Promoted);
    table.trail.quiet().await;

    let (second, version) = table.prepared().await;
    let before = table.trail.documents();
    nothing_of_this_counts(&mut table, &second, &bobs_old).await;
    assert_eq!(
        table.trail.documents(),
        before,
        "a refused ack changed a document"
    );
    assert_eq!(table.counted(&second).await, []);

    the_quorum_fills_up(&mut table, &second).await;
    let client = table.trail.store.client(&CLIENT.parse().unwrap()).await;
    let client = client.unwrap().unwrap();
    assert_eq!(
        (client.current_version, client.previous_version),
        (Some(version), Some(first_version))
    );

    // What comes after the end is noted and changes nothing.
    table.trail.quiet().await;
    let before = table.trail.documents();
    let late = table.bob.proven_ack(&group, &second).await;
    let event = table.bob.ack(&group, &late).await;
    assert_eq!(acked(&mut table.bob, event).await, (true, 1, 2));
    table.trail.wait("ack.late", "proven").await;
    assert_eq!(table.trail.documents(), before);
}

/// Refused, with the class told to the group and the reason in the audit trail.
async fn nothing_of_this_counts(table: &mut Table, id: &RotationId, old: &RotateAck) {
    use ErrorClass::{Conflict, PolicyViolation, UnauthorizedRequest};
    let group = table.group.clone();
    let bobs = table.bob.proven_ack(&group, id).await;
    let carols = table.carol.proven_ack(&group, id).await;
    let elsewhere = RotateAck::proven(
        &table.bob.secrets[table.bob.secrets.len() - 1],
        bobs.ack_by,
        &table.elsewhere,
        now(),
    );
    let other_id = RotationId::generate(now()).unwrap();
    let proof = |proof: String| RotateAck {
        proof: Some(proof),
        ..bobs.clone()
    };
    let cases = [
        (
            "a made-up proof",
            proof(b64url(&[0x5a; 64])),
            UnauthorizedRequest,
            "ack.proof_wrong",
        ),
        (
            "a proof of the wrong length",
            proof("AAAA".to_owned()),
            UnauthorizedRequest,
            "ack.proof_wrong",
        ),
        (
            "the empty proof",
            proof(String::new()),
            UnauthorizedRequest,
            "ack.proof_wrong",
        ),
        (
            "Carol's proof under Bob's name",
            proof(carols.proof.clone().unwrap()),
            UnauthorizedRequest,
            "ack.proof_wrong",
        ),
        (
            "Bob's proof of the version before",
            proof(old.proof.clone().unwrap()),
            UnauthorizedRequest,
            "ack.proof_wrong",
        ),
        (
            "Bob's proof for another group",
            elsewhere,
            UnauthorizedRequest,
            "ack.proof_wrong",
        ),
        (
            "Carol's ack in Bob's mouth",
            carols.clone(),
            UnauthorizedRequest,
            "ack.not_the_sender",
        ),
        (
            "the version before",
            RotateAck {
                version_id: old.version_id,
                ..bobs.clone()
            },
            Conflict,
            "ack.other_version",
        ),
        (
            "a rotation that does not exist",
            RotateAck {
                rotation_id: other_id,
                ..bobs.clone()
            },
            UnauthorizedRequest,
            "rotation.unknown",
        ),
        (
            "another client",
            RotateAck {
                client_id: "somebody-else".parse().unwrap(),
                ..bobs.clone()
            },
            UnauthorizedRequest,
            "rotation.of_another_client",
        ),
    ];
    for (what, ack, class, reason) in cases {
        let event = table.bob.ack(&group, &ack).await;
        assert_eq!(table.bob.refusal(event).await, class, "{what}");
        table
            .trail
            .refused("ack.refused", event, &table.bob, reason)
            .await;
    }

    let malformed = format!(r#"{{"ack_by":"{}","rotation_id":7}}"#, bobs.ack_by);
    let event = table.bob.say(&group, kinds::ROTATE_ACK, &malformed).await;
    assert_eq!(table.bob.refusal(event).await, PolicyViolation);
    table
        .trail
        .refused("ack.refused", event, &table.bob, "ack.malformed")
        .await;

    // Dave knows what to say, but nobody sealed anything for him: his group has nothing to do with the client.
    let daves = RotateAck {
        ack_by: table.dave.npub(),
        ..bobs.clone()
    };
    let event = table.dave.ack(&table.elsewhere, &daves).await;
    assert_eq!(table.dave.refusal(event).await, UnauthorizedRequest);
    table
        .trail
        .refused(
            "ack.refused",
            event,
            &table.dave,
            "rotation.of_another_client",
        )
        .await;
    let rotation = table.trail.rotation(id).await;
    assert_eq!(rotation.state, RotationState::Prepared);
}

/// Own, unproven and repeated acks, until the quorum really is one.
async fn the_quorum_fills_up(table: &mut Table, id: &RotationId) {
    let group = table.group.clone();
    let (alice, bob, carol) = (table.alice.npub(), table.bob.npub(), table.carol.npub());
    let own = table.alice.proven_ack(&group, id).await;
    let event = table.alice.ack(&group, &own).await;
    assert_eq!(
        acked(&mut table.alice, event).await,
        (true, 0, 2),
        "the requester's own ack counts for nothing"
    );
    assert_eq!(table.counted(id).await, [(alice, true)]);

    let proven = table.bob.proven_ack(&group, id).await;
    let unproven = RotateAck {
        proof: None,
        ..proven.clone()
    };
    for _ in 0..2 {
        let event = table.bob.ack(&group, &unproven).await;
        assert_eq!(acked(&mut table.bob, event).await, (false, 0, 2));
    }
    let carols = RotateAck {
        proof: None,
        ..table.carol.proven_ack(&group, id).await
    };
    let event = table.carol.ack(&group, &carols).await;
    assert_eq!(acked(&mut table.carol, event).await, (false, 0, 2));
    assert_eq!(
        table.counted(id).await,
        [(alice, true), (bob, false), (carol, false)]
    );
    assert_eq!(
        table.trail.rotation(id).await.state,
        RotationState::Prepared,
        "unproven acks alone made a quorum"
    );

    let event = table.bob.ack(&group, &proven).await;
    assert_eq!(acked(&mut table.bob, event).await, (true, 1, 2));
    assert_eq!(table.alice.over(id).await, Outcome::Promoted);
    assert_eq!(
        table.counted(id).await,
        [(alice, true), (bob, true), (carol, false)],
        "a proven ack takes the place of the unproven one"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_admin_is_no_quorum_however_often_he_acks_and_after_the_deadline_nobody_is() {
    let mut world = World::new(PROGRAM, |config| {
        set(config, "policy", "ack_deadline", "20s");
    })
    .await;
    for name in ["alice", "bob"] {
        world.enrol(name).await;
    }
    let relay = world.relay().await;
    let trail = Trail::of(&world);
    let mut alice = Rogue::open(&mut world, "alice", &relay).await;
    let mut bob = Rogue::open(&mut world, "bob", &relay).await;
    alice.publish_key_package().await;
    bob.publish_key_package().await;
    let group = found(&mut world, GROUP, "alice", &mut alice, &mut [&mut bob]).await;
    let client = world.client(CLIENT, &[GROUP]).await;

    let asked = alice.ask(&world, &group, CLIENT, Action::Rotation).await;
    let proven = bob.proven_ack(&group, &asked.id).await;
    for _ in 0..3 {
        let event = bob.ack(&group, &proven).await;
        assert_eq!(acked(&mut bob, event).await, (true, 1, 2));
    }
    assert_eq!(alice.over(&asked.id).await, Outcome::Expired);
    trail.quiet().await;

    let before = trail.documents();
    let own = alice.proven_ack(&group, &asked.id).await;
    let event = alice.ack(&group, &own).await;
    assert!(matches!(
        alice.answer(event).await,
        NotifyState::Acked { .. }
    ));
    let late = trail.wait("ack.late", "proven").await;
    assert_eq!(late.nostr_event, Some(event.to_hex()));
    assert_eq!(trail.documents(), before);

    let store = &trail.store;
    let rotation = store.rotation(&asked.id).await.unwrap().unwrap();
    assert_eq!(rotation.outcome, Some(Outcome::Expired));
    assert_eq!(rotation.quorum.acks.len(), 1);
    let versions = store.versions(&client).await.unwrap();
    let states: Vec<VersionState> = versions.iter().map(|version| version.state).collect();
    assert_eq!(states, [VersionState::Cancelled]);
    let client = store.client(&client).await.unwrap().unwrap();
    assert_eq!(client.current_version, None);
}
