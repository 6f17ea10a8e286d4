//! The clients that are listened to: which target is whose, how far each has been heard, and who makes room.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use keyturn_proto::{ClientId, UnixMs};

use super::{Coverage, Do, HEARTBEAT, Session, TargetId};
use crate::verifier::source::ClientSnapshot;

/// After the server has ended targets by itself, none is added for this long: it may have had enough.
const REFUSED_FOR: Duration = Duration::from_secs(60);

pub(super) struct Targets {
    max: usize,
    idle_after: Duration,
    clients: HashMap<ClientId, Target>,
    by_id: HashMap<TargetId, ClientId>,
    last_id: i32,
    /// When it was last asked who is idle.
    swept_at: UnixMs,
    none_before: UnixMs,
}

struct Target {
    id: TargetId,
    state: State,
}

enum State {
    /// The document as heard so far; nothing is known of it before all was told.
    Hearing(Option<Told>),
    Heard(Coverage),
}

enum Told {
    Is(ClientSnapshot),
    Unreadable,
    Gone,
}

impl Targets {
    pub(super) fn new(max: usize, idle_after: Duration) -> Self {
        Self {
            max,
            idle_after,
            clients: HashMap::new(),
            by_id: HashMap::new(),
            last_id: HEARTBEAT.0,
            swept_at: UnixMs(0),
            none_before: UnixMs(0),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.clients.len()
    }

    pub(super) fn coverage(&self, client: &ClientId) -> Option<Coverage> {
        match &self.clients.get(client)?.state {
            State::Heard(coverage) => Some(coverage.clone()),
            State::Hearing(_) => None,
        }
    }

    /// A target for `client`, if there is room, or somebody idle makes it. Without a stream it is only remembered.
    pub(super) fn want(&mut self, client: &ClientId, on_stream: bool, now: UnixMs) -> Vec<Do> {
        if self.clients.contains_key(client) || now < self.none_before {
            return Vec::new();
        }
        let mut todo = Vec::new();
        if self.clients.len() >= self.max {
            todo = self.make_room(now);
        }
        if self.clients.len() < self.max {
            let id = self.add(client.clone());
            todo.push(Do::Listen(id, client.clone()));
        }
        if !on_stream {
            todo.clear();
        }
        todo
    }

    /// Everybody again, on a new stream.
    pub(super) fn listen_again(&mut self) -> Vec<Do> {
        self.clients
            .iter()
            .map(|(client, target)| Do::Listen(target.id, client.clone()))
            .collect()
    }

    /// The stream is gone. Whom nobody has asked about lately is left out of the next one.
    pub(super) fn lost(&mut self) {
        let mut idle = Vec::new();
        for (client, target) in &mut self.clients {
            if let State::Heard(coverage) = &target.state {
                if !coverage.take_used() {
                    idle.push(client.clone());
                }
                coverage.end();
            }
            target.state = State::Hearing(None);
        }
        for client in idle {
            self.drop_client(&client);
        }
    }

    pub(super) fn current(&mut self, ids: &[TargetId], session: &Arc<Session>) -> Vec<Do> {
        let mut todo = Vec::new();
        for client in self.named(ids) {
            let Some(target) = self.clients.get_mut(&client) else {
                continue;
            };
            let State::Hearing(told) = &mut target.state else {
                continue;
            };
            match told.take() {
                Some(Told::Is(snapshot)) => {
                    let coverage = Coverage::begin(session);
                    let covered = covered(snapshot, &coverage);
                    target.state = State::Heard(coverage);
                    todo.push(Do::Tell(client, covered));
                }
                Some(Told::Unreadable) => todo.extend(self.forget(client)),
                // A document target tells of its document, or that there is none.
                Some(Told::Gone) | None => todo.extend(self.is_gone(client)),
            }
        }
        todo
    }

    pub(super) fn reset(&mut self, ids: &[TargetId]) {
        for client in self.named(ids) {
            if let Some(target) = self.clients.get_mut(&client) {
                if let State::Heard(coverage) = &target.state {
                    coverage.end();
                }
                target.state = State::Hearing(None);
            }
        }
    }

    pub(super) fn removed(&mut self, ids: &[TargetId], now: UnixMs) {
        for client in self.named(ids) {
            // Those that we took away are not here any more.
            self.none_before = now.plus(REFUSED_FOR);
            self.drop_client(&client);
        }
    }

    pub(super) fn changed(
        &mut self,
        ids: &[TargetId],
        snapshot: Option<ClientSnapshot>,
    ) -> Vec<Do> {
        let mut todo = Vec::new();
        for client in self.some(ids) {
            let Some(target) = self.clients.get_mut(&client) else {
                continue;
            };
            match (&mut target.state, &snapshot) {
                (State::Hearing(told), Some(snapshot)) => {
                    *told = Some(Told::Is(snapshot.clone()));
                }
                (State::Hearing(told), None) => *told = Some(Told::Unreadable),
                (State::Heard(coverage), Some(snapshot)) => {
                    let covered = covered(snapshot.clone(), coverage);
                    todo.push(Do::Tell(client, covered));
                }
                (State::Heard(_), None) => todo.extend(self.forget(client)),
            }
        }
        todo
    }

    pub(super) fn gone(&mut self, ids: &[TargetId]) -> Vec<Do> {
        let mut todo = Vec::new();
        for client in self.some(ids) {
            let Some(target) = self.clients.get_mut(&client) else {
                continue;
            };
            match &mut target.state {
                State::Hearing(told) => *told = Some(Told::Gone),
                State::Heard(_) => todo.extend(self.is_gone(client)),
            }
        }
        todo
    }

    /// A document that breaks the schema: whoever asks shall read it, and hear so.
    fn forget(&mut self, client: ClientId) -> Vec<Do> {
        let id = self.drop_client(&client);
        let unlisten = id.map(Do::Unlisten);
        unlisten.into_iter().chain([Do::Forget(client)]).collect()
    }

    fn is_gone(&mut self, client: ClientId) -> Vec<Do> {
        let id = self.drop_client(&client);
        let unlisten = id.map(Do::Unlisten);
        unlisten.into_iter().chain([Do::Gone(client)]).collect()
    }

    /// Takes away whom nobody has asked about since the last time; at most once in `idle_after`, so that "since" means something.
    fn make_room(&mut self, now: UnixMs) -> Vec<Do> {
        if now.since(self.swept_at) < self.idle_after {
            return Vec::new();
        }
        self.swept_at = now;
        let idle: Vec<ClientId> = self
            .clients
            .iter()
            .filter(|(_, target)| match &target.state {
                State::Heard(coverage) => !coverage.take_used(),
                State::Hearing(_) => false,
            })
            .map(|(client, _)| client.clone())
            .collect();
        idle.iter()
            .filter_map(|client| self.drop_client(client))
            .map(Do::Unlisten)
            .collect()
    }

    fn add(&mut self, client: ClientId) -> TargetId {
        // Numbers are not used again on a stream: a late word about an old target must not count for a new one.
        self.last_id = self.last_id.checked_add(1).unwrap_or(HEARTBEAT.0 + 1);
        let id = TargetId(self.last_id);
        self.by_id.insert(id, client.clone());
        let state = State::Hearing(None);
        self.clients.insert(client, Target { id, state });
        id
    }

    fn drop_client(&mut self, client: &ClientId) -> Option<TargetId> {
        let target = self.clients.remove(client)?;
        if let State::Heard(coverage) = &target.state {
            coverage.end();
        }
        self.by_id.remove(&target.id);
        Some(target.id)
    }

    /// Whose these are; none named means everybody.
    fn named(&self, ids: &[TargetId]) -> Vec<ClientId> {
        if ids.is_empty() {
            return self.clients.keys().cloned().collect();
        }
        self.some(ids)
    }

    fn some(&self, ids: &[TargetId]) -> Vec<ClientId> {
        ids.iter()
            .filter_map(|id| self.by_id.get(id).cloned())
            .collect()
    }
}

fn covered(snapshot: ClientSnapshot, coverage: &Coverage) -> ClientSnapshot {
    ClientSnapshot {
        coverage: Some(coverage.clone()),
        ..snapshot
    }
}
