//! Events that nobody should send: by strangers who know a group's address, by members who write nonsense, too large, at random.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::future::join_all;
use keyturn_admin::clock::SystemClock;
use keyturn_admin::transport::{Connection, RelayError};
use keyturn_proto::notify::{NotifyState, Outcome};
use keyturn_proto::{Action, ErrorClass, Params, RotationId, kinds};
use keyturn_store::documents::{Actor, AuditRecord};
use keyturn_tests::trail::{counter, resident};
use keyturn_tests::world::{CLIENT, PATIENCE, deadline, eventually, now, reason, set};
use nostr::{Event, EventBuilder, Keys, Kind, RelayUrl, Tag};
use serde_json::{Map, Value, json};

use super::{Table, refused};

/// Random events of each sort.
const NOISE: usize = 300;
/// Published at once; MLS forgives a hundred messages out of order.
const AT_ONCE: usize = 50;
/// Records that strangers can cause within ten minutes.
const MOST_JUNK: usize = 30;
/// More than this in memory would be a leak: the relay keeps a few hundred events it cannot open, none above half a megabyte.
const MOST_MEMORY: u64 = 160 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn noise_changes_nothing_and_a_rotation_works_afterwards() {
    let mut table = Table::new(|config| {
        set(config, "policy", "breaker_refusals", 100_000);
        set(config, "policy", "client_requests_per_hour", 100_000);
        set(config, "policy", "admin_requests_per_hour", 100_000);
    })
    .await;
    let outsider = Outsider::new(&table).await;
    let documents = table.trail.documents();
    malformed_group_events(&mut table, &outsider).await;
    what_is_no_message_of_ours(&mut table, &outsider).await;
    what_members_write(&mut table).await;
    at_random(&mut table, &outsider).await;
    assert_eq!(table.trail.documents(), documents);
    a_rotation_works(&mut table).await;
    assert!(table.relay.is_alive());
    let resident = resident(&table.relay);
    assert!(resident < MOST_MEMORY, "{resident} bytes in memory");
}

/// Somebody with a websocket who has read the group's address off the relay.
struct Outsider {
    connection: Connection,
    keys: Keys,
    address: String,
}

impl Outsider {
    async fn new(table: &Table) -> Self {
        let keys = Keys::generate();
        let url = RelayUrl::parse(&table.relay.url).unwrap();
        let clock = std::sync::Arc::new(SystemClock);
        let connection = Connection::open(&url, &keys, PATIENCE, clock)
            .await
            .unwrap();
        let info = table
            .alice
            .member
            .group_info(&table.group)
            .unwrap()
            .unwrap();
        Self {
            connection,
            keys,
            address: info.nostr_group_id.to_hex(),
        }
    }

    fn event(&self, kind: u16, content: &str, tags: &[&[&str]]) -> Event {
        let tags = tags
            .iter()
            .map(|tag| Tag::parse(tag.iter().copied()).unwrap());
        EventBuilder::new(Kind::from(kind), content)
            .tags(tags)
            .sign_with_keys(&self.keys)
            .unwrap()
    }

    /// A group event with this content and nothing else wrong about it.
    fn group_event(&self, content: &str) -> Event {
        let tags: [&[&str]; 2] = [&["h", &self.address], &["encoding", "base64"]];
        self.event(kinds::GROUP_EVENT, content, &tags)
    }

    async fn publish(&self, event: &Event) -> Result<(), RelayError> {
        self.connection.publish(event, deadline()).await
    }
}

