//! What happened, told through the relay's own port: for each query something that it must find, and beside it what it must not.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use keyturn_proto::notify::Outcome;
use keyturn_proto::{Action, ClientId, Npub, RotationId, UnixMs};
use keyturn_store::contract::fixture;
use keyturn_store::documents::{
    ActiveRotation, Actor, AuditRecord, ClientStatus, PolicyOverrides, RotationDoc, VersionState,
};
use keyturn_store::firestore::{FirestoreSettings, FirestoreStore};
use keyturn_store::store::{AuditTrail, Registry, Reserve, Reserved, SecretStore};

/// Texts that lie in documents which auditors may not read.
pub const HIDDEN: [&str; 4] = [
    "HMAC-SHA-256",
    "sealed-",
    "local:hmac-sha-256",
    "event_json",
];

/// What each query of the page finds, in order.
pub fn expected(name: &str) -> &'static [&'static str] {
    match name {
        "who-rotated" => &["01JM8VEZ9G0000000000000000", "01JM8VEZ9G0000000000000001"],
        "open-past-deadline" => &["01JM8VEZ9G0000000000000005", "01JM8VEZ9G0000000000000004"],
        "secret-older-than" => &["older-crm", "old-billing"],
        "in-grace" => &["acme-billing", "ext-totp-svc"],
        "refusals-of-admin" => &[
            "request.refused_repeatedly totp.wrong count=7",
            "request.refused totp.wrong",
            "request.refused jwt.expired",
        ],
        "refusals-by-reason" => &["request.refused totp.wrong", "request.refused totp.wrong"],
        "history-of-client" => &[
            "client.created",
            "rotation.reserved",
            "rotation.prepared",
            "rotation.ended",
            "rotation.reserved",
            "rotation.prepared",
            "ack.recorded",
            "ack.recorded",
            "rotation.promoted",
        ],
        "revocations" => &["01JM8VEZ9G0000000000000007", "01JM8VEZ9G0000000000000008"],
        "acks-of-rotation" => &["ext-totp-svc"],
        "changes-by-operators" => &[
            "group.approved",
            "client.updated",
            "admin.enrolled",
            "admin.enrolled",
            "client.created",
            "client.created",
        ],
        "group-alarms" => &["group.suspended", "welcome.refused"],
        "not-promoted" => &["01JM8VEZ9G0000000000000009"],
        other => panic!("nobody says what {other} finds"),
    }
}

/// The admin of the page's examples.
pub fn alice() -> Npub {
    let npub = "npub10elfcs4fr0l0r8af98jlmgdh9c8tcxjvz9qkw038js35mp4dma8qzvjptg";
    npub.parse().unwrap()
}

pub fn bob() -> Npub {
    fixture::npub(2)
}

fn at(time: &str) -> UnixMs {
    let time: SystemTime = humantime::parse_rfc3339(time).unwrap();
    let since = time.duration_since(UNIX_EPOCH).unwrap();
    UnixMs(u64::try_from(since.as_millis()).unwrap())
}

fn later(time: UnixMs, minutes: u64) -> UnixMs {
    UnixMs(time.0 + minutes * 60_000)
}

fn operation(n: u8) -> RotationId {
    format!("01JM8VEZ9G{n:016}").parse().unwrap()
}

fn admin(npub: Npub) -> Actor {
    Actor::Admin { npub }
}

fn record(time: UnixMs, actor: Actor, event: &str, reason: &str) -> AuditRecord {
    AuditRecord {
        at: time,
        actor,
        event: event.to_owned(),
        reason: reason.to_owned(),
        client_id: None,
        ..fixture::audit(event, time)
    }
}

fn about(client: &ClientId, record: AuditRecord) -> AuditRecord {
    AuditRecord {
        client_id: Some(client.clone()),
        ..record
    }
}

struct Teller {
    store: FirestoreStore,
}

pub async fn tell(endpoint: &str, project: &str) {
    let settings = FirestoreSettings {
        project: project.to_owned(),
        database: "keyturn".to_owned(),
        endpoint: Some(endpoint.parse().unwrap()),
        timeout: Duration::from_secs(60),
    };
    let store = FirestoreStore::open(settings).await.unwrap();
    let teller = Teller { store };
    teller.admins().await;
    teller.clients().await;
    teller.rotations().await;
    teller.ends().await;
    teller.words().await;
}

impl Teller {
    /// A client with a secret since that time, made by the relay unless said otherwise.
    async fn client(&self, id: &str, since: &str, by: Actor) -> ClientId {
        let (client, since) = (id.parse::<ClientId>().unwrap(), at(since));
        let mut document = fixture::client(client.clone());
        document.updated_at = since;
        let mut first = fixture::version(1, None, VersionState::Current, since);
        first.client_id = client.clone();
        first.created_at = since;
        let audit = about(&client, record(since, by, "client.created", "new"));
        let created = self.store.create_client(document, Some(first), audit).await;
        created.unwrap();
        client
    }

