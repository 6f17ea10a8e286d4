//! The audit trail in the auditor's hands: checked chain by chain, or exported to be checked elsewhere.
//!
//! What must always hold: nothing is changed; memory holds one page, however long the trail is; a running relay that appends meanwhile is no finding.

mod export;
mod noted;
mod verify;

pub use export::{Scope, export};
pub use noted::{InvalidNote, Noted};
pub use verify::{ChainReport, verify_all, verify_client, verify_file};

/// Entries and heads read from the store at once.
const PAGE: usize = 500;
