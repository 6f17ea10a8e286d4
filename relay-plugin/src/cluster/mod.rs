//! Several relays on one store: what one instance does for the others.
//!
//! The lease decides which instance acts ([`crate::rotation::lease`]); every other one stands by: it is a member of the same groups, takes in the
//! same events and keeps requests and acks in its own inbox. [`mirror`] brings what clients give to one relay to the others, by pulling: it follows
//! a peer, `catch_up` fetches what was missed, `lanes` judges and stores. [`withdrawals`] takes from each relay what the instance that acts has withdrawn, and [`gone`] keeps the mirror from bringing it back.
//!
//! What must always hold: nothing is pushed to a peer, so a loop ends where an event is known; an event from a peer is judged like one from a
//! client; a peer that is away costs nothing but its events.

mod catch_up;
pub mod cursor;
pub mod gone;
mod lanes;
pub mod mirror;
mod window;
pub mod withdrawals;

use std::sync::Arc;
use std::time::Duration;

use keyturn_mls::Backlog;
use keyturn_mls::binding::BINDING;
use keyturn_proto::kinds;
use keyturn_store::store::Store;
use nostr::Keys;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::delivery::port::RelayPort;
use crate::metrics as names;
use crate::rotation::ports::Clock;
use crate::service::{Inbound, ServedSet};
use cursor::Cursors;
use gone::Gone;

/// What is mirrored (architecture.md, "Many relays").
const KINDS: [u16; 6] = [
    kinds::KEY_PACKAGE_LEGACY,
    kinds::KEY_PACKAGE,
    kinds::WELCOME,
    kinds::GROUP_EVENT,
    kinds::GIFT_WRAP,
    BINDING,
];
/// How much of what was heard before is asked for again: clocks differ, and events travel.
const OVERLAP: Duration = Duration::from_secs(600);
/// How far ahead of us an event may be dated: what rnostr grants its clients.
const AHEAD: Duration = Duration::from_secs(900);
/// How long a connection, or a fetch of one stretch, may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// How far back an instance asks its peers, and so how long the ids of withdrawn events are kept: beyond it MDK refuses events (marmot.md).
pub const HORIZON: Duration = Duration::from_secs(45 * 86_400);

/// What the tasks of a cluster share.
#[derive(Clone)]
pub struct Site {
    /// The relay of this instance.
    pub relay: Arc<dyn RelayPort>,
    /// Which events concern the core.
    pub served: ServedSet,
    /// What was handed over and not taken in yet.
    pub backlog: Backlog,
    /// The way to the core.
    pub inbound: mpsc::Sender<Inbound>,
    /// What must not come back.
    pub gone: Gone,
    /// The service members of the other instances: 32 bytes each.
    pub siblings: Vec<[u8; 32]>,
    /// The largest message that our relay takes.
    pub message_bytes: usize,
    /// Time.
    pub clock: Arc<dyn Clock>,
}

/// Starts everything: first it is settled what was withdrawn, then the peers are listened to. Ends with `stop`.
pub fn start(
    site: Site,
    store: Arc<dyn Store>,
    peers: Vec<String>,
    keys: Keys,
    cursors: Cursors,
    stop: CancellationToken,
) {
    tokio::spawn(async move {
        let work = async {
            let after = withdrawals::catch_up(&site, store.as_ref()).await;
            let watch = withdrawals::watch(&site, store.as_ref(), after);
            let mirrors = peers
                .into_iter()
                .map(|url| mirror::follow(&site, url, &keys, &cursors));
            tokio::join!(watch, futures::future::join_all(mirrors));
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = work => {}
        }
    });
}

fn lags(peer: &str, by: Duration) {
    metrics::gauge!(names::MIRROR_LAG_SECONDS, "peer" => peer.to_owned()).set(by.as_secs_f64());
}
