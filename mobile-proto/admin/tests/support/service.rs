//! A stand-in for the relay's service member: real MLS, real messages, no policy. It checks what an admin has to get right (the nonce binds
//! the request and the sender's leaf; an ack proves the secret) and answers as the real one does.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use keyturn_admin::clock::{Clock as _, SystemClock};
use keyturn_admin::transport::{Connection, Heard};
use keyturn_mls::error::SealError;
use keyturn_mls::{
    AppMessage, Decision, Disposition, Member, MemberConfig, MlsGroupId, Payload, Receipt,
    StorageKey, WelcomeOutcome,
};
use keyturn_proto::ack::AckStatement;
use keyturn_proto::canonical::request_binding;
use keyturn_proto::derive::ack_key;
use keyturn_proto::encoding::{b64url, from_b64url};
use keyturn_proto::notify::{NotifyHeader, NotifyState, ServiceNotify};
use keyturn_proto::proof::ProofClaims;
use keyturn_proto::{
    Action, ErrorClass, Inner, Npub, Outcome, RotateNotify, RotationId, Secret, ServiceRequest,
    UnixMs, VersionId, kinds, nonce,
};
use nostr::{Alphabet, Event, EventId, Filter, Keys, Kind, PublicKey, SingleLetterTag};
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::relay::TestRelay;
use super::{LONG, SETTLE};

/// What the service did, for the test to look at.
#[derive(Default)]
pub struct Ledger {
    /// Plaintexts handed out: this stand-in may keep them, to look for them elsewhere.
    pub secrets: Vec<String>,
    /// How many of them the relay has.
    pub delivered: usize,
    pub proven: Vec<Npub>,
    pub requests: Vec<Action>,
    /// How often it has renewed its leaf: after joining, and when somebody's commit took the epoch of that.
    pub renewals: usize,
}

/// How it answers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Temper {
    Willing,
    /// Says that a rotation is over, and only then that it was accepted.
    Hasty,
    /// Gives a rotation up: why in its answer, that it is over to everybody; in this order or the other.
    GivingUp {
        end_first: bool,
    },
    Refusing(ErrorClass),
    Silent,
}

pub struct Service {
    pub npub: Npub,
    pub url: String,
    pub ledger: Arc<Mutex<Ledger>>,
    pub temper: Arc<Mutex<Temper>>,
    _dir: tempfile::TempDir,
}

struct Running {
    member: Member,
    relay: Connection,
    keys: Keys,
    ledger: Arc<Mutex<Ledger>>,
    temper: Arc<Mutex<Temper>>,
    rotation: Option<RotateNotify>,
    said: VecDeque<Said>,
}

enum Said {
    Request(
        MlsGroupId,
        EventId,
        PublicKey,
        [u8; 32],
        Box<ServiceRequest>,
    ),
    Ack(
        MlsGroupId,
        EventId,
        PublicKey,
        Box<keyturn_proto::RotateAck>,
    ),
}

impl Service {
    pub async fn start(relay: &TestRelay) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let keys = Keys::generate();
        let config = MemberConfig {
            settle: SETTLE,
            ..MemberConfig::new(
                dir.path().join("service.db"),
                StorageKey::generate().unwrap(),
                keys.clone(),
            )
        };
        let connection = Connection::open(&relay.url(), &keys, LONG, Arc::new(SystemClock))
            .await
            .unwrap();
        let mut running = Running {
            member: Member::open(config).unwrap(),
            relay: connection,
            keys: keys.clone(),
            ledger: Arc::default(),
            temper: Arc::new(Mutex::new(Temper::Willing)),
            rotation: None,
            said: VecDeque::new(),
        };
        running.publish_key_package(&relay.url().to_string()).await;
        let service = Self {
            npub: Npub::from_bytes(keys.public_key().to_bytes()),
            url: super::challenge_listener().await,
            ledger: running.ledger.clone(),
            temper: running.temper.clone(),
            _dir: dir,
        };
        tokio::spawn(running.serve());
        service
    }
}

fn now() -> UnixMs {
    SystemClock.now()
}

fn deadline() -> Instant {
    Instant::now() + LONG
}

impl Running {
    async fn publish_key_package(&mut self, url: &str) {
        let events = self
            .member
            .publish_key_package(&[url.to_owned()], now())
            .unwrap();
        // One kind only: an admin has to find either.
        self.relay
            .publish_stored(&events.legacy, deadline())
            .await
            .unwrap();
    }

    async fn serve(mut self) {
        self.resync().await;
        // Nothing for that long: the test is over.
        while self.listen(deadline()).await {
            while let Some(said) = self.said.pop_front() {
                match said {
                    Said::Request(group, event, sender, key, request) => {
                        self.answer(&group, event, sender, &key, &request).await;
                    }
                    Said::Ack(group, event, sender, ack) => {
                        self.count(&group, event, sender, &ack).await
                    }
                }
            }
        }
    }

