//! The rnostr extension: the only file that knows rnostr's sessions.
//!
//! It runs on the relay's HTTP workers, where blocking stalls every session of the worker. So it only looks at kind and
//! tag, and hands what concerns us over a bounded channel. What must always hold: an event that concerns us is either
//! handed over or its sender is told `OK false`; every other message passes untouched and nearly for free.
//!
//! Add it **last**: what an extension behind it refuses (rate limits, authentication) would already have been handed over.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use actix::{ActorContext as _, ActorFutureExt as _, AsyncContext as _, WrapFuture as _};
use actix_web_actors::ws::{CloseCode, CloseReason};
use keyturn_mls::binding::BINDING;
use keyturn_proto::{UnixMs, kinds};
use metrics::{counter, gauge};
use nostr::{
    Event, EventId, JsonUtil as _, Kind, PublicKey, Tag, Timestamp, secp256k1::schnorr::Signature,
};
use nostr_extensions::auth::AuthState;
use nostr_relay::{
    App, Extension, ExtensionMessageResult, Session,
    message::{ClientMessage, IncomingMessage, OutgoingMessage},
    setting::SettingWrapper,
};
use tokio::sync::mpsc::error::TrySendError;

use crate::{
    assembly::Assembly,
    config::ValidatedConfig,
    delivery::rnostr::AttachError,
    metrics as names,
    running::{Entrance, Keyturn, KeyturnError},
    service::{Inbound, Served, ServiceFactory, SessionInfo},
};

/// Told to the sender of an event that concerns us while the queue is full.
pub const BUSY: &str = "error: keyturn is busy, try again";
/// Told while the service is not running.
pub const STOPPED: &str = "error: keyturn is not running, try again";

/// Adds Keyturn to a relay: `app.add_extension(RotationExtension::new(config)?)`.
pub struct RotationExtension {
    entrance: Entrance,
    /// Present when this extension started the service itself; then the service stops with it.
    _owned: Option<Keyturn>,
}

impl RotationExtension {
    /// Starts the service on a runtime of its own. It meets the relay at the first connection; call
    /// [`RotationExtension::attach`] before `add_extension` to let it recover and publish earlier.
    pub fn new(config: ValidatedConfig) -> Result<Self, KeyturnError> {
        Self::with_service(config, Box::new(Assembly))
    }

    /// As [`RotationExtension::new`], with a core of your own.
    pub fn with_service(
        config: ValidatedConfig,
        service: Box<dyn ServiceFactory>,
    ) -> Result<Self, KeyturnError> {
        let keyturn = Keyturn::start(Arc::new(config), service)?;
        Ok(Self {
            entrance: keyturn.entrance(),
            _owned: Some(keyturn),
        })
    }

    /// The extension of a service that somebody else started and will stop.
    pub fn of(keyturn: &Keyturn) -> Self {
        Self {
            entrance: keyturn.entrance(),
            _owned: None,
        }
    }

    /// Connects the service with the relay's database and writer now instead of at the first connection. Must be called
    /// where the relay was created: on a thread of its actix System.
    pub fn attach(&self, app: &App) -> Result<(), AttachError> {
        self.entrance.relay.attach(app)
    }

    fn hand_over(&self, msg: ClientMessage, session: &Session) -> ExtensionMessageResult {
        let IncomingMessage::Event(event) = &msg.msg else {
            return ExtensionMessageResult::Continue(msg);
        };
        let served = self.entrance.served.snapshot();
        if !concerns(event, served.as_deref()) || msg.validate_nip70().is_err() {
            return ExtensionMessageResult::Continue(msg);
        }
        let Some(converted) = convert(event) else {
            // rnostr stores what the nostr crate cannot read; nobody in the group could read it either.
            counter!(names::INBOUND, "result" => "unreadable").increment(1);
            return ExtensionMessageResult::Continue(msg);
        };
        let queue = &self.entrance.inbound;
        let arrival = self.entrance.backlog.arrived(|| UnixMs(now_ms()));
        let inbound = Inbound {
            event: converted,
            received_at_ms: arrival.at().0,
            session: session_info(session),
            stored: false,
            arrival,
        };
        let (refusal, result) = match queue.try_send(inbound) {
            Ok(()) => {
                counter!(names::INBOUND, "result" => "taken").increment(1);
                let waiting = queue.max_capacity() - queue.capacity();
                gauge!(names::INBOUND_QUEUE).set(waiting as f64);
                return ExtensionMessageResult::Continue(msg);
            }
            Err(TrySendError::Full(_)) => (BUSY, "busy"),
            // Without a served set we cannot know that it concerns us, and other people's groups must not suffer.
            Err(TrySendError::Closed(_)) if served.is_none() => {
                return ExtensionMessageResult::Continue(msg);
            }
            Err(TrySendError::Closed(_)) => (STOPPED, "stopped"),
        };
        counter!(names::INBOUND, "result" => result).increment(1);
        ExtensionMessageResult::Stop(OutgoingMessage::ok(&event.id_str(), false, refusal))
    }
}

