//! The frames of a connection, before the client library judges them.
//!
//! The library drops in silence what it cannot read, what has expired and what is forged, and none of that may make a page look shorter than it
//! was: anybody can publish a page of such events to hide the ones behind them. So events are counted here, and dated. What must hold: memory is bounded
//! here, too: an event that is too large, or comes after its page has had its share, is counted and goes no further.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_wsocket::{ConnectionMode, Message};
use futures::StreamExt as _;
use nostr::SubscriptionId;
use nostr::util::BoxedFuture;
use nostr_sdk::pool::transport::error::TransportError;
use nostr_sdk::pool::transport::websocket::{
    DefaultWebsocketTransport, WebSocketSink, WebSocketStream, WebSocketTransport,
};
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::Limits;

/// What arrived for one page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Count {
    /// EVENT frames.
    pub(super) events: usize,
    /// Their oldest and newest `created_at`.
    pub(super) span: Option<(u64, u64)>,
    bytes: usize,
    /// Some were left out here, for their size or that of the page.
    pub(super) cut: bool,
}

/// Counts the events of the pages under way. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Tally {
    pages: Arc<Mutex<HashMap<String, Count>>>,
    frames: Arc<AtomicU64>,
    limits: Limits,
}

impl Tally {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            pages: Arc::default(),
            frames: Arc::default(),
            limits,
        }
    }

    /// Counts the events of a subscription until the guard is dropped.
    pub(super) fn begin(&self, id: &SubscriptionId) -> Counting<'_> {
        let id = id.to_string();
        self.lock().insert(id.clone(), Count::default());
        Counting { tally: self, id }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Count>> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many have arrived, whatever they belong to.
    pub(super) fn frames(&self) -> u64 {
        self.frames.load(Ordering::Relaxed)
    }

    /// Whether the library may have this frame.
    fn admit(&self, text: &str) -> bool {
        self.frames.fetch_add(1, Ordering::Relaxed);
        let Some(id) = event_of(text) else {
            // An OK, a NOTICE, an EOSE: short, or not worth reading.
            return text.len() <= self.limits.message_bytes;
        };
        let fits = text.len() <= self.limits.message_bytes.saturating_add(FRAME);
        let mut pages = self.lock();
        let Some(page) = pages.get_mut(id) else {
            return fits;
        };
        page.events = page.events.saturating_add(1);
        if let Some(at) = created_at(text) {
            let (oldest, newest) = page.span.unwrap_or((at, at));
            page.span = Some((oldest.min(at), newest.max(at)));
        }
        page.bytes = page.bytes.saturating_add(text.len());
        let fits = fits && page.bytes <= self.limits.fetch_bytes;
        page.cut |= !fits;
        fits
    }
}

/// See [`Tally::begin`].
pub(super) struct Counting<'t> {
    tally: &'t Tally,
    id: String,
}

impl Counting<'_> {
    pub(super) fn so_far(&self) -> Count {
        self.tally.lock().get(&self.id).copied().unwrap_or_default()
    }
}

impl Drop for Counting<'_> {
    fn drop(&mut self) {
        self.tally.lock().remove(&self.id);
    }
}

/// `["EVENT","…",` around the event, with a subscription id of the greatest length.
const FRAME: usize = 96;

/// The subscription of an EVENT frame.
fn event_of(text: &str) -> Option<&str> {
    let rest = text.trim_start().strip_prefix('[')?.trim_start();
    let rest = rest.strip_prefix("\"EVENT\"")?.trim_start();
    let rest = rest.strip_prefix(',')?.trim_start().strip_prefix('"')?;
    rest.split_once('"').map(|(id, _)| id)
}

/// When the event of a frame says that it was made, whatever else is wrong with it.
fn created_at(text: &str) -> Option<u64> {
    #[derive(Deserialize)]
    struct Dated {
        created_at: u64,
    }
    let (_, _, event): (IgnoredAny, IgnoredAny, Dated) = serde_json::from_str(text).ok()?;
    Some(event.created_at)
}

/// The library's own transport, counted.
#[derive(Debug)]
pub(super) struct Counted(pub(super) Tally);

impl WebSocketTransport for Counted {
    fn support_ping(&self) -> bool {
        DefaultWebsocketTransport.support_ping()
    }

    fn connect<'a>(
        &'a self,
        url: &'a nostr::Url,
        mode: &'a ConnectionMode,
        timeout: Duration,
    ) -> BoxedFuture<'a, Result<(WebSocketSink, WebSocketStream), TransportError>> {
        Box::pin(async move {
            let (sink, stream) = DefaultWebsocketTransport
                .connect(url, mode, timeout)
                .await?;
            let tally = self.0.clone();
            let admitted = stream.filter(move |message| {
                let admit = match message {
                    Ok(Message::Text(text)) => tally.admit(text),
                    _ => true,
                };
                std::future::ready(admit)
            });
            Ok((sink, Box::pin(admitted) as WebSocketStream))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_known_by_their_frame_however_it_is_written() {
        assert_eq!(event_of(r#"["EVENT","abc",{"id":"x"}]"#), Some("abc"));
        assert_eq!(event_of(" [ \"EVENT\" , \"abc\" , {}]"), Some("abc"));
        let unreadable = r#"["EVENT","abc",{"id":7,"created_at":12,"tags":[[]]}]"#;
        assert_eq!(created_at(unreadable), Some(12));
        for other in [r#"["EOSE","abc"]"#, r#"["OK","EVENT"]"#, "", "[", "{}"] {
            assert_eq!(event_of(other), None, "{other}");
        }
    }

    #[test]
    fn what_the_library_would_drop_is_counted_and_what_is_too_large_goes_no_further() {
        let tally = Tally::new(Limits {
            message_bytes: 100,
            fetch_bytes: 500,
            ..Limits::default()
        });
        let id = SubscriptionId::new("page");
        let counting = tally.begin(&id);
        let event = |length: usize| format!(r#"["EVENT","page",{}]"#, "x".repeat(length));
        assert!(tally.admit(&event(50)), "no event at all, and counted");
        assert!(!tally.admit(&event(300)), "too large");
        assert!(!tally.admit(&event(150)), "the page has had its share");
        assert!(tally.admit(r#"["EVENT","another",1]"#));
        assert!(tally.admit(r#"["EOSE","page"]"#));
        let count = counting.so_far();
        assert!(count.events == 3 && count.cut, "{count:?}");
        drop(counting);
        assert!(tally.lock().is_empty(), "forgotten");
    }
}