    async fn reserve(&self, reserve: Reserve) -> ActiveRotation {
        match self.store.reserve(reserve).await.unwrap() {
            Reserved::New(active) => active,
            other => panic!("not reserved: {other:?}"),
        }
    }

    fn asked(n: u8, client: &ClientId, grace_hours: u64, time: UnixMs) -> Reserve {
        let mut reserve = fixture::reserve(&operation(n), time);
        reserve.rotation.client_id = client.clone();
        reserve.rotation.requested_by = alice();
        reserve.rotation.grace_duration_ms = grace_hours * 3_600_000;
        reserve.audit = about(
            client,
            record(time, admin(alice()), "rotation.reserved", "due"),
        );
        reserve
    }

    /// A rotation that waits for acks, asked for by Alice. Version `n + 100`.
    async fn prepared(&self, n: u8, client: &ClientId, grace_hours: u64, time: UnixMs) {
        let active = self
            .reserve(Self::asked(n, client, grace_hours, time))
            .await;
        let number = u32::from(n) + 100;
        let not_before = later(time, 10);
        let mut prepare = fixture::prepare(&active, number, not_before, time);
        prepare.version.client_id = client.clone();
        prepare.readers = vec![alice(), bob()];
        prepare.audit = about(
            client,
            record(time, Actor::Relay, "rotation.prepared", "due"),
        );
        self.store.prepare(prepare).await.unwrap();
    }

    async fn acked(&self, n: u8, client: &ClientId, by: Npub, proven: bool, time: UnixMs) {
        let mut ack = fixture::ack(&operation(n), u32::from(n) + 100, 1, proven, time);
        ack.ack.npub = by;
        let word = if proven { "proven" } else { "unproven" };
        ack.audit = about(client, record(time, admin(by), "ack.recorded", word));
        assert!(self.store.record_ack(ack).await.unwrap().counted);
    }

    /// Acked by Bob with proof and by Alice without: promoted then.
    async fn promoted(&self, n: u8, client: &ClientId, grace_hours: u64, time: UnixMs) {
        self.prepared(n, client, grace_hours, time).await;
        self.acked(n, client, bob(), true, later(time, 11)).await;
        self.acked(n, client, alice(), false, later(time, 12)).await;
        let rotation = self.store.rotation(&operation(n)).await.unwrap();
        let outcome = rotation.and_then(|it: RotationDoc| it.outcome);
        assert_eq!(outcome, Some(Outcome::Promoted));
    }

    async fn ended(&self, n: u8, client: &ClientId, outcome: Outcome, time: UnixMs) {
        let mut cancel = fixture::cancel(&operation(n), outcome, time);
        cancel.audit = about(client, record(time, Actor::Relay, "rotation.ended", "over"));
        self.store.cancel(cancel).await.unwrap();
    }

    async fn admins(&self) {
        for npub in [alice(), bob()] {
            let then = at("2026-01-01T00:00:00Z");
            let mut enrolled = fixture::admin(2, true);
            enrolled.npub = npub;
            let audit = record(then, Actor::Operator, "admin.enrolled", "hired");
            self.store.put_admin(enrolled, audit).await.unwrap();
        }
    }

    /// Old secrets, and clients that are in no state to be complained about.
    async fn clients(&self) {
        self.client("old-billing", "2025-06-01T00:00:00Z", Actor::Operator)
            .await;
        self.client("older-crm", "2025-01-01T00:00:00Z", Actor::Operator)
            .await;
        let held = self
            .client("held-api", "2025-01-01T00:00:00Z", Actor::Relay)
            .await;
        let then = at("2026-02-01T00:00:00Z");
        let audit = about(
            &held,
            record(then, Actor::Operator, "client.updated", "on hold"),
        );
        let status = Some(ClientStatus::Suspended);
        let policy = None::<PolicyOverrides>;
        let updated = self
            .store
            .update_client(&held, status, None, policy, then, audit);
        updated.await.unwrap();
    }

