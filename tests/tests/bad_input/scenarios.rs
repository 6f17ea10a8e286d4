//! The list of scenarios that every carriage must end alike (`keyturn::admission::scenarios`), carried by MLS messages through the relay.

use std::time::Duration;

use keyturn::admission::scenarios::{
    Attempt, Code, Expected, Facts, LOCKOUT_AFTER, Memory, Scenario, Sender, TestIssuer, scenarios,
};
use keyturn::admission::totp_seed::{STEP_SECS, Seed};
use keyturn::operator::admins;
use keyturn_admin::transport::RelayError;
use keyturn_mls::verify_key_package;
use keyturn_proto::notify::{NotifyState, Outcome};
use keyturn_proto::{Action, ClientId, ErrorClass, MlsGroupId, kinds};
use keyturn_store::documents::ClientScope;
use keyturn_store::store::{Registry as _, SecretStore as _};
use keyturn_tests::rogue::{Rogue, found};
use keyturn_tests::world::{CLIENT, now, set};
use keyturn_tests::{Trail, World};
use nostr::EventId;

use super::Table;

/// What the relay takes as one event, less what base64, MLS and JSON add.
const LARGEST_TEXT: usize = 250_000;
/// Codes are judged by the step of their receipt, and those of its neighbours are taken as well. So only these change their meaning when a step ends between the
/// writing and the receipt: what is sent with one of them is written so early in a step that this much of it is left.
const EDGES: [Code; 2] = [Code::AtStep(-1), Code::AtStep(2)];
const ROOM_IN_STEP: Duration = Duration::from_secs(25);

/// Somebody in a group: who, where, about whose secret.
struct Seat {
    rogue: Rogue,
    group: MlsGroupId,
    client: ClientId,
    /// Whether the group may hear how a request about its client ended.
    hears: bool,
}

struct Carriage {
    table: Table,
    issuer: TestIssuer,
    seed: Seed,
    /// Where Alice is an admin of another client.
    other_group: MlsGroupId,
    stranger: Seat,
    unproven: Seat,
    out_of_scope: Seat,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_scenario_ends_as_the_list_says() {
    let mut carriage = Carriage::new().await;
    for scenario in scenarios() {
        carriage.run(&scenario).await;
    }
    assert!(carriage.table.relay.is_alive());
}

impl Carriage {
    async fn new() -> Self {
        let issuer = TestIssuer::new();
        let keys = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(keys.path(), issuer.jwks().to_string()).unwrap();
        let jwks = keys.path().to_str().unwrap().to_owned();
        let mut table = Table::new(|config| {
            let section = config["issuer"].as_table_mut().unwrap();
            section.remove("jwks_url");
            set(config, "issuer", "jwks_file", jwks);
            set(config, "issuer", "issuer", "test-issuer");
            set(config, "admission", "totp", "either");
            set(
                config,
                "admission",
                "lockout_attempts",
                i64::from(LOCKOUT_AFTER),
            );
            for key in [
                "client_requests_per_hour",
                "admin_requests_per_hour",
                "breaker_refusals",
            ] {
                set(config, "policy", key, 100_000);
            }
        })
        .await;
        let (world, relay) = (&mut table.world, &table.relay);
        let other_group = found(world, "other", "alice", &mut table.alice, &mut []).await;

        // Each in a group with Alice and with a client of its own, because none of these groups can be sealed to.
        let mut sam = Rogue::open(world, "sam", relay).await;
        sam.publish_key_package().await;
        let stranger = seat(world, &mut table.alice, sam, "strange").await;
        world.enrol("dave").await;
        let not_dave = Rogue::posing_as(world, "dave", relay).await;
        let unproven = seat(world, &mut table.alice, not_dave, "unproven").await;
        world.enrol("carol").await;
        let mut carol = Rogue::open(world, "carol", relay).await;
        carol.publish_key_package().await;
        let scope = ClientScope::Only(vec![CLIENT.parse().unwrap()]);
        table
            .trail
            .change_admin(&carol.npub(), |enrolled| enrolled.scope = scope.clone())
            .await;
        let out_of_scope = seat(world, &mut table.alice, carol, "scoped").await;
        let seed = new_seed(world, &table.trail).await;
        // The relay has read it by now, and never needs to again: no key is unknown for long.
        drop(keys);
        Self {
            table,
            issuer,
            seed,
            other_group,
            stranger,
            unproven,
            out_of_scope,
        }
    }

