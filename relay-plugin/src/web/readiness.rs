//! Which parts are ready, and if not, why.
//!
//! Reasons are shown to anybody who can reach `/readyz`: they are fixed texts, never values.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use serde::Serialize;

/// The state of one part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(tag = "state", content = "reason", rename_all = "snake_case")]
pub enum State {
    /// Works.
    Ready,
    /// Does not work (yet), and why.
    NotReady(&'static str),
}

/// The registry behind `/readyz`. A part that is not registered is not waited for.
#[derive(Debug, Clone, Default)]
pub struct Readiness(Arc<Mutex<BTreeMap<&'static str, State>>>);

impl Readiness {
    /// Adds a part, not ready with the reason "starting". Registering a name again resets it.
    pub fn register(&self, name: &'static str) -> Check {
        let check = Check {
            registry: self.clone(),
            name,
        };
        check.not_ready("starting");
        check
    }

    /// The parts by name.
    pub fn states(&self) -> BTreeMap<&'static str, State> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// True when every registered part is ready.
    pub fn all_ready(&self) -> bool {
        self.states().values().all(|state| *state == State::Ready)
    }

    fn set(&self, name: &'static str, state: State) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(name, state);
    }
}

/// The handle of one part in the registry.
#[derive(Debug, Clone)]
pub struct Check {
    registry: Readiness,
    name: &'static str,
}

impl Check {
    /// The part works.
    pub fn ready(&self) {
        self.registry.set(self.name, State::Ready);
    }

    /// The part does not work. `reason` is public.
    pub fn not_ready(&self, reason: &'static str) {
        self.registry.set(self.name, State::NotReady(reason));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_part_that_is_not_ready_makes_the_whole_not_ready() {
        let readiness = Readiness::default();
        let store = readiness.register("store");
        let relay = readiness.register("relay");
        assert_eq!(readiness.states()["store"], State::NotReady("starting"));
        store.ready();
        assert!(!readiness.all_ready());
        relay.ready();
        assert!(readiness.all_ready());
        store.not_ready("the database is locked");
        assert!(!readiness.all_ready());
    }
}
