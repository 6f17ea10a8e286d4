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
    /// Does not work (yet), and why; everything else does all the same.
    Impaired(&'static str),
}

/// The registry behind `/readyz`. A part that is not registered is not waited for.
#[derive(Debug, Clone, Default)]
pub struct Readiness(Arc<Mutex<BTreeMap<&'static str, State>>>);

impl Readiness {
    /// Adds a part, not ready with the reason "starting". Registering a name again resets it.
    pub fn register(&self, name: &'static str) -> Check {
        self.add(name, State::NotReady)
    }

    /// Adds a part that everything else does without: what ails it is shown, and nothing waits for it.
    pub fn register_apart(&self, name: &'static str) -> Check {
        self.add(name, State::Impaired)
    }

    fn add(&self, name: &'static str, ailing: fn(&'static str) -> State) -> Check {
        let check = Check {
            registry: self.clone(),
            name,
            ailing,
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

    /// True when every part is ready that anything waits for.
    pub fn all_ready(&self) -> bool {
        let states = self.states();
        !states
            .values()
            .any(|state| matches!(state, State::NotReady(_)))
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
    ailing: fn(&'static str) -> State,
}

impl Check {
    /// The part works.
    pub fn ready(&self) {
        self.registry.set(self.name, State::Ready);
    }

    /// The part does not work. `reason` is public.
    pub fn not_ready(&self, reason: &'static str) {
        self.registry.set(self.name, (self.ailing)(reason));
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

    #[test]
    fn what_ails_a_part_that_nothing_waits_for_is_shown_and_no_more() {
        let readiness = Readiness::default();
        readiness.register("store").ready();
        let mqtt = readiness.register_apart("mqtt");
        assert_eq!(readiness.states()["mqtt"], State::Impaired("starting"));
        mqtt.not_ready("no connection to the broker");
        assert!(readiness.all_ready());
        mqtt.ready();
        assert_eq!(readiness.states()["mqtt"], State::Ready);
    }
}