    async fn run(&mut self, scenario: &Scenario) {
        let name = scenario.name;
        if scenario
            .attempts
            .iter()
            .any(|attempt| attempt.code != Code::Absent)
        {
            self.fresh_codes().await;
        }
        let mut memory = Memory::default();
        let (last, before) = scenario.attempts.split_last().unwrap();
        for attempt in before {
            let event = self.send(attempt, &mut memory).await.unwrap();
            self.table.alice.answer(event).await;
        }
        let documents = self.table.trail.documents();
        let sent = self.send(last, &mut memory).await;
        match (scenario.expected, sent) {
            (Expected::Admitted, Ok(event)) => self.admitted(name, last, event).await,
            (Expected::Refused(class, reason), Ok(event)) => {
                self.refused(name, last.sender, event, class, reason).await;
                assert_eq!(self.table.trail.documents(), documents, "{name}");
            }
            // Too large for the relay: said by a NOTICE, and never seen by us.
            (Expected::Refused(_, "request.too_large"), Err(RelayError::Notice(_))) => {
                assert_eq!(self.table.trail.documents(), documents, "{name}");
            }
            (expected, sent) => panic!("{name}: {sent:?} instead of {expected:?}"),
        }
        self.tidy_up().await;
    }

    async fn send(
        &mut self,
        attempt: &Attempt,
        memory: &mut Memory,
    ) -> Result<EventId, RelayError> {
        let admins = CLIENT.parse().unwrap();
        let Table { alice, group, .. } = &mut self.table;
        let (rogue, group, client) = match attempt.sender {
            Sender::Admin => (alice, &*group, &admins),
            Sender::OtherGroup => (alice, &self.other_group, &admins),
            Sender::Stranger => self.stranger.parts(),
            Sender::UnprovenLeaf => self.unproven.parts(),
            Sender::OutOfScope => self.out_of_scope.parts(),
        };
        rogue.ready(group).await;
        let challenge = rogue.challenges.fetch().await.unwrap();
        if EDGES.contains(&attempt.code) {
            early_in_a_step().await;
        }
        let key = rogue.member.signature_key();
        let facts = Facts {
            client,
            npub: rogue.npub(),
            leaf_signature_key: key.as_bytes(),
            mls_group_id: group,
            challenge: &challenge.challenge,
            seed: Some(&self.seed),
            now: now(),
        };
        let text = attempt.compose(&self.issuer, &facts, memory);
        let sent = rogue.try_say(group, kinds::SERVICE_REQUEST, &text).await;
        assert!(sent.is_ok() || text.len() > LARGEST_TEXT, "{sent:?}");
        sent
    }

    async fn refused(
        &mut self,
        name: &str,
        sender: Sender,
        event: EventId,
        class: ErrorClass,
        reason: &str,
    ) {
        let trail = &self.table.trail;
        let (rogue, hears) = match sender {
            Sender::Admin | Sender::OtherGroup => (&mut self.table.alice, true),
            Sender::Stranger => (&mut self.stranger.rogue, self.stranger.hears),
            Sender::UnprovenLeaf => (&mut self.unproven.rogue, self.unproven.hears),
            Sender::OutOfScope => (&mut self.out_of_scope.rogue, self.out_of_scope.hears),
        };
        trail.refused("request.refused", event, rogue, reason).await;
        if hears {
            assert_eq!(rogue.refusal(event).await, class, "{name}");
        } else {
            // Why the group was not told is itself recorded, after which no answer can come any more.
            trail.wait("roster.refused", reason).await;
            rogue.hear_waiting().await;
            assert!(!rogue.was_answered(event), "{name}");
        }
    }

