//! A session of our own inside the relay, without a socket.
//!
//! rnostr's server knows sessions only as recipients of outgoing messages. This one registers like a client, sends
//! EVENTs, and hands each `["OK", id, …]` to whoever waits for that id. The path checks nothing: the caller validates.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use actix::{Actor, Addr, Context, Handler};
use nostr_relay::{
    Server,
    message::{ClientMessage, Connect, IncomingMessage, OutgoingMessage},
};
use tokio::sync::{OnceCell, oneshot};

use super::port::PublishError;

/// What the relay said to one EVENT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reply {
    pub(super) accepted: bool,
    pub(super) message: String,
}

#[derive(Default)]
struct Waiting(Mutex<HashMap<String, Vec<oneshot::Sender<Reply>>>>);

impl Waiting {
    fn add(&self, id: &str) -> oneshot::Receiver<Reply> {
        let (reply, replied) = oneshot::channel();
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.entry(id.to_owned()).or_default().push(reply);
        replied
    }

    fn answer(&self, id: &str, reply: &Reply) {
        let senders = self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(id);
        for sender in senders.into_iter().flatten() {
            let _ = sender.send(reply.clone());
        }
    }

    fn forget(&self, id: &str) {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(senders) = waiting.get_mut(id) {
            senders.retain(|sender| !sender.is_closed());
            if senders.is_empty() {
                waiting.remove(id);
            }
        }
    }
}

struct Listener(Arc<Waiting>);

impl Actor for Listener {
    type Context = Context<Self>;
}

impl Handler<OutgoingMessage> for Listener {
    type Result = ();

    fn handle(&mut self, message: OutgoingMessage, _: &mut Self::Context) {
        if let Ok((command, id, accepted, message)) =
            serde_json::from_str::<(String, String, bool, String)>(&message.0)
            && command == "OK"
        {
            self.0.answer(&id, &Reply { accepted, message });
        }
    }
}

/// The session. Register with the server happens on first use.
pub(super) struct InnerSession {
    server: Addr<Server>,
    listener: Addr<Listener>,
    waiting: Arc<Waiting>,
    id: OnceCell<usize>,
}

impl InnerSession {
    /// `arbiter` is where the relay's own actors live; its work here is parsing one short line per event.
    pub(super) fn start(server: Addr<Server>, arbiter: &actix::ArbiterHandle) -> Self {
        let waiting = Arc::new(Waiting::default());
        let listener = Listener::start_in_arbiter(arbiter, {
            let waiting = Arc::clone(&waiting);
            move |_| Listener(waiting)
        });
        Self {
            server,
            listener,
            waiting,
            id: OnceCell::new(),
        }
    }

    /// Sends the event and waits for the relay's `OK`. Cancel-safe: a caller that stops waiting leaves nothing behind.
    pub(super) async fn send(&self, event: nostr_db::Event) -> Result<Reply, PublishError> {
        let session = *self
            .id
            .get_or_try_init(|| async {
                let connect = Connect {
                    addr: self.listener.clone().recipient(),
                };
                self.server
                    .send(connect)
                    .await
                    .map_err(|_| PublishError::Detached)
            })
            .await?;
        let id = event.id_str();
        let mut waiter = Waiter {
            replied: self.waiting.add(&id),
            waiting: &self.waiting,
            id: &id,
        };
        let message = ClientMessage::new(session, String::new(), IncomingMessage::Event(event));
        self.server
            .send(message)
            .await
            .map_err(|_| PublishError::Detached)?;
        (&mut waiter.replied)
            .await
            .map_err(|_| PublishError::Detached)
    }
}

/// Leaves the table again, also when the future that waits is dropped.
struct Waiter<'a> {
    replied: oneshot::Receiver<Reply>,
    waiting: &'a Waiting,
    id: &'a str,
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.replied.close();
        self.waiting.forget(self.id);
    }
}
