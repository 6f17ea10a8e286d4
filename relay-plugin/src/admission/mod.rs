//! Admission: membership → jwt → totp → replay → policy → limits, ending in a [`Permit`].
//!
//! Nothing is generated, stored or sealed without a permit, and only this module can make one. A refusal names its finer reason for the audit
//! trail and only its class for the requester.

pub mod opened;
pub mod permit;

pub use opened::{GroupContext, Opened};
pub use permit::{Permit, Refusal};
