//! Step 1: an opened request becomes an authorised one, or a refusal.

use keyturn_proto::UnixMs;

use super::ports::Gate;
use crate::admission::{NotAdmitted, Opened, Permit};

/// A request that MLS opened. Nothing has been judged yet.
pub struct Requested<'a> {
    opened: &'a Opened,
    fence: u64,
}

/// A request with its permit, and the fencing number from before it was judged: what takes effect under it takes effect while that lease is
/// the newest, or not at all.
pub struct Authorised {
    permit: Permit,
    fence: u64,
}

impl<'a> Requested<'a> {
    /// From the inbox, to be judged under the lease numbered `fence`.
    #[must_use]
    pub const fn new(opened: &'a Opened, fence: u64) -> Self {
        Self { opened, fence }
    }

    /// Asks admission.
    ///
    /// # Errors
    /// [`NotAdmitted`]: a refusal is already audited.
    pub async fn authorise(self, gate: &dyn Gate, now: UnixMs) -> Result<Authorised, NotAdmitted> {
        let Self { opened, fence } = self;
        let permit = gate.admit(opened, now).await?;
        Ok(Authorised { permit, fence })
    }
}

impl Authorised {
    /// What is allowed.
    #[must_use]
    pub const fn permit(&self) -> &Permit {
        &self.permit
    }

    /// Under which lease it was judged.
    #[must_use]
    pub const fn fence(&self) -> u64 {
        self.fence
    }
}