impl Extension for RotationExtension {
    fn name(&self) -> &'static str {
        "keyturn"
    }

    fn setting(&mut self, setting: &SettingWrapper) {
        // NIP-59 gift wraps and NIP-EE group events are what we add to the relay's own list.
        let mut setting = setting.write();
        setting.add_nip(59);
    }

    fn connected(&self, session: &mut Session, ctx: &mut <Session as actix::Actor>::Context) {
        if !self.entrance.stopping.is_cancelled()
            && let Err(error) = self.entrance.relay.attach(&session.app)
        {
            tracing::error!(%error, "keyturn cannot reach the relay it runs in");
        }
        let stopping = self.entrance.stopping.clone();
        let close = async move { stopping.cancelled_owned().await }
            .into_actor(session)
            .map(|(), _, ctx| {
                ctx.close(Some(CloseReason {
                    code: CloseCode::Away,
                    description: Some("the relay is stopping".to_owned()),
                }));
                ctx.stop();
            });
        ctx.spawn(close);
    }

    fn message(
        &self,
        msg: ClientMessage,
        session: &mut Session,
        _ctx: &mut <Session as actix::Actor>::Context,
    ) -> ExtensionMessageResult {
        match &msg.msg {
            IncomingMessage::Event(event) if is_ours(event.kind()) => self.hand_over(msg, session),
            _ => ExtensionMessageResult::Continue(msg),
        }
    }
}

const fn is_ours(kind: u16) -> bool {
    matches!(
        kind,
        kinds::GROUP_EVENT
            | kinds::GIFT_WRAP
            | kinds::WELCOME
            | kinds::KEY_PACKAGE
            | kinds::KEY_PACKAGE_LEGACY
            | BINDING
            | kinds::ROTATE_REQUEST
            | kinds::ROTATE_ACK
            | kinds::SERVICE_REQUEST
            | kinds::SERVICE_ACK
    )
}

/// Whether an event of our kinds is meant for us. Before the groups are loaded everything is that may be.
fn concerns(event: &nostr_db::Event, served: Option<&Served>) -> bool {
    let Some(served) = served else {
        return matches!(
            event.kind(),
            kinds::GROUP_EVENT | kinds::GIFT_WRAP | kinds::WELCOME
        );
    };
    match event.kind() {
        kinds::GROUP_EVENT => tag_values(event, "h").any(|id| served.groups.contains(&id)),
        kinds::GIFT_WRAP | kinds::WELCOME => {
            tag_values(event, "p").any(|key| served.recipients.contains(&key))
        }
        kinds::KEY_PACKAGE | kinds::KEY_PACKAGE_LEGACY | BINDING => {
            served.key_package_authors.contains(event.pubkey())
        }
        _ => served.cleartext_requests,
    }
}

/// As the extension judges a client's event.
pub(crate) fn concerns_core(event: &Event, served: Option<&Served>) -> bool {
    let parsed: Result<nostr_db::Event, _> = event.as_json().parse();
    parsed.is_ok_and(|event| is_ours(event.kind()) && concerns(&event, served))
}

