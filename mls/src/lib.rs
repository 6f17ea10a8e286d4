//! One MLS member over Nostr, in the Marmot wire format, on OpenMLS.
//!
//! The relay's service member and every admin client are the same thing: a [`Member`]. Sync, no runtime, no
//! network, no clock: the caller moves events and says what time it is.
//!
//! A walk:
//!
//! 1. [`Member::open`] a database with a [`StorageKey`]; [`Member::publish_key_package`] and publish both events.
//! 2. [`verify_key_package`] those of others; [`Member::create_group`] or [`Member::invite`]; publish the commit,
//!    [`Member::commit_published`], then send the Welcomes.
//! 3. The invited: [`Member::open_welcome`], delete the named events, publish a new key package,
//!    [`Member::self_update`]; until that commit has settled, nothing is sealed.
//! 4. Feed every 445 event to [`Member::receive`]; a closure says for each message whether it is consumed, kept
//!    in the inbox or left closed. Call [`Member::settle`] from a timer.
//! 5. [`Member::seal`] a [`Payload`]; publish the event.
//! 6. After a restart: [`Member::pending_commits`], [`Member::released_welcomes`], [`Member::inbox`],
//!    [`Member::deferred`] say what is unfinished.
//!
//! What must hold, and where: plaintext of messages is never stored ([`message`]); what was sealed here cannot
//! be opened here again ([`outbound`]); a removed admin cannot come back by a backdated commit ([`settle`]);
//! a credential is a claim until its key is proven ([`VerifiedKeyPackage::signature_key`], [`binding`]).
//!
//! One clock is read nevertheless: OpenMLS compares the lifetime of key packages with the system's when it
//! verifies them.
//!
//! Stack: with optimised dependencies (this workspace optimises them in debug builds, too) the usual 2 MiB
//! of a thread are enough for a hundred members. Where dependencies are not optimised, give threads that
//! call this crate 4 MiB (`RUST_MIN_STACK=4194304`).

#![forbid(unsafe_code)]

mod backlog;
pub mod binding;
mod commit;
pub mod error;
mod follow;
mod group;
mod ids;
pub mod inbound;
mod key;
mod keypackage;
mod member;
mod merge;
pub mod message;
mod opening;
pub mod outbound;
pub mod rules;
pub mod settle;
mod stage;
mod storage;
pub mod welcome;
pub mod wire;

#[cfg(test)]
extern crate self as keyturn_mls;
#[cfg(test)]
#[path = "../tests/common/mod.rs"]
mod common;
#[cfg(test)]
mod rogue_tests;

pub use backlog::{Arrival, Backlog};
pub use binding::{Binding, verify_binding};
pub use commit::{GroupChange, StagedCommit};
pub use group::{CreatedGroup, GroupSpec};
pub use ids::{Leaf, MlsGroupId, NostrGroupId, RosterHash, SignatureKey, UnixMs};
pub use key::{StorageKey, StorageKeyError};
pub use keypackage::KeyPackageEvents;
pub use member::{GroupInfo, Member, MemberConfig};
pub use message::{AppMessage, CommitApplied, DeferredMessage, Disposition, Inbound, Invalid};
pub use outbound::SealedMessage;
pub use rules::{CommitFacts, CommitRefusal};
pub use settle::Receipt;
pub use storage::events::InboxRow;
pub use storage::outbox::PendingWelcome;
pub use storage::rows::Freeze;
pub use welcome::{Decision, Invitation, Joined, WelcomeOutcome};
pub use wire::key_package_event::{
    KeyPackageError, VerifiedKeyPackage, verify as verify_key_package,
};
pub use wire::rumor::{Payload, RumorInfo};