async fn malformed_group_events(table: &mut Table, outsider: &Outsider) {
    let address = outsider.address.as_str();
    let sealed = STANDARD.encode([0x5a; 200]);
    let cases = [
        (
            "not base64",
            outsider.group_event("%%%"),
            "content is malformed",
        ),
        ("empty", outsider.group_event(""), "content is malformed"),
        (
            "shorter than its own nonce",
            outsider.group_event(&STANDARD.encode([0; 20])),
            "content is malformed",
        ),
        (
            "larger than any message",
            outsider.group_event(&STANDARD.encode(vec![0; 300 * 1024])),
            "content is malformed",
        ),
        (
            "two addresses",
            outsider.event(
                kinds::GROUP_EVENT,
                &sealed,
                &[&["h", address], &["h", address], &["encoding", "base64"]],
            ),
            "not exactly one well-formed h tag",
        ),
        (
            "hex",
            outsider.event(
                kinds::GROUP_EVENT,
                &sealed,
                &[&["h", address], &["encoding", "hex"]],
            ),
            "encoding is not base64",
        ),
    ];
    for (what, event, why) in cases {
        outsider.publish(&event).await.unwrap();
        let id = event.id.to_hex();
        let record = table
            .trail
            .wait_for(what, |record| record.nostr_event.as_ref() == Some(&id))
            .await;
        assert_eq!(
            (record.event.as_str(), record.reason.as_str(), record.actor),
            ("event.invalid", why, Actor::Unknown),
            "{what}"
        );
    }

    // One mebibyte: the relay's own limit answers, with a NOTICE.
    let event = outsider.group_event(&"A".repeat(1 << 20));
    let said = outsider.publish(&event).await;
    assert!(matches!(said, Err(RelayError::Notice(_))), "{said:?}");

    // Well-formed, and under no key of ours: it may be of an epoch to come, so it waits, and nobody is told anything.
    let event = outsider.group_event(&sealed);
    outsider.publish(&event).await.unwrap();
    let kept = table.trail.wait("event.kept", "not_openable_yet").await;
    assert_eq!(
        (kept.nostr_event, kept.actor),
        (Some(event.id.to_hex()), Actor::Unknown)
    );
}

async fn what_is_no_message_of_ours(table: &mut Table, outsider: &Outsider) {
    // Welcomes that are none.
    let service = table.world.service().to_hex();
    let before = counter(&table.relay, "keyturn_welcomes_invalid_total", "").await;
    let wraps = [
        outsider.event(kinds::GIFT_WRAP, "not encrypted", &[&["p", &service]]),
        outsider.event(kinds::GIFT_WRAP, "", &[&["p", &service]]),
    ];
    for wrap in &wraps {
        outsider.publish(wrap).await.unwrap();
    }
    eventually("both gift wraps are thrown away", async || {
        let thrown = counter(&table.relay, "keyturn_welcomes_invalid_total", "").await;
        (thrown == before + wraps.len() as u64).then_some(())
    })
    .await;

    // A request in clear text, perfectly authorised: that carriage is off.
    let id = RotationId::generate(now()).unwrap();
    let request = table
        .alice
        .compose(
            &table.world,
            &table.group,
            CLIENT,
            Action::Rotation,
            &id,
            &reason("in the clear"),
        )
        .await;
    let text = serde_json::to_string(&request).unwrap();
    let records = table.trail.records().await.len();
    let mut clear = Vec::new();
    for kind in [kinds::SERVICE_REQUEST, kinds::ROTATE_REQUEST] {
        let event = EventBuilder::new(Kind::from(kind), text.clone())
            .tag(Tag::parse(["client", CLIENT]).unwrap())
            .sign_with_keys(&table.alice.keys)
            .unwrap();
        clear.push(event.id.to_hex());
        // Whether the relay stores it like any other event is its own affair.
        drop(table.alice.relay.publish(&event, deadline()).await);
    }
    // What was sent before this was looked at before it, and only this leaves records: its nonce, and that it was told.
    status(table).await;
    let after = table.trail.records().await.split_off(records);
    let told = after.iter().any(|record| record.event == "status.told");
    assert!(told, "{after:?}");
    let about = |record: &&AuditRecord| {
        let event = record.nostr_event.as_ref();
        record.rotation_id.as_ref() == Some(&id) || event.is_some_and(|event| clear.contains(event))
    };
    assert_eq!(after.iter().find(about), None);
}

async fn what_members_write(table: &mut Table) {
    let group = table.group.clone();
    let id = RotationId::generate(now()).unwrap();
    let request = table
        .alice
        .compose(
            &table.world,
            &group,
            CLIENT,
            Action::Rotation,
            &id,
            &Params::default(),
        )
        .await;
    let mut large = serde_json::to_value(&request).unwrap();
    large["padding"] = json!("x".repeat(200 * 1024));
    let event = table
        .alice
        .say(&group, kinds::SERVICE_REQUEST, &large.to_string())
        .await;
    let class = ErrorClass::PolicyViolation;
    refused(
        &table.trail,
        &mut table.alice,
        event,
        class,
        "request.too_large",
    )
    .await;

    // Nobody but the relay delivers secrets: it is not even kept.
    let forged = json!({ "secret": "A".repeat(43), "client_id": CLIENT });
    let event = table
        .alice
        .say(&group, kinds::ROTATE_NOTIFY, &forged.to_string())
        .await;
    table
        .trail
        .refused("message.dropped", event, &table.alice, "notify.by_a_member")
        .await;

    // An ack that is no JSON.
    let event = table.alice.say(&group, kinds::ROTATE_ACK, "ack!").await;
    table
        .trail
        .refused("message.dropped", event, &table.alice, "ack.malformed")
        .await;
}