fn tag_values<'a>(
    event: &'a nostr_db::Event,
    name: &'a str,
) -> impl Iterator<Item = [u8; 32]> + 'a {
    event.tags().iter().filter_map(move |tag| {
        let [first, value, ..] = tag.as_slice() else {
            return None;
        };
        let mut bytes = [0; 32];
        (first == name && hex::decode_to_slice(value, &mut bytes).is_ok()).then_some(bytes)
    })
}

/// The same event as the `nostr` crate knows it. rnostr has verified id and signature.
fn convert(event: &nostr_db::Event) -> Option<Event> {
    let tags = event
        .tags()
        .iter()
        .map(Tag::parse)
        .collect::<Result<Vec<_>, _>>()
        .ok()?;
    Some(Event::new(
        EventId::from_byte_array(*event.id()),
        PublicKey::from_byte_array(*event.pubkey()),
        Timestamp::from_secs(event.created_at()),
        Kind::from_u16(event.kind()),
        tags,
        event.content().clone(),
        Signature::from_slice(event.sig()).ok()?,
    ))
}

fn session_info(session: &Session) -> SessionInfo {
    let authenticated = session.get::<AuthState>().and_then(AuthState::pubkey);
    SessionInfo {
        id: session.id(),
        authenticated: authenticated.and_then(|key| PublicKey::from_hex(key).ok()),
        ip: session.ip().parse::<IpAddr>().ok(),
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::HashSet;

    use nostr::{EventBuilder, Keys};

    use super::*;

    fn event(keys: &Keys, kind: u16, tags: &[&[&str]]) -> nostr_db::Event {
        let tags = tags
            .iter()
            .map(|tag| Tag::parse(tag.iter().copied()).unwrap());
        let event = EventBuilder::new(Kind::from_u16(kind), "content")
            .tags(tags)
            .sign_with_keys(keys)
            .unwrap();
        event.as_json().parse().unwrap()
    }

    #[test]
    fn only_events_of_served_groups_own_keys_and_enrolled_authors_concern_us() {
        let (me, stranger) = (Keys::generate(), Keys::generate());
        let (group, other) = ("ab".repeat(32), "cd".repeat(32));
        let served = Served {
            groups: HashSet::from([[0xab; 32]]),
            recipients: HashSet::from([me.public_key().to_bytes()]),
            key_package_authors: HashSet::from([me.public_key().to_bytes()]),
            cleartext_requests: false,
        };
        let (mine, theirs) = (me.public_key().to_hex(), stranger.public_key().to_hex());
        for (expected, event) in [
            (true, event(&stranger, 445, &[&["h", &group]])),
            (
                true,
                event(&stranger, 445, &[&["encoding", "base64"], &["h", &group]]),
            ),
            (false, event(&stranger, 445, &[&["h", &other]])),
            (false, event(&stranger, 445, &[&["h", "ab"]])),
            (false, event(&stranger, 445, &[])),
            (true, event(&stranger, 1059, &[&["p", &mine]])),
            (false, event(&stranger, 1059, &[&["p", &theirs]])),
            (true, event(&me, 30443, &[&["d", &group]])),
            (true, event(&me, 443, &[])),
            (true, event(&me, 40913, &[])),
            (false, event(&stranger, 40913, &[])),
            (false, event(&stranger, 30443, &[&["d", &group]])),
            (false, event(&me, 40901, &[])),
        ] {
            assert!(is_ours(event.kind()));
            assert_eq!(concerns(&event, Some(&served)), expected, "{event}");
        }
        assert!(
            concerns(&event(&stranger, 445, &[&["h", &other]]), None),
            "groups are not known yet"
        );
        assert!(!concerns(&event(&stranger, 30443, &[]), None));
        assert!(!is_ours(1));
    }

    #[test]
    fn conversion_keeps_every_field() {
        let keys = Keys::generate();
        let signed = EventBuilder::new(Kind::from_u16(445), "c")
            .tag(Tag::parse(["h", "00"]).unwrap())
            .sign_with_keys(&keys)
            .unwrap();
        let stored: nostr_db::Event = signed.as_json().parse().unwrap();
        let converted = convert(&stored).unwrap();
        assert_eq!(converted, signed);
        converted.verify().unwrap();
    }
}
