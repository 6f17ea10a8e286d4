//! A group member that keeps to no rule but what MLS enforces: the member and a websocket, with none of the admin app's care in between. It
//! opens every secret at once, says whatever it is told to say, and commits without asking whether it should.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use keyturn_admin::ProofSource as _;
use keyturn_admin::challenge::ChallengeClient;
use keyturn_admin::clock::SystemClock;
use keyturn_admin::transport::{Connection, Heard, RelayError};
use keyturn_mls::error::{CommitError, SealError};
use keyturn_mls::{
    AppMessage, Decision, Disposition, GroupSpec, Inbound, Member, MemberConfig, Payload, Receipt,
    StagedCommit, StorageKey, VerifiedKeyPackage, WelcomeOutcome, verify_key_package,
};
use keyturn_proto::canonical::request_binding;
use keyturn_proto::inner::InnerKind;
use keyturn_proto::notify::{NotifyState, Outcome};
use keyturn_proto::proof::ProofRequest;
use keyturn_proto::request::{Bearer, PROFILE};
use keyturn_proto::{
    Action, ErrorClass, Inner, MlsGroupId, Npub, Params, RotateAck, RotateNotify, RotationId,
    ServiceNotify, ServiceRequest, UnixMs, kinds, nonce,
};
use nostr::{Alphabet, Event, EventId, Filter, Keys, Kind, PublicKey, RelayUrl, SingleLetterTag};
use tokio::time::Instant;
use zeroize::Zeroizing;

use crate::relay::Relay;
use crate::world::{PATIENCE, SETTLE, World, deadline, now, npub};

/// How often a commit that lost its epoch is made again.
const COMMITS: usize = 30;

/// See the module.
pub struct Rogue {
    pub member: Member,
    pub keys: Keys,
    pub challenges: ChallengeClient,
    pub relay: Connection,
    url: RelayUrl,
    /// Everything the service, or somebody who says so, reported.
    pub reports: Vec<ServiceNotify>,
    /// Every secret, opened.
    pub secrets: Vec<RotateNotify>,
    lost: BTreeSet<EventId>,
}

/// A request that was sent.
pub struct Asked {
    pub event: EventId,
    pub id: RotationId,
}

impl Rogue {
    /// A person of the world, in a database at the place where the admin app would have it.
    pub async fn open(world: &mut World, name: &str, relay: &Relay) -> Self {
        let keys = world.keys(name);
        let home = world.home(name);
        Self::at(&home, keys, relay).await
    }

    /// The same with another database: another MLS key under the same npub.
    pub async fn posing_as(world: &mut World, name: &str, relay: &Relay) -> Self {
        let keys = world.keys(name);
        let home = world.home(&format!("not-{name}"));
        Self::at(&home, keys, relay).await
    }

    async fn at(home: &Path, keys: Keys, relay: &Relay) -> Self {
        std::fs::create_dir_all(home).unwrap();
        let storage_key = StorageKey::from_file_or_create(&home.join("member.key")).unwrap();
        let member = Member::open(MemberConfig {
            settle: SETTLE,
            ..MemberConfig::new(home.join("member.db"), storage_key, keys.clone())
        })
        .unwrap();
        let url = RelayUrl::parse(&relay.url).unwrap();
        let connection = Connection::open(&url, &keys, PATIENCE, Arc::new(SystemClock))
            .await
            .unwrap();
        let mut rogue = Self {
            member,
            keys,
            challenges: ChallengeClient::new(&relay.web, PATIENCE).unwrap(),
            relay: connection,
            url,
            reports: Vec::new(),
            secrets: Vec::new(),
            lost: BTreeSet::new(),
        };
        rogue.listen().await;
        rogue
    }

    pub fn npub(&self) -> Npub {
        npub(&self.keys)
    }

    pub fn public_key(&self) -> PublicKey {
        self.keys.public_key()
    }

    /// Publishes both kinds.
    pub async fn publish_key_package(&mut self) {
        let events = self.key_package();
        for event in [&events.addressable, &events.legacy] {
            self.relay.publish_stored(event, deadline()).await.unwrap();
        }
    }

    /// A key package that nobody but the caller gets to see.
    pub fn key_package(&mut self) -> keyturn_mls::KeyPackageEvents {
        let relays = [self.url.to_string()];
        self.member.publish_key_package(&relays, now()).unwrap()
    }

