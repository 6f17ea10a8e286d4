//! Members for the tests: each in a directory of its own, on a clock that only the test moves.

#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::missing_panics_doc
)]

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use keyturn_mls::{
    AppMessage, Backlog, CreatedGroup, Decision, Disposition, GroupSpec, Inbound, Joined, Member,
    MemberConfig, MlsGroupId, Payload, Receipt, StagedCommit, StorageKey, UnixMs,
    VerifiedKeyPackage, WelcomeOutcome, verify_key_package,
};
use nostr::{Event, Keys, Kind, PublicKey};
use tempfile::TempDir;
use zeroize::Zeroizing;

pub const SETTLE: Duration = Duration::from_secs(10);
pub const RELAY: &str = "ws://127.0.0.1:7777";

/// Real time once (OpenMLS compares key package lifetimes with the system clock), then by hand.
pub struct Clock(pub UnixMs);

impl Clock {
    pub fn start() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        Self(UnixMs(now.as_millis() as u64))
    }

    pub fn pass(&mut self, by: Duration) -> UnixMs {
        self.0 = self.0.plus(by);
        self.0
    }

    pub fn settle(&mut self) -> UnixMs {
        self.pass(SETTLE)
    }

    pub fn live(&self) -> Receipt {
        Receipt::live(self.0)
    }
}

/// A member and what it takes to open it again.
pub struct Peer {
    member: Option<Member>,
    pub dir: TempDir,
    pub keys: Keys,
    pub key: String,
    pub backlog: Backlog,
}

impl Peer {
    pub fn new() -> Self {
        let mut bytes = [0_u8; 32];
        getrandom::fill(&mut bytes).unwrap();
        let mut peer = Self {
            member: None,
            dir: TempDir::new().unwrap(),
            keys: Keys::generate(),
            key: hex::encode(bytes),
            backlog: Backlog::default(),
        };
        peer.reopen();
        peer
    }

    pub fn path(&self) -> PathBuf {
        self.dir.path().join("member.db")
    }

    pub fn config(&self) -> MemberConfig {
        let mut config = MemberConfig::new(
            self.path(),
            StorageKey::from_text(&self.key).unwrap(),
            self.keys.clone(),
        );
        config.settle = SETTLE;
        config.backlog = self.backlog.clone();
        config
    }

    /// Closes and opens the database, as a restart does.
    pub fn reopen(&mut self) {
        self.member = None;
        self.member = Some(Member::open(self.config()).unwrap());
    }

    pub fn close(&mut self) {
        self.member = None;
    }

    pub fn npub(&self) -> PublicKey {
        self.keys.public_key()
    }

    /// A fresh key package of this member, as others see it.
    pub fn key_package(&mut self, now: UnixMs) -> VerifiedKeyPackage {
        let events = self.publish_key_package(&[RELAY.into()], now).unwrap();
        verify_key_package(&events.addressable, now).unwrap()
    }

    pub fn join(&mut self, gift_wrap: &Event, now: UnixMs) -> Joined {
        match self
            .open_welcome(gift_wrap, |_| Decision::Join, now)
            .unwrap()
        {
            WelcomeOutcome::Joined(joined) => joined,
            other => panic!("expected to join, got {other:?}"),
        }
    }

    /// Receives live and consumes every message; the bodies come back.
    pub fn take(&mut self, event: &Event, clock: &Clock) -> (Vec<Inbound>, Vec<String>) {
        let mut bodies = Vec::new();
        let inbounds = self
            .receive(event, clock.live(), &mut |message: &AppMessage| {
                bodies.push(String::from_utf8(message.body.to_vec()).unwrap());
                Disposition::Consume
            })
            .unwrap();
        (inbounds, bodies)
    }

    /// Receives a commit, live, and says what it did.
    pub fn follow(&mut self, event: &Event, clock: &Clock) -> keyturn_mls::CommitApplied {
        match self.take(event, clock).0.into_iter().next() {
            Some(Inbound::Commit(applied)) => *applied,
            other => panic!("expected a commit, got {other:?}"),
        }
    }

    pub fn say(&mut self, group: &MlsGroupId, text: &str, clock: &Clock) -> Event {
        self.seal(group, payload(text), clock.0).unwrap().event
    }
}

impl std::ops::Deref for Peer {
    type Target = Member;
    fn deref(&self) -> &Member {
        self.member.as_ref().unwrap()
    }
}

impl std::ops::DerefMut for Peer {
    fn deref_mut(&mut self) -> &mut Member {
        self.member.as_mut().unwrap()
    }
}

pub fn payload(text: &str) -> Payload {
    Payload {
        kind: Kind::Custom(40910),
        tags: Vec::new(),
        content: Zeroizing::new(text.to_owned()),
    }
}

/// `count` members in one group; the first made it, `admins` of them are admins. Everybody has renewed his
/// leaf, every epoch is settled.
pub fn group(count: usize, admins: usize, clock: &mut Clock) -> (Vec<Peer>, MlsGroupId) {
    let (mut peers, group) = joined(count, admins, clock);
    for i in 1..peers.len() {
        let staged = peers[i].self_update(&group, clock.0).unwrap();
        publish(&mut peers, i, &staged, clock);
        clock.settle();
        for peer in &mut peers {
            peer.settle(clock.0).unwrap();
        }
    }
    (peers, group)
}

/// As [`group`], before anybody renewed his leaf.
pub fn joined(count: usize, admins: usize, clock: &mut Clock) -> (Vec<Peer>, MlsGroupId) {
    let mut peers: Vec<Peer> = (0..count).map(|_| Peer::new()).collect();
    let packages: Vec<_> = peers[1..]
        .iter_mut()
        .map(|peer| peer.key_package(clock.0))
        .collect();
    let spec = GroupSpec {
        name: "admins".into(),
        description: String::new(),
        admins: peers[..admins].iter().map(Peer::npub).collect(),
        relays: [RELAY.to_owned()].into(),
        nostr_group_id: None,
    };
    let CreatedGroup { group, welcomes } = peers[0].create_group(spec, &packages, clock.0).unwrap();
    for welcome in &welcomes {
        let peer = peers
            .iter_mut()
            .find(|peer| peer.npub() == welcome.recipient)
            .unwrap();
        peer.join(&welcome.event, clock.0);
        peers[0].welcome_sent(welcome.event.id).unwrap();
    }
    (peers, group.id)
}

/// Publishes a commit of `peers[from]`: merged there, followed by everybody else.
pub fn publish(peers: &mut [Peer], from: usize, staged: &StagedCommit, clock: &Clock) {
    peers[from]
        .commit_published(staged.event.id, clock.0)
        .unwrap();
    for (i, peer) in peers.iter_mut().enumerate() {
        if i != from {
            peer.follow(&staged.event, clock);
        }
    }
}
