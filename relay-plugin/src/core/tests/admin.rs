//! An admin's app, reduced to what a test needs: it follows its group, asks, acks, and remembers what it was told.

use keyturn_mls::wire::rumor::Payload;
use keyturn_mls::{
    AppMessage, Backlog, Decision, Disposition, Member, MemberConfig, MlsGroupId, Receipt,
    StagedCommit, StorageKey, WelcomeOutcome,
};
use keyturn_proto::request::{Bearer, PROFILE};
use keyturn_proto::{
    Action, ClientId, Inner, Npub, Params, RotateAck, RotateNotify, RotationId, ServiceNotify,
    ServiceRequest, UnixMs, VersionId, kinds,
};
use nostr::{Event, Keys, Kind};
use tempfile::TempDir;
use zeroize::Zeroizing;

use super::relay::FakeRelay;

pub(super) struct Admin {
    pub(super) keys: Keys,
    pub(super) member: Member,
    pub(super) relay: FakeRelay,
    pub(super) notifies: Vec<RotateNotify>,
    pub(super) told: Vec<ServiceNotify>,
    _dir: TempDir,
}

pub(super) const RELAY: &str = "ws://127.0.0.1:7777";

pub(super) fn open_member(path: &std::path::Path, keys: &Keys, backlog: Backlog) -> Option<Member> {
    let key = StorageKey::from_text(&"5a".repeat(32)).unwrap();
    let mut config = MemberConfig::new(path, key, keys.clone());
    config.settle = std::time::Duration::ZERO;
    config.backlog = backlog;
    match Member::open(config) {
        Ok(member) => Some(member),
        Err(keyturn_mls::error::OpenError::Locked { .. }) => None,
        Err(error) => panic!("the member database does not open: {error}"),
    }
}

impl Admin {
    pub(super) fn new(relay: &FakeRelay) -> Self {
        let dir = TempDir::new().unwrap();
        let keys = Keys::generate();
        Self {
            member: open_member(&dir.path().join("member.db"), &keys, Backlog::default()).unwrap(),
            keys,
            relay: relay.clone(),
            notifies: Vec::new(),
            told: Vec::new(),
            _dir: dir,
        }
    }

    pub(super) fn npub(&self) -> Npub {
        Npub::from_bytes(self.keys.public_key().to_bytes())
    }

    /// Publishes a key package, which proves its MLS key.
    pub(super) fn publish_key_package(&mut self, now: UnixMs) -> Event {
        let events = self
            .member
            .publish_key_package(&[RELAY.to_owned()], now)
            .unwrap();
        self.relay.admin_sends(events.addressable.clone(), now.0);
        self.relay.admin_sends(events.legacy, now.0);
        events.addressable
    }

    pub(super) fn join(&mut self, gift_wrap: &Event, now: UnixMs) -> MlsGroupId {
        let joined = self
            .member
            .open_welcome(gift_wrap, |_| Decision::Join, now)
            .unwrap();
        match joined {
            WelcomeOutcome::Joined(joined) => joined.id,
            other => panic!("expected to join, got {other:?}"),
        }
    }

    pub(super) fn publish_commit(&mut self, staged: &StagedCommit, now: UnixMs) {
        self.relay.admin_sends(staged.event.clone(), now.0);
        let welcomes = self.member.commit_published(staged.event.id, now).unwrap();
        for welcome in welcomes {
            self.relay.admin_sends(welcome.event.clone(), now.0);
            self.member.welcome_sent(welcome.event.id).unwrap();
        }
        self.member.settle(now).unwrap();
    }

    pub(super) fn renew_leaf(&mut self, group: &MlsGroupId, now: UnixMs) {
        let staged = self.member.self_update(group, now).unwrap();
        self.publish_commit(&staged, now);
    }

    /// Follows everything the relay has.
    pub(super) fn sync(&mut self, now: UnixMs) {
        self.member.settle(now).unwrap();
        for event in self.relay.events() {
            if event.kind != Kind::Custom(kinds::GROUP_EVENT) {
                continue;
            }
            let mut bodies = Vec::new();
            let mut decide = |message: &AppMessage| {
                bodies.push(String::from_utf8(message.body.to_vec()).unwrap());
                Disposition::Consume
            };
            self.member
                .receive(&event, Receipt::live(now), &mut decide)
                .unwrap();
            for body in bodies {
                match Inner::parse(&body).unwrap() {
                    Inner::Notify(notify) => self.notifies.push(*notify),
                    Inner::Service(told) => self.told.push(*told),
                    Inner::Request(_) | Inner::Ack(_) | Inner::Foreign => {}
                }
            }
        }
        self.member.settle(now).unwrap();
    }

    /// The notify of a version, if it was opened.
    pub(super) fn notify(&self, version: &VersionId) -> Option<&RotateNotify> {
        self.notifies
            .iter()
            .find(|n| n.header.version_id == *version)
    }

    /// Seals any JSON and publishes it.
    pub(super) fn say(
        &mut self,
        group: &MlsGroupId,
        kind: u16,
        json: String,
        now: UnixMs,
    ) -> Event {
        let payload = Payload {
            kind: Kind::Custom(kind),
            tags: Vec::new(),
            content: Zeroizing::new(json),
        };
        let event = self.member.seal(group, payload, now).unwrap().event;
        self.relay.admin_sends(event.clone(), now.0);
        event
    }

    pub(super) fn ask(
        &mut self,
        group: &MlsGroupId,
        client: &ClientId,
        action: Action,
        params: Params,
        now: UnixMs,
    ) -> RotationId {
        let id = RotationId::generate(now).unwrap();
        self.ask_as(group, &id, client, action, params, now);
        id
    }

    pub(super) fn ask_as(
        &mut self,
        group: &MlsGroupId,
        id: &RotationId,
        client: &ClientId,
        action: Action,
        params: Params,
        now: UnixMs,
    ) -> Event {
        let request = ServiceRequest {
            action_type: action,
            action_id: id.clone(),
            client_id: client.clone(),
            profile: PROFILE.to_owned(),
            params,
            jwt_proof: Bearer::new("not looked at"),
            totp: None,
        };
        let json = serde_json::to_string(&request).unwrap();
        self.say(group, kinds::SERVICE_REQUEST, json, now)
    }

    pub(super) fn proven_ack(
        &self,
        group: &MlsGroupId,
        version: &VersionId,
        now: UnixMs,
    ) -> RotateAck {
        let notify = self.notify(version).expect("the notify was opened");
        RotateAck::proven(notify, self.npub(), group, now)
    }

    pub(super) fn ack(&mut self, group: &MlsGroupId, ack: &RotateAck, now: UnixMs) -> Event {
        let json = serde_json::to_string(ack).unwrap();
        self.say(group, kinds::ROTATE_ACK, json, now)
    }
}
