//! Step 3a: the secret comes into being. From here to [`super::seal`] it exists in this process's memory, and nowhere else.

use keyturn_proto::{ErrorClass, Secret, UnixMs, VersionId};

use super::failure::Failure;
use super::reserve::Reserved;

/// A reserved rotation with a fresh secret.
pub struct Generated {
    pub(super) reserved: Reserved,
    pub(super) version_id: VersionId,
    pub(super) secret: Secret,
    pub(super) at: UnixMs,
}

impl Reserved {
    /// Makes the version's id and its secret from the operating system's generator.
    ///
    /// # Errors
    /// [`Failure::Refused`] if the generator fails: then nothing may go on.
    pub fn generate(self, now: UnixMs) -> Result<Generated, Failure> {
        let broken = |_| Failure::refused(ErrorClass::InternalError, "generator.failed");
        Ok(Generated {
            version_id: VersionId::generate(now).map_err(broken)?,
            secret: Secret::generate().map_err(broken)?,
            reserved: self,
            at: now,
        })
    }
}