    /// In grace, past it, open in time, open too long.
    async fn rotations(&self) {
        let new = "2026-01-15T00:00:00Z";
        let ours = self.client("ext-totp-svc", new, Actor::Relay).await;
        let then = at("2026-02-15T09:00:00Z");
        self.prepared(1, &ours, 1, then).await;
        self.ended(1, &ours, Outcome::Canceled, later(then, 5))
            .await;
        self.promoted(0, &ours, 48, at("2026-03-01T10:00:00Z"))
            .await;
        let acme = self.client("acme-billing", new, Actor::Relay).await;
        self.promoted(2, &acme, 24, at("2026-03-01T12:00:00Z"))
            .await;
        let past = self.client("past-grace", new, Actor::Relay).await;
        self.promoted(3, &past, 2, at("2026-03-01T08:00:00Z")).await;
        let stuck = self.client("stuck-svc", new, Actor::Relay).await;
        self.prepared(4, &stuck, 1, at("2026-03-01T20:00:00Z"))
            .await;
        let bare = self.client("stuck-early", new, Actor::Relay).await;
        let early = at("2026-03-01T18:00:00Z");
        self.reserve(Self::asked(5, &bare, 1, early)).await;
        let waiting = self.client("waiting-svc", new, Actor::Relay).await;
        self.prepared(6, &waiting, 1, at("2026-03-01T23:50:00Z"))
            .await;
        // Enough acks, but not before its time: not overdue, though its ack deadline will pass.
        let early_acks = self.client("quorum-met", new, Actor::Relay).await;
        let then = at("2026-03-01T14:00:00Z");
        let mut asked = Self::asked(12, &early_acks, 1, then);
        asked.rotation.not_before = at("2026-03-03T00:00:00Z");
        let not_before = asked.rotation.not_before;
        let active = self.reserve(asked).await;
        let mut prepare = fixture::prepare(&active, 112, not_before, then);
        prepare.version.client_id = early_acks.clone();
        prepare.readers = vec![alice(), bob()];
        prepare.audit = about(
            &early_acks,
            record(then, Actor::Relay, "rotation.prepared", "due"),
        );
        self.store.prepare(prepare).await.unwrap();
        self.acked(12, &early_acks, bob(), true, later(then, 1))
            .await;
        self.acked(12, &early_acks, alice(), false, later(then, 2))
            .await;
    }

    /// Revoked, in an emergency, expired; and the same outside the period.
    async fn ends(&self) {
        let new = "2026-01-15T00:00:00Z";
        for (n, id, time) in [
            (10, "revoked-before", "2026-02-10T00:00:00Z"),
            (7, "revoked-svc", "2026-03-05T00:00:00Z"),
        ] {
            let client = self.client(id, new, Actor::Relay).await;
            let mut revoke = fixture::revoke(&operation(n), None, at(time));
            revoke.client_id = client.clone();
            revoke.audit = about(
                &client,
                record(at(time), admin(bob()), "client.revoke", "leak"),
            );
            self.store.revoke(revoke).await.unwrap();
        }
        let burned = self.client("burned-svc", new, Actor::Relay).await;
        let then = at("2026-03-06T00:00:00Z");
        let mut emergency = Self::asked(8, &burned, 0, then);
        emergency.rotation.action = Action::Emergency;
        emergency.rotation.not_before = then;
        emergency.revoke_living = true;
        self.reserve(emergency).await;
        let expired = self.client("expired-svc", new, Actor::Relay).await;
        let then = at("2026-03-10T00:00:00Z");
        self.prepared(9, &expired, 1, then).await;
        self.ended(9, &expired, Outcome::Expired, later(then, 31))
            .await;
    }

    /// Refusals, alarms, and what operators do beside clients.
    async fn words(&self) {
        let said = [
            (
                "2026-02-20T00:00:00Z",
                admin(bob()),
                "request.refused",
                "totp.wrong",
            ),
            (
                "2026-02-28T09:00:00Z",
                admin(alice()),
                "request.refused",
                "jwt.expired",
            ),
            (
                "2026-03-01T09:58:00Z",
                admin(alice()),
                "request.refused",
                "totp.wrong",
            ),
            (
                "2026-03-01T10:09:00Z",
                admin(alice()),
                "request.refused_repeatedly",
                "totp.wrong count=7",
            ),
            (
                "2026-03-02T00:00:00Z",
                admin(bob()),
                "request.refused",
                "totp.wrong",
            ),
            (
                "2026-03-02T00:01:00Z",
                admin(bob()),
                "request.refused",
                "jwt.expired",
            ),
            (
                "2026-04-01T00:00:00Z",
                admin(bob()),
                "request.refused",
                "totp.wrong",
            ),
            (
                "2026-03-01T15:00:00Z",
                admin(bob()),
                "welcome.refused",
                "welcome.not_expected",
            ),
            (
                "2026-03-01T16:00:00Z",
                Actor::Relay,
                "group.suspended",
                "group.address_changed",
            ),
            (
                "2026-03-01T17:00:00Z",
                Actor::Operator,
                "group.approved",
                "compared by telephone",
            ),
        ];
        for (time, actor, event, reason) in said {
            let record = record(at(time), actor, event, reason);
            self.store.append(record).await.unwrap();
        }
    }
}