    /// Takes in one event; `false` when none came or the relay is gone.
    async fn listen(&mut self, until: Instant) -> bool {
        match self.relay.next(until).await {
            Ok(Some(Heard::Resync)) => self.resync().await,
            Ok(Some(Heard::Live { event, at })) => self.hear(&event, Receipt::live(at)).await,
            Ok(Some(Heard::Closed(_)) | None) | Err(_) => return false,
        }
        true
    }

    async fn resync(&mut self) {
        let wraps = Filter::new()
            .kind(Kind::GiftWrap)
            .pubkey(self.keys.public_key());
        let mut filters = vec![wraps.clone()];
        let addresses: Vec<String> = self
            .member
            .groups()
            .unwrap()
            .iter()
            .map(|group| group.nostr_group_id.to_hex())
            .collect();
        let events = Filter::new()
            .kind(Kind::MlsGroupMessage)
            .custom_tags(SingleLetterTag::lowercase(Alphabet::H), addresses.clone());
        if !addresses.is_empty() {
            filters.push(events.clone());
        }
        self.relay.listen(filters).await.unwrap();
        for wrap in self.relay.fetch_all(&wraps, deadline()).await.unwrap() {
            Box::pin(self.hear(&wrap, Receipt::stored(now()))).await;
        }
        if !addresses.is_empty() {
            for event in self.relay.fetch_all(&events, deadline()).await.unwrap() {
                Box::pin(self.hear(&event, Receipt::stored(now()))).await;
            }
        }
    }

    async fn hear(&mut self, event: &Event, receipt: Receipt) {
        if event.kind == Kind::GiftWrap {
            let outcome = self
                .member
                .open_welcome(event, |_| Decision::Join, now())
                .unwrap();
            if let WelcomeOutcome::Joined(joined) = outcome {
                self.renew(&joined.id).await;
                Box::pin(self.resync()).await;
            }
            return;
        }
        let said = &mut self.said;
        let mut decide = |message: &AppMessage| {
            let json = std::str::from_utf8(&message.body).unwrap();
            let group = message.group.clone();
            match Inner::parse(json) {
                Ok(Inner::Request(request)) => said.push_back(Said::Request(
                    group,
                    message.event_id,
                    message.sender,
                    *message.signature_key.as_bytes(),
                    request,
                )),
                Ok(Inner::Ack(ack)) => {
                    said.push_back(Said::Ack(group, message.event_id, message.sender, ack))
                }
                _ => {}
            }
            Disposition::Consume
        };
        self.member.receive(event, receipt, &mut decide).unwrap();
    }

    async fn renew(&mut self, group: &MlsGroupId) {
        let staged = self.member.self_update(group, now()).unwrap();
        self.relay
            .publish_stored(&staged.event, deadline())
            .await
            .unwrap();
        self.member
            .commit_published(staged.event.id, now())
            .unwrap();
        self.ledger.lock().unwrap().renewals += 1;
    }

    async fn answer(
        &mut self,
        group: &MlsGroupId,
        event: EventId,
        sender: PublicKey,
        key: &[u8; 32],
        request: &ServiceRequest,
    ) {
        request.validate().unwrap();
        let payload = request.jwt_proof.expose().split('.').nth(1).unwrap();
        let payload = from_b64url("jwt", payload).unwrap();
        let claims: ProofClaims = serde_json::from_slice(&payload).unwrap();
        let (challenge, bound) = nonce::split(&claims.nonce).unwrap();
        assert!(challenge.starts_with("challenge-"));
        let ServiceRequest {
            action_type,
            client_id,
            action_id,
            params,
            ..
        } = request;
        let expected = request_binding(*action_type, client_id, action_id, params, group, key);
        assert_eq!(bound, expected, "the proof was made for another request");
        assert_eq!(claims.npub.as_bytes(), &sender.to_bytes());
        self.ledger.lock().unwrap().requests.push(*action_type);

        let temper = *self.temper.lock().unwrap();
        let reply = |body| ServiceNotify {
            action_id: Some(action_id.clone()),
            client_id: Some(client_id.clone()),
            in_reply_to: Some(event.to_hex()),
            at: now(),
            body,
        };
        match temper {
            Temper::Silent => return,
            Temper::Refusing(error) => {
                let body = NotifyState::Refused {
                    error,
                    retry_after_ms: Some(60_000),
                };
                return self.report(group, &reply(body)).await;
            }
            Temper::Hasty if *action_type == Action::Rotation => {
                let promoted = ServiceNotify {
                    in_reply_to: None,
                    ..reply(done(Outcome::Promoted))
                };
                self.report(group, &promoted).await;
                let accepted = NotifyState::Accepted {
                    version_id: None,
                    ack_deadline: None,
                };
                return self.report(group, &reply(accepted)).await;
            }
            Temper::GivingUp { end_first } if *action_type == Action::Rotation => {
                let over = ServiceNotify {
                    in_reply_to: None,
                    ..reply(done(Outcome::Canceled))
                };
                let refused = reply(NotifyState::Refused {
                    error: ErrorClass::InternalError,
                    retry_after_ms: None,
                });
                let mut both = [refused, over];
                if end_first {
                    both.reverse();
                }
                for notify in both {
                    self.report(group, &notify).await;
                }
                return;
            }
            Temper::Willing | Temper::Hasty | Temper::GivingUp { .. } => {}
        }
        match action_type {
            Action::Rotation | Action::Emergency => {
                let version = VersionId::generate(now()).unwrap();
                let accepted = NotifyState::Accepted {
                    version_id: Some(version),
                    ack_deadline: Some(now().plus(Duration::from_secs(60))),
                };
                self.report(group, &reply(accepted)).await;
                self.deliver(group, request, version).await;
            }
            Action::Status => {
                let body = NotifyState::Status {
                    client_status: "active".to_owned(),
                    current_version: None,
                    previous_version: None,
                    grace_until: None,
                    active_rotation: None,
                };
                self.report(group, &reply(body)).await;
            }
            Action::Cancel | Action::Rollback | Action::Revoke => {
                let outcome = match action_type {
                    Action::Cancel => Outcome::Canceled,
                    Action::Rollback => Outcome::RolledBack,
                    _ => Outcome::Revoked,
                };
                self.report(group, &reply(done(outcome))).await;
            }
        }
    }