    /// Not refused by admission. What the engine says depends on the client, which has no version yet.
    async fn admitted(&mut self, name: &str, attempt: &Attempt, event: EventId) {
        let answer = self.table.alice.answer(event).await;
        let as_expected = match (attempt.action, &answer) {
            (Action::Rotation | Action::Emergency, NotifyState::Accepted { version_id, .. }) => {
                version_id.is_some()
            }
            (Action::Status, NotifyState::Status { .. }) => true,
            (Action::Revoke, NotifyState::Done { outcome, .. }) => *outcome == Outcome::Revoked,
            (Action::Cancel, NotifyState::Refused { error, .. }) => *error == ErrorClass::NotFound,
            (Action::Rollback, NotifyState::Refused { error, .. }) => {
                *error == ErrorClass::Conflict
            }
            _ => false,
        };
        assert!(as_expected, "{name}: {answer:?}");
    }

    /// Withdraws what is under way, so that the next scenario meets a client at rest.
    async fn tidy_up(&mut self) {
        let client = CLIENT.parse().unwrap();
        let client = self.table.trail.store.client(&client).await.unwrap();
        if client.unwrap().active_rotation.is_some() {
            let cancel = Attempt {
                action: Action::Cancel,
                ..Attempt::good()
            };
            let event = self.send(&cancel, &mut Memory::default()).await.unwrap();
            let answer = self.table.alice.answer(event).await;
            assert!(matches!(answer, NotifyState::Done { .. }), "{answer:?}");
        }
        self.table.trail.quiet().await;
    }

    /// A new seed, and no step used yet.
    async fn fresh_codes(&mut self) {
        self.seed = new_seed(&mut self.table.world, &self.table.trail).await;
        let far = now().plus(Duration::from_secs(30 * 86_400));
        let store = &self.table.trail.store;
        store.forget_nonces(far, usize::MAX).await.unwrap();
    }
}

/// Waits for the next step when too little is left of this one.
async fn early_in_a_step() {
    let step = Duration::from_secs(STEP_SECS);
    let left = || step - Duration::from_millis(now().0 % (STEP_SECS * 1000));
    while left() < ROOM_IN_STEP {
        tokio::time::sleep(left()).await;
    }
}

impl Seat {
    fn parts(&mut self) -> (&mut Rogue, &MlsGroupId, &ClientId) {
        (&mut self.rogue, &self.group, &self.client)
    }
}

/// A group of Alice and somebody who does not belong there, from its first epoch on, bound to a client of its own.
async fn seat(world: &mut World, alice: &mut Rogue, mut rogue: Rogue, alias: &str) -> Seat {
    world.bind(alias, "alice").await;
    let client = world.client(&format!("{alias}-svc"), &[alias]).await;
    let package = rogue.key_package().addressable;
    let invitees = [
        alice.key_package_of(&world.service()).await,
        verify_key_package(&package, now()).unwrap(),
    ];
    let group = alice.found(alias, &invitees, &[]).await;
    rogue.join(&group).await;
    alice.ready_at(&group, 3).await;
    rogue.ready_at(&group, 3).await;
    Seat {
        rogue,
        group,
        client,
        hears: false,
    }
}

/// Alice enrols her authenticator app anew.
async fn new_seed(world: &mut World, trail: &Trail) -> Seed {
    let alice = world.npub("alice");
    let enrolment = admins::Enrolment {
        npub: alice,
        scope: ClientScope::All,
        keys: Vec::new(),
        new_seed: true,
        issuer: "keyturn-tests".to_owned(),
    };
    admins::enrol(&trail.store, &world.seed_key(), enrolment, now())
        .await
        .unwrap();
    let admin = trail.store.admin(&alice).await.unwrap().unwrap();
    let stored = admin.totp.unwrap().seed_ciphertext;
    world.seed_key().open(&stored, &alice).unwrap()
}
