//! Step 1: an opened request becomes an authorised one, or a refusal.

use keyturn_proto::UnixMs;

use super::ports::Gate;
use crate::admission::{Opened, Permit, Refusal};

/// A request that MLS opened. Nothing has been judged yet.
pub struct Requested<'a>(&'a Opened);

/// A request with its permit.
pub struct Authorised(Permit);

impl<'a> Requested<'a> {
    /// From the inbox.
    #[must_use]
    pub const fn new(opened: &'a Opened) -> Self {
        Self(opened)
    }

    /// Asks admission.
    ///
    /// # Errors
    /// [`Refusal`], already audited.
    pub async fn authorise(self, gate: &dyn Gate, now: UnixMs) -> Result<Authorised, Refusal> {
        gate.admit(self.0, now).await.map(Authorised)
    }
}

impl Authorised {
    /// What is allowed.
    #[must_use]
    pub const fn permit(&self) -> &Permit {
        &self.0
    }
}
