//! Admins who keep at it while the relay comes and goes: what an app does, and a person who repeats a command under its id.
//!
//! Only what passes by itself is tried again. A refusal, or a member database that cannot go on, fails the test.

use std::fmt::Display;
use std::time::Duration;

use keyturn::extension::{BUSY, STOPPED};
use keyturn_admin::challenge::ChallengeError;
use keyturn_admin::clock::{Clock as _, SystemClock};
use keyturn_admin::session::{GroupError, Reply, RequestError, SecretError, SyncError};
use keyturn_admin::transport::RelayError;
use keyturn_admin::{AdminSession, OpenedSecret, ProofSource, RequestSpec};
use keyturn_proto::notify::{NotifyState, ServiceNotify};
use keyturn_proto::{Action, ClientId, MlsGroupId, Params, RotationId};
use tokio::time::{Instant, sleep};

use crate::relay::Relay;
use crate::verdict::Held;
use crate::world::{CLIENT, deadline};

/// How long one attempt waits for its answer: the answer to an earlier one may have died with the relay.
const ATTEMPT: Duration = Duration::from_secs(4);
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(50);

/// A request that can be repeated under its id.
#[derive(Clone, Debug)]
pub struct Wish {
    pub action: Action,
    pub client: ClientId,
    pub params: Params,
    pub id: RotationId,
    pub group: MlsGroupId,
}

impl Wish {
    pub fn new(action: Action, group: &MlsGroupId, params: Params) -> Self {
        Self {
            action,
            client: CLIENT.parse().unwrap(),
            params,
            id: RotationId::generate(SystemClock.now()).unwrap(),
            group: group.clone(),
        }
    }

    pub fn spec(&self) -> RequestSpec {
        let Self {
            action,
            client,
            params,
            id,
            group,
        } = self.clone();
        RequestSpec {
            action,
            client,
            params,
            action_id: Some(id),
            group,
            totp: None,
        }
    }
}

/// Asks until there is an answer.
pub async fn insist(proof: &dyn ProofSource, who: &mut AdminSession, wish: &Wish) -> Reply {
    let until = deadline();
    loop {
        let attempt = until.min(Instant::now() + ATTEMPT);
        match who.request(wish.spec(), proof, attempt).await {
            Ok(reply) => return reply,
            Err(error) => again(who, until, passes(&error), &error).await,
        }
    }
}

/// Waits for the secret, opens it once, and holds it.
pub async fn open(who: &mut AdminSession, id: &RotationId, held: &Held) -> OpenedSecret {
    let until = deadline();

    let waiting = loop {
        match who.await_secret(id, until).await {
            Ok(waiting) => break waiting,
            Err(error) => again(who, until, secret_passes(&error), &error).await,
        }
    };
    let opened = who.open_secret(&waiting).unwrap();
    held.note(&opened);
    opened
}

/// Acks until the relay has stored it. Whatever is stored counts, without being sent again.
pub async fn ack(who: &mut AdminSession, secret: &OpenedSecret) {
    let until = deadline();
    loop {
        match who.ack(secret, until).await {
            Ok(_) => return,
            Err(error) => again(who, until, secret_passes(&error), &error).await,
        }
    }
}

/// Waits until the service says that `id` is over.
pub async fn done(who: &mut AdminSession, id: &RotationId) -> ServiceNotify {
    let until = deadline();
    loop {
        match who.await_done(id, until).await {
            Ok(notify) => return notify,
            Err(error) => again(who, until, passes(&error), &error).await,
        }
    }
}

/// A whole rotation, however often the relay dies meanwhile: alice asks, both open and ack, and alice hears how it ended.
pub async fn carry_through(
    proof: &dyn ProofSource,
    alice: &mut AdminSession,
    bob: &mut AdminSession,
    wish: &Wish,
    held: &Held,
) -> ServiceNotify {
    let reply = insist(proof, alice, wish).await;
    assert!(
        matches!(reply.answer.body, NotifyState::Accepted { .. }),
        "{:?}",
        reply.answer
    );
    for session in [&mut *alice, bob] {
        let opened = open(session, &wish.id, held).await;
        ack(session, &opened).await;
    }
    done(alice, &wish.id).await
}

/// Waits until the armed crash point has killed the relay.
pub async fn crashed(relay: Relay) {
    tokio::task::spawn_blocking(|| relay.wait_for_crash())
        .await
        .unwrap();
}

/// Takes in what arrives for a moment, connected or not.
pub async fn listen(who: &mut AdminSession) {
    match who.next_update(Instant::now() + PAUSE).await {
        Ok(_) => {}
        Err(error) => again(who, deadline(), sync_passes(&error), &error).await,
    }
}

/// A session that failed to catch up tries again when it is told to: `error` may have been that.
async fn again(who: &mut AdminSession, until: Instant, passes: bool, error: &impl Display) {
    assert!(passes, "this does not pass by itself: {error}");
    loop {
        assert!(Instant::now() < until, "not in time: {error}");
        sleep(PAUSE).await;
        match who.sync(until).await {
            Ok(()) => return,
            Err(error) => assert!(sync_passes(&error), "cannot catch up: {error}"),
        }
    }
}

/// Whether asking again can help.
pub fn passes(error: &RequestError) -> bool {
    match error {
        RequestError::NoAnswer(_) | RequestError::Unsettled => true,
        RequestError::Challenge(
            ChallengeError::Unreachable { .. } | ChallengeError::Status { status: 503, .. },
        ) => true,
        RequestError::Relay(error) => relay_passes(error),
        RequestError::Sync(error) => sync_passes(error),
        RequestError::Group(error) => group_passes(error),
        _ => false,
    }
}

fn secret_passes(error: &SecretError) -> bool {
    match error {
        SecretError::Relay(error) => relay_passes(error),
        SecretError::Sync(error) => sync_passes(error),
        SecretError::Group(error) => group_passes(error),
        _ => false,
    }
}

fn sync_passes(error: &SyncError) -> bool {
    match error {
        SyncError::Relay(error) => relay_passes(error),
        SyncError::Group(error) => group_passes(error),
        _ => false,
    }
}

/// Whether syncing again can help.
pub fn group_passes(error: &GroupError) -> bool {
    match error {
        GroupError::Relay(error) => relay_passes(error),
        GroupError::Sync(error) => sync_passes(error),
        _ => false,
    }
}

fn relay_passes(error: &RelayError) -> bool {
    match error {
        RelayError::Refused(words) => words == BUSY || words == STOPPED,
        RelayError::TooMany => false,
        _ => true,
    }
}
