//! A site: a relay process, its store, its admins; and one rotation there, timed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::StreamExt as _;
use keyturn::operator::clients;
use keyturn_admin::clock::SystemClock;
use keyturn_admin::transport::Connection;
use keyturn_admin::{AdminSession, ProofError, ProofSource, RequestSpec, async_trait};
use keyturn_mls::{Member, MemberConfig, MlsGroupId, StorageKey};
use keyturn_proto::notify::NotifyState;
use keyturn_proto::proof::ProofRequest;
use keyturn_proto::request::Bearer;
use keyturn_proto::{Action, ClientId, RotationId};
use keyturn_store::store::SecretStore as _;
use keyturn_tests::measure::{Marks, monotonic, processor_time};
use keyturn_tests::world::{GROUP, deadline, epoch, now, reason};
use keyturn_tests::{Relay, World, eventually};
use nostr::{Event, Keys, RelayUrl};

/// Invited by one commit: the Welcome of a large group has to fit NIP-44's 65,535 bytes.
const AT_ONCE: usize = 20;
/// Events published at the same time: reading each back takes a subscription, of which a connection has 20.
const PUBLISHED_AT_ONCE: usize = 8;
/// Clients registered at the same time while a store is filled.
const FILLERS: usize = 64;

/// See the module.
pub struct Site {
    pub name: &'static str,
    world: World,
    relay: Relay,
    alice: AdminSession,
    /// Absent while it waits for a secret.
    bob: Option<AdminSession>,
    group: MlsGroupId,
    clients: Vec<ClientId>,
    seen: Vec<Seen>,
}

/// What was seen of one rotation from outside; moments of [`monotonic`].
struct Seen {
    id: RotationId,
    request: String,
    proved: u64,
    delivered: u64,
    opened: u64,
    cost: Duration,
}

/// One rotation, milliseconds.
pub struct Rotated {
    proved: u64,
    reached: u64,
    handed: u64,
    stored: u64,
    delivered: u64,
    opened: u64,
    cost: Duration,
}

impl Rotated {
    pub fn asking(&self) -> f64 {
        ms(self.proved, self.reached)
    }

    pub fn core(&self) -> f64 {
        ms(self.reached, self.handed)
    }

    pub fn relay(&self) -> f64 {
        ms(self.handed, self.delivered)
    }

    pub fn opening(&self) -> f64 {
        ms(self.delivered, self.opened)
    }

    pub fn whole(&self) -> f64 {
        ms(self.proved, self.opened)
    }

    pub fn without_relay(&self) -> f64 {
        self.whole() - self.relay()
    }

    pub fn read_back(&self) -> f64 {
        ms(self.handed, self.stored)
    }

    pub fn cost(&self) -> f64 {
        self.cost.as_secs_f64() * 1e3
    }
}

fn ms(from: u64, to: u64) -> f64 {
    (to as f64 - from as f64) / 1e6
}

impl Site {
    /// Builds it: `admins` in the group and enrolled, `clients` registered.
    pub async fn build(name: &'static str, admins: usize, clients: usize) -> Self {
        let program = std::env::current_exe().unwrap();
        let mut world = World::new(program.to_str().unwrap(), |config| {
            // As in production, except for the limits that would stop a benchmark and an ack of one.
            config["log"]["level"] = "info".into();
            config["log"]["format"] = "json".into();
            config["policy"]["quorum"] = 1.into();
            for limit in ["client_requests_per_hour", "admin_requests_per_hour"] {
                let policy = config["policy"].as_table_mut().unwrap();
                policy.insert(limit.to_owned(), 100_000.into());
            }
        })
        .await;
        world.enrol("alice").await;
        world.enrol("bob").await;
        world.bind(GROUP, "alice").await;
        let clients = register(&world, clients).await;
        let relay = world.relay().await;
        let mut alice = world.admin("alice", &relay).await;
        let mut bob = world.admin("bob", &relay).await;
        let group = world.found(GROUP, &mut alice, &mut [&mut bob]).await;
        let mut site = Self {
            name,
            world,
            relay,
            alice,
            bob: Some(bob),
            group,
            clients,
            seen: Vec::new(),
        };
        site.add_admins(admins - 2).await;
        site
    }