    /// What somebody has published for being invited.
    pub async fn key_package_of(&self, who: &Npub) -> VerifiedKeyPackage {
        let author = PublicKey::from_byte_array(*who.as_bytes());
        let filter = Filter::new()
            .kind(Kind::from(kinds::KEY_PACKAGE))
            .author(author);
        let until = deadline();
        loop {
            let events = self.relay.fetch_all(&filter, until).await.unwrap();
            let newest = events.iter().rev();
            if let Some(found) = newest
                .filter_map(|event| verify_key_package(event, now()).ok())
                .next()
            {
                return found;
            }
            assert!(Instant::now() < until, "{who} published no key package");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Makes a group of these, ourselves and `admins` its admins, and sends the Welcomes.
    pub async fn found(
        &mut self,
        name: &str,
        invitees: &[VerifiedKeyPackage],
        admins: &[&Rogue],
    ) -> MlsGroupId {
        let spec = GroupSpec {
            name: name.to_owned(),
            admins: admins.iter().map(|admin| admin.public_key()).collect(),
            relays: [self.url.to_string()].into(),
            ..GroupSpec::default()
        };
        let created = self.member.create_group(spec, invitees, now()).unwrap();
        self.send_welcomes().await;
        self.listen().await;
        created.group.id
    }

    /// Sends whatever Welcomes a commit released.
    pub async fn send_welcomes(&mut self) {
        for welcome in self.member.released_welcomes().unwrap() {
            self.relay
                .publish_to_recipient(&welcome.event, deadline())
                .await
                .unwrap();
            self.member.welcome_sent(welcome.event.id).unwrap();
        }
    }

    /// Makes a commit and sees to it that it is the one that counts. Returns its event.
    pub async fn commit(
        &mut self,
        mut stage: impl FnMut(&mut Member, UnixMs) -> Result<StagedCommit, CommitError>,
    ) -> EventId {
        for _ in 0..COMMITS {
            self.hear_waiting().await;
            let staged = stage(&mut self.member, now()).unwrap();
            let id = staged.event.id;
            self.relay
                .publish_stored(&staged.event, deadline())
                .await
                .unwrap();
            self.hear_waiting().await;
            match self.member.commit_published(id, now()) {
                Ok(_) | Err(CommitError::Overtaken(_)) => {}
                Err(error) => panic!("{error}"),
            }
            if !self.lost.contains(&id) {
                self.send_welcomes().await;
                return id;
            }
        }
        panic!("other commits kept winning")
    }

    /// Waits until we are in `group`, have renewed our leaf, and may seal.
    pub async fn join(&mut self, group: &MlsGroupId) {
        let until = deadline();
        while self.epoch(group) == 0 {
            assert!(Instant::now() < until, "no Welcome");
            self.hear(until).await;
        }
        self.ready(group).await;
    }

    pub fn epoch(&self, group: &MlsGroupId) -> u64 {
        let info = self.member.group_info(group).unwrap();
        info.map_or(0, |info| info.epoch)
    }

    /// Waits until something can be sealed in `group`.
    pub async fn ready(&mut self, group: &MlsGroupId) {
        let until = deadline();
        loop {
            self.hear_waiting().await;
            let pause = match self.member.can_seal(group, now()) {
                Ok(()) => return,
                Err(SealError::Unsettled { settles_at }) => {
                    settles_at.since(now()) + Duration::from_millis(1)
                }
                Err(SealError::NeedsSelfUpdate) => {
                    let group = group.clone();
                    self.commit(|member, now| member.self_update(&group, now))
                        .await;
                    continue;
                }
                Err(error) => panic!("{error}"),
            };
            assert!(Instant::now() < until, "the group never settled");
            self.hear(until.min(Instant::now() + pause)).await;
        }
    }

    /// Waits until the group has reached `epoch` and settled there.
    pub async fn ready_at(&mut self, group: &MlsGroupId, epoch: u64) {
        let until = deadline();
        while self.epoch(group) < epoch {
            assert!(
                Instant::now() < until,
                "epoch {} of {epoch}",
                self.epoch(group)
            );
            self.hear(until).await;
        }
        self.ready(group).await;
    }

    /// Seals any text as the content of a request's rumor.
    pub fn seal(&mut self, group: &MlsGroupId, kind: u16, text: &str) -> Event {
        let payload = Payload {
            kind: Kind::from(kind),
            tags: Vec::new(),
            content: Zeroizing::new(text.to_owned()),
        };
        self.member.seal(group, payload, now()).unwrap().event
    }

    /// Says any text to the group, as a request or as an ack.
    pub async fn say(&mut self, group: &MlsGroupId, kind: u16, text: &str) -> EventId {
        self.try_say(group, kind, text).await.unwrap()
    }

    /// The same, and what the relay has to say against it.
    pub async fn try_say(
        &mut self,
        group: &MlsGroupId,
        kind: u16,
        text: &str,
    ) -> Result<EventId, RelayError> {
        self.ready(group).await;
        let event = self.seal(group, kind, text);
        self.relay.publish(&event, deadline()).await?;
        Ok(event.id)
    }

    /// A request with a genuine proof of the world's development issuer.
    pub async fn compose(
        &self,
        world: &World,
        group: &MlsGroupId,
        client: &str,
        action: Action,
        id: &RotationId,
        params: &Params,
    ) -> ServiceRequest {
        let client_id = client.parse().unwrap();
        let key = self.member.signature_key();
        let binding = request_binding(action, &client_id, id, params, group, key.as_bytes());
        let challenge = self.challenges.fetch().await.unwrap();
        let asked = ProofRequest {
            nonce: nonce::compose(&challenge.challenge, &binding),
            npub: self.npub(),
            mls_group: group.clone(),
            aud: keyturn_proto::proof::DEFAULT_AUDIENCE.to_owned(),
            action,
            client_id: client_id.clone(),
            action_id: id.clone(),
            params: params.clone(),
        };
        let jwt_proof: Bearer = world.issuer.signer().prove(&asked).await.unwrap();
        ServiceRequest {
            action_type: action,
            action_id: id.clone(),
            client_id,
            profile: PROFILE.to_owned(),
            params: params.clone(),
            jwt_proof,
            totp: None,
        }
    }

    /// Sends a request with nothing wrong about its proof.
    pub async fn ask(
        &mut self,
        world: &World,
        group: &MlsGroupId,
        client: &str,
        action: Action,
    ) -> Asked {
        let id = RotationId::generate(now()).unwrap();
        let params = crate::world::reason("because I say so");
        self.ask_as(world, group, client, action, &id, &params)
            .await
    }

    /// The same under a given id.
    pub async fn ask_as(
        &mut self,
        world: &World,
        group: &MlsGroupId,
        client: &str,
        action: Action,
        id: &RotationId,
        params: &Params,
    ) -> Asked {
        let request = self.compose(world, group, client, action, id, params).await;
        let text = serde_json::to_string(&request).unwrap();
        let event = self.say(group, kinds::SERVICE_REQUEST, &text).await;
        Asked {
            event,
            id: id.clone(),
        }
    }

    /// Waits for the service's answer to one of our events.
    pub async fn answer(&mut self, event: EventId) -> NotifyState {
        let event = event.to_hex();
        let fits = |report: &ServiceNotify| report.in_reply_to.as_ref() == Some(&event);
        self.report("an answer", fits).await.body
    }

    /// Waits for the service's refusal of one of our events.
    pub async fn refusal(&mut self, event: EventId) -> ErrorClass {
        match self.answer(event).await {
            NotifyState::Refused { error, .. } => error,
            other => panic!("not refused: {other:?}"),
        }
    }

    /// Whether anything was answered to this event until now.
    pub fn was_answered(&self, event: EventId) -> bool {
        let event = event.to_hex();
        self.reports
            .iter()
            .any(|report| report.in_reply_to.as_ref() == Some(&event))
    }

    /// Waits for a report.
    pub async fn report(
        &mut self,
        what: &str,
        fits: impl Fn(&ServiceNotify) -> bool,
    ) -> ServiceNotify {
        let until = deadline();
        loop {
            if let Some(report) = self.reports.iter().find(|report| fits(report)) {
                return report.clone();
            }
            assert!(Instant::now() < until, "not in time: {what}");
            self.hear(until).await;
        }
    }

    /// Waits until a rotation is over; how.
    pub async fn over(&mut self, id: &RotationId) -> Outcome {
        let fits = |report: &ServiceNotify| {
            report.action_id.as_ref() == Some(id) && matches!(report.body, NotifyState::Done { .. })
        };
        match self.report("the end of a rotation", fits).await.body {
            NotifyState::Done { outcome, .. } => outcome,
            other => panic!("{other:?}"),
        }
    }

    /// Waits for the secret of a rotation; its place in [`Rogue::secrets`].
    pub async fn secret(&mut self, id: &RotationId) -> usize {
        let until = deadline();
        loop {
            let found = self
                .secrets
                .iter()
                .rposition(|secret| secret.header.rotation_id == *id);
            if let Some(place) = found {
                return place;
            }
            assert!(Instant::now() < until, "no secret was delivered");
            self.hear(until).await;
        }
    }

    /// The ack that this member can rightly send for a rotation.
    pub async fn proven_ack(&mut self, group: &MlsGroupId, id: &RotationId) -> RotateAck {
        let place = self.secret(id).await;
        RotateAck::proven(&self.secrets[place], self.npub(), group, now())
    }

    /// Sends any ack.
    pub async fn ack(&mut self, group: &MlsGroupId, ack: &RotateAck) -> EventId {
        let text = serde_json::to_string(ack).unwrap();
        self.say(group, kinds::ROTATE_ACK, &text).await
    }

    /// Takes in what has arrived.
    pub async fn hear_waiting(&mut self) {
        while let Some(heard) = self.relay.arrived().unwrap() {
            self.take(heard).await;
        }
    }

    /// Takes in one thing that arrives until then.
    pub async fn hear(&mut self, until: Instant) {
        if let Some(heard) = self.relay.next(until).await.unwrap() {
            self.take(heard).await;
        }
    }

    async fn take(&mut self, heard: Heard) {
        match heard {
            Heard::Live { event, at } => {
                let joined = self.take_in(&event, Receipt::live(at));
                if joined {
                    self.listen().await;
                }
            }
            Heard::Resync => self.listen().await,
            Heard::Closed(reason) => panic!("the relay closed the subscription: {reason}"),
        }
    }

    /// Subscribes to our Welcomes and groups, and takes in what is stored of them.
    pub async fn listen(&mut self) {
        loop {
            let addresses = self.addresses();
            let mut filters = vec![Filter::new().kind(Kind::GiftWrap).pubkey(self.public_key())];
            if !addresses.is_empty() {
                let tag = SingleLetterTag::lowercase(Alphabet::H);
                let groups = Filter::new().kind(Kind::MlsGroupMessage);
                filters.push(groups.custom_tags(tag, addresses.clone()));
            }
            self.relay.listen(filters.clone()).await.unwrap();
            for filter in &filters {
                for event in self.relay.fetch_all(filter, deadline()).await.unwrap() {
                    let made = UnixMs::from_secs(event.created_at.as_secs());
                    self.take_in(&event, Receipt::stored(made.min(now())));
                }
            }
            if self.addresses() == addresses {
                return;
            }
        }
    }

    fn addresses(&self) -> BTreeSet<String> {
        let groups = self.member.groups().unwrap();
        groups
            .iter()
            .filter(|group| !group.evicted)
            .flat_map(|group| [group.nostr_group_id, group.data.nostr_group_id])
            .map(|address| address.to_hex())
            .collect()
    }

    /// Returns whether we are in a group more.
    fn take_in(&mut self, event: &Event, receipt: Receipt) -> bool {
        if event.kind == Kind::GiftWrap {
            let joined = self.member.open_welcome(event, |_| Decision::Join, now());
            return matches!(joined, Ok(WelcomeOutcome::Joined(_)));
        }
        let (reports, secrets) = (&mut self.reports, &mut self.secrets);
        let mut read = |message: &AppMessage| {
            let Ok(json) = std::str::from_utf8(&message.body) else {
                return Disposition::Consume;
            };
            match Inner::classify(json) {
                InnerKind::Service => reports.push(serde_json::from_str(json).unwrap()),
                InnerKind::Notify => secrets.extend(RotateNotify::parse(json).ok()),
                _ => {}
            }
            Disposition::Consume
        };
        let inbound = self.member.receive(event, receipt, &mut read).unwrap();
        for each in inbound {
            if let Inbound::Commit(applied) = each {
                self.lost.extend(applied.own_lost);
            }
        }
        false
    }
}

/// Founds a group of these and the service, bound to `alias` with the founder as welcomer, and waits until everybody has renewed their leaf and
/// the last commit has settled.
pub async fn found(
    world: &mut World,
    alias: &str,
    founder_name: &str,
    founder: &mut Rogue,
    others: &mut [&mut Rogue],
) -> MlsGroupId {
    world.bind(alias, founder_name).await;
    let mut invitees = vec![founder.key_package_of(&world.service()).await];
    for other in others.iter_mut() {
        let package = other.key_package().addressable;
        invitees.push(verify_key_package(&package, now()).unwrap());
    }
    let group = {
        let admins: Vec<&Rogue> = others.iter().map(|other| &**other).collect();
        founder.found(alias, &invitees, &admins).await
    };
    for other in others.iter_mut() {
        other.join(&group).await;
    }
    // Epoch 1 is the creation; everybody who was invited renews a leaf.
    let epoch = 2 + others.len() as u64;
    founder.ready_at(&group, epoch).await;
    for other in others.iter_mut() {
        other.ready_at(&group, epoch).await;
    }
    group
}