async fn at_random(table: &mut Table, outsider: &Outsider) {
    let mut dice = Dice(0x5eed);
    let mut events = Vec::with_capacity(NOISE);
    for _ in 0..NOISE {
        let length = dice.below(3000);
        let bytes: Vec<u8> = (0..length).map(|_| dice.next() as u8).collect();
        let content = match dice.below(4) {
            0 => String::from_utf8_lossy(&bytes).into_owned(),
            _ => STANDARD.encode(&bytes),
        };
        events.push(outsider.group_event(&content));
    }
    let connection = &outsider.connection;
    for some in events.chunks(AT_ONCE) {
        let sent = some
            .iter()
            .map(|event| connection.publish(event, deadline()));
        for result in join_all(sent).await {
            result.unwrap();
        }
    }

    let group = table.group.clone();
    for _ in 0..NOISE / AT_ONCE {
        table.bob.ready(&group).await;
        let mut events = Vec::with_capacity(AT_ONCE);
        for _ in 0..AT_ONCE {
            let text = dice.message();
            let kind = [kinds::SERVICE_REQUEST, kinds::ROTATE_ACK, 9][dice.below(3)];
            events.push(table.bob.seal(&group, kind, &text));
        }
        let connection = &table.bob.relay;
        let sent = events
            .iter()
            .map(|event| connection.publish(event, deadline()));
        for result in join_all(sent).await {
            result.unwrap();
        }
    }
    // Bob's own requests are worked off in order: after this answer, so is everything he wrote before.
    let asked = table
        .bob
        .ask(&table.world, &group, CLIENT, Action::Status)
        .await;
    let answer = table.bob.answer(asked.event).await;
    assert!(matches!(answer, NotifyState::Status { .. }), "{answer:?}");
    let records = table.trail.records().await;
    let panics = records
        .iter()
        .filter(|record| record.reason == "internal.panic");
    assert_eq!(panics.count(), 0);
    // A flood by strangers is counted in full and recorded in part.
    let junk = records
        .iter()
        .filter(|record| record.actor == Actor::Unknown);
    assert!(junk.count() <= MOST_JUNK, "the audit trail can be flooded");
}

async fn status(table: &mut Table) {
    let group = table.group.clone();
    let asked = table
        .alice
        .ask(&table.world, &group, CLIENT, Action::Status)
        .await;
    let answer = table.alice.answer(asked.event).await;
    assert!(matches!(answer, NotifyState::Status { .. }), "{answer:?}");
}

async fn a_rotation_works(table: &mut Table) {
    let group = table.group.clone();
    let asked = table
        .alice
        .ask(&table.world, &group, CLIENT, Action::Rotation)
        .await;
    for rogue in [&mut table.alice, &mut table.bob] {
        let ack = rogue.proven_ack(&group, &asked.id).await;
        rogue.ack(&group, &ack).await;
    }
    assert_eq!(table.alice.over(&asked.id).await, Outcome::Promoted);
}

/// The same throws every time (xorshift64*).
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next()).unwrap() % limit
    }

    /// JSON that looks a little like ours, sometimes cut off in the middle.
    fn message(&mut self) -> String {
        const FIELDS: [&str; 12] = [
            "action_type",
            "action_id",
            "client_id",
            "profile",
            "params",
            "jwt_proof",
            "totp",
            "ack_by",
            "rotation_id",
            "version_id",
            "proof",
            "state",
        ];
        let mut object = Map::new();
        for _ in 0..self.below(10) {
            let field = FIELDS[self.below(FIELDS.len())];
            object.insert(field.to_owned(), self.value(3));
        }
        let mut text = Value::Object(object).to_string();
        if self.below(5) == 0 {
            let cut = self.below(text.len() + 1);
            text = text.chars().take(cut).collect();
        }
        text
    }

    fn value(&mut self, depth: usize) -> Value {
        match self.below(if depth == 0 { 8 } else { 10 }) {
            0 => Value::Null,
            1 => json!(self.next()),
            2 => json!(-(self.next() as f64)),
            3 => json!(self.below(2) == 0),
            4 => json!("rotation"),
            5 => json!(CLIENT),
            6 => json!("01JM8VEZAMG2DK6T4S9N7TT1C8"),
            7 => json!("\u{0}\u{202e}\u{1f512}".repeat(self.below(40))),
            8 => (0..self.below(4)).map(|_| self.value(depth - 1)).collect(),
            _ => json!({ "rotation_reason": self.value(depth - 1) }),
        }
    }
}