    /// Further admins: enrolled, their keys proven by signed key packages, invited. They never come online; their leaves are what matters.
    async fn add_admins(&mut self, count: usize) {
        let mut admins = Vec::new();
        for nth in 0..count {
            let name = format!("admin-{nth}");
            self.world.enrol(&name).await;
            admins.push(self.world.keys(&name));
        }
        let npubs: Vec<_> = admins.iter().map(keyturn_tests::world::npub).collect();
        let url = RelayUrl::parse(&self.relay.url).unwrap();
        let (dir, relay) = (self.world.dir.path().join("members"), url.to_string());
        let events = tokio::task::spawn_blocking(move || {
            std::fs::create_dir(&dir).unwrap();
            let events = admins.into_iter().enumerate();
            events
                .map(|(nth, keys)| key_package(&dir.join(format!("{nth}.db")), keys, &relay))
                .collect::<Vec<Event>>()
        })
        .await
        .unwrap();
        let connection = Connection::open(
            &url,
            &Keys::generate(),
            Duration::from_secs(15),
            Arc::new(SystemClock),
        )
        .await
        .unwrap();
        let published = futures::stream::iter(&events)
            .map(|event| connection.publish_stored(event, deadline()))
            .buffer_unordered(PUBLISHED_AT_ONCE);
        published
            .for_each(async |published| published.unwrap())
            .await;
        connection.close().await;
        for invited in npubs.chunks(AT_ONCE) {
            self.alice
                .invite(&self.group, invited, deadline())
                .await
                .unwrap();
        }
        let (alice, bob, group) = (&mut self.alice, self.bob.as_mut().unwrap(), &self.group);
        alice.ready(group, deadline()).await.unwrap();
        let wanted = epoch(alice, group);
        eventually("bob followed", async || {
            bob.next_update(tokio::time::Instant::now() + Duration::from_millis(20))
                .await
                .unwrap();
            (epoch(bob, group) == wanted).then_some(())
        })
        .await;
        assert_eq!(alice.members(group).unwrap().len(), count + 3);
    }

    /// One rotation of the `nth` client that is rotated: alice asks, bob opens and acks, both are told.
    pub async fn rotate(&mut self, nth: usize) {
        let id = RotationId::generate(now()).unwrap();
        let proof = TimedProof {
            signer: self.world.issuer.signer(),
            at: AtomicU64::new(0),
        };
        let spec = RequestSpec {
            action: Action::Rotation,
            client: self.clients[nth * (self.clients.len() / 10)].clone(),
            params: reason("benchmark"),
            action_id: Some(id.clone()),
            group: self.group.clone(),
            totp: None,
        };
        let before = processor_time(self.relay.pid());
        let bob = tokio::spawn(receive(self.bob.take().unwrap(), id.clone()));
        let reply = self.alice.request(spec, &proof, deadline()).await.unwrap();
        let (bob, delivered, opened) = bob.await.unwrap();
        self.bob = Some(bob);
        // The relay hands out a batch in reverse, so that the last report may come first.
        if !matches!(reply.answer.body, NotifyState::Done { .. }) {
            self.alice.await_done(&id, deadline()).await.unwrap();
        }
        self.seen.push(Seen {
            id,
            request: reply.event.to_hex(),
            proved: proof.at.into_inner(),
            delivered,
            opened,
            cost: processor_time(self.relay.pid()) - before,
        });
    }

    /// Ends everything; what was measured.
    pub async fn close(self) -> Vec<Rotated> {
        let marks = Marks::beside(&self.world.layout.store());
        let store = self.world.store();
        let mut rotated = Vec::new();
        for seen in self.seen {
            let notify = store.outbox(&seen.id).await.unwrap();
            let [notify] = notify.as_slice() else {
                panic!("{} notifies for {}", notify.len(), seen.id)
            };
            rotated.push(Rotated {
                proved: seen.proved,
                reached: marks.reached(&seen.request),
                handed: marks.handed(&notify.event_id),
                stored: marks.stored(&notify.event_id),
                delivered: seen.delivered,
                opened: seen.opened,
                cost: seen.cost,
            });
        }
        self.alice.close().await;
        if let Some(bob) = self.bob {
            bob.close().await;
        }
        self.relay.terminate();
        rotated
    }
}

/// Waits for the secret, opens it, acks. When it was delivered, and when opened.
async fn receive(mut bob: AdminSession, rotation: RotationId) -> (AdminSession, u64, u64) {
    let waiting = bob.await_secret(&rotation, deadline()).await.unwrap();
    let delivered = monotonic();
    let opened = bob.open_secret(&waiting).unwrap();
    let at = monotonic();
    bob.ack(&opened, deadline()).await.unwrap();
    (bob, delivered, at)
}

async fn register(world: &World, count: usize) -> Vec<ClientId> {
    let store = world.store();
    let ids = (0..count).map(|nth| format!("client-{nth:05}").parse().unwrap());
    let ids: Vec<ClientId> = ids.collect();
    let added = futures::stream::iter(ids.clone())
        .map(|id| clients::add(&store, id, vec![GROUP.to_owned()], now()))
        .buffer_unordered(FILLERS);
    added.for_each(async |added| added.unwrap()).await;
    ids
}

fn key_package(path: &std::path::Path, keys: Keys, relay: &str) -> Event {
    let key = StorageKey::generate().unwrap();
    let mut member = Member::open(MemberConfig::new(path, key, keys)).unwrap();
    let events = member
        .publish_key_package(&[relay.to_owned()], now())
        .unwrap();
    events.addressable
}

/// Notes when the proof was there: what comes before is between the admin and the issuer.
struct TimedProof<'a> {
    signer: &'a dyn ProofSource,
    at: AtomicU64,
}

#[async_trait]
impl ProofSource for TimedProof<'_> {
    async fn prove(&self, request: &ProofRequest) -> Result<Bearer, ProofError> {
        let proof = self.signer.prove(request).await;
        self.at.store(monotonic(), Ordering::Relaxed);
        proof
    }
}
