//! Two admins, a service and a relay with the host's habits: the library from key package to proven ack.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

#[path = "session/groups.rs"]
mod groups;
#[path = "session/outages.rs"]
mod outages;
#[path = "session/requests.rs"]
mod requests;
#[path = "session/secrets.rs"]
mod secrets;

use std::time::Duration;

use keyturn_admin::session::{
    AdminSession, GroupError, NewGroup, OpenSessionError, RequestError, RequestSpec, SecretError,
};
use keyturn_admin::transport::RelayError;
use keyturn_admin::{ProofSource, Update};
use keyturn_proto::notify::NotifyState;
use keyturn_proto::{Action, ErrorClass, MlsGroupId, Outcome, Params};
use support::relay::TestRelay;
use support::service::{Service, Temper};
use support::{LONG, Person, Unsigned, eventually, growing, on_disk, run, soon};
use tokio::time::Instant;

fn ask(action: Action, group: &MlsGroupId) -> RequestSpec {
    RequestSpec {
        action,
        client: "ext-totp-svc".parse().unwrap(),
        params: Params {
            rotation_reason: if action == Action::Status {
                String::new()
            } else {
                "test".to_owned()
            },
            ..Params::default()
        },
        action_id: None,
        group: group.clone(),
        totp: None,
    }
}

struct World {
    relay: TestRelay,
    service: Service,
    alice: Person,
    bob: Person,
}

impl World {
    async fn new() -> Self {
        let relay = TestRelay::start().await;
        Self {
            service: Service::start(&relay).await,
            alice: Person::new(),
            bob: Person::new(),
            relay,
        }
    }

    async fn alice(&self) -> AdminSession {
        self.alice.open(&self.relay, &self.service, &[]).await
    }

    async fn bob(&self) -> AdminSession {
        self.bob
            .open(&self.relay, &self.service, &[&self.alice])
            .await
    }

    /// Alice's group with Bob and the service, everybody in and renewed.
    async fn assembled(&self) -> (AdminSession, AdminSession, MlsGroupId) {
        let mut alice = self.alice().await;
        let mut bob = self.bob().await;
        bob.publish_key_package(soon()).await.unwrap();
        let group = alice
            .create_group(
                NewGroup {
                    name: "admins".to_owned(),
                    admins: vec![self.bob.npub()],
                    members: vec![self.service.npub],
                },
                soon(),
            )
            .await
            .unwrap()
            .id;
        joined(&mut bob).await;
        // The service renews its leaf when it gets to it, and whoever loses an epoch renews again.
        let ledger = &self.service.ledger;
        eventually("the service renewed its leaf", || {
            ledger.lock().unwrap().renewals > 0
        })
        .await;
        loop {
            for session in [&mut alice, &mut bob] {
                session.sync(soon()).await.unwrap();
                session.ready(&group, soon()).await.unwrap();
            }
            if epoch(&alice, &group) == epoch(&bob, &group) {
                return (alice, bob, group);
            }
        }
    }
}

fn epoch(session: &AdminSession, group: &MlsGroupId) -> u64 {
    let groups = session.groups().unwrap();
    groups.iter().find(|each| each.id == *group).unwrap().epoch
}

/// The next update that is `wanted`. Commits of others, and what they say, may come before it.
async fn update(session: &mut AdminSession, wanted: impl Fn(&Update) -> bool) -> Update {
    let mut passed_over = Vec::new();
    let limit = soon();
    loop {
        match session.next_update(limit).await.unwrap() {
            Some(update) if wanted(&update) => return update,
            Some(update) => passed_over.push(update),
            None => panic!("never came; but: {passed_over:?}"),
        }
    }
}

async fn joined(session: &mut AdminSession) {
    update(session, |update| matches!(update, Update::Joined { .. })).await;
}

/// Asks, and hears no word that counts as the answer. A try that ended before it had asked is made again with more patience.
async fn is_not_answered(
    session: &mut AdminSession,
    service: &Service,
    spec: impl Fn() -> RequestSpec,
) {
    let group = spec().group;
    let heard = || service.ledger.lock().unwrap().requests.len();
    let before = heard();
    for patience in growing() {
        session.ready(&group, soon()).await.unwrap();
        let shortly = Instant::now() + patience;
        match session.request(spec(), &Unsigned, shortly).await {
            Err(RequestError::NoAnswer(_)) if heard() > before => return,
            Err(
                RequestError::NoAnswer(_)
                | RequestError::Unsettled
                | RequestError::Relay(RelayError::Timeout(_)),
            ) => {}
            other => panic!("{other:?}"),
        }
    }
    panic!("the request never reached the service");
}