    async fn deliver(&mut self, group: &MlsGroupId, request: &ServiceRequest, version: VersionId) {
        let secret = Secret::generate().unwrap();
        self.ledger
            .lock()
            .unwrap()
            .secrets
            .push(secret.expose().to_owned());
        let notify = RotateNotify {
            header: NotifyHeader {
                client_id: request.client_id.clone(),
                version_id: version,
                secret_hash: b64url(&[7; 32]),
                mac_key_ref: "test/1".to_owned(),
                not_before: now(),
                grace_until: None,
                grace_duration_ms: 0,
                rotation_id: request.action_id.clone(),
                issued_at: now(),
                relay_msg_id: "m".to_owned(),
            },
            secret,
        };
        let content = notify.compose().unwrap();
        self.seal(group, kinds::ROTATE_NOTIFY, content).await;
        self.ledger.lock().unwrap().delivered += 1;
        self.rotation = Some(notify);
    }

    async fn count(
        &mut self,
        group: &MlsGroupId,
        event: EventId,
        sender: PublicKey,
        ack: &keyturn_proto::RotateAck,
    ) {
        let Some(notify) = &self.rotation else {
            panic!("an ack without a rotation")
        };
        let header = &notify.header;
        let public = ack_key(
            notify.secret.expose(),
            &header.client_id,
            &header.version_id,
            &header.rotation_id,
        )
        .verifying_key()
        .to_bytes();
        let npub = Npub::from_bytes(sender.to_bytes());
        let statement = AckStatement {
            rotation: &header.rotation_id,
            client: &header.client_id,
            version: &header.version_id,
            secret_hash: &header.secret_hash,
            npub: &npub,
            group,
        };
        statement
            .verify(&public, ack.proof.as_ref().unwrap())
            .unwrap();
        assert_eq!(ack.ack_by, npub);
        let acks = {
            let mut ledger = self.ledger.lock().unwrap();
            ledger.proven.push(npub);
            u32::try_from(ledger.proven.len()).unwrap()
        };
        let (rotation, client) = (header.rotation_id.clone(), header.client_id.clone());
        let report = |in_reply_to, body| ServiceNotify {
            action_id: Some(rotation.clone()),
            client_id: Some(client.clone()),
            in_reply_to,
            at: now(),
            body,
        };
        let acked = NotifyState::Acked {
            proven: true,
            acks,
            required: 2,
        };
        self.report(group, &report(Some(event.to_hex()), acked))
            .await;
        if acks == 2 {
            self.report(group, &report(None, done(Outcome::Promoted)))
                .await;
        }
    }

    async fn report(&mut self, group: &MlsGroupId, notify: &ServiceNotify) {
        let json = serde_json::to_string(notify).unwrap();
        self.seal(group, kinds::SERVICE_NOTIFY, Zeroizing::new(json))
            .await;
    }

    async fn seal(&mut self, group: &MlsGroupId, kind: u16, content: Zeroizing<String>) {
        let limit = deadline();
        loop {
            match self.member.can_seal(group, now()) {
                Ok(()) => break,
                // Somebody else's commit took the epoch of our renewal.
                Err(SealError::NeedsSelfUpdate) => self.renew(group).await,
                Err(_) => {
                    assert!(Instant::now() < limit, "the service's group never settled");
                    self.listen(Instant::now() + Duration::from_millis(20))
                        .await;
                }
            }
        }
        let payload = Payload {
            kind: Kind::from(kind),
            tags: Vec::new(),
            content,
        };
        let sealed = self.member.seal(group, payload, now()).unwrap();
        self.relay
            .publish_stored(&sealed.event, deadline())
            .await
            .unwrap();
    }
}

fn done(outcome: Outcome) -> NotifyState {
    NotifyState::Done {
        outcome,
        current_version: None,
        previous_version: None,
        grace_until: None,
    }
}

/// The operation that a message speaks of, to name it in a failure.
pub fn id(text: &str) -> RotationId {
    text.parse().unwrap()
}
