//! Finds out whether a MAC key works, with a secret that is nobody's.

use keyturn_proto::{ClientId, Secret, UnixMs, VersionId};

use super::{MacError, MacKey, SecretHash};

/// No client: it is never registered.
const NOBODY: &str = "keyturn-probe";

/// Why a MAC key cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProbeError {
    /// The operating system's random generator failed.
    #[error("the random generator failed")]
    Random,
    /// It cannot sign.
    #[error("it cannot sign: {0}")]
    Sign(#[source] MacError),
    /// It cannot verify.
    #[error("it cannot verify: {0}")]
    Verify(#[source] MacError),
    /// It says no to what it signed itself.
    #[error("it does not verify what it signed")]
    Contradicts,
    /// It says yes to anything: every guess would be let in.
    #[error("it accepts a hash that it did not make")]
    AcceptsAnything,
}

/// Signs and verifies under the primary key version, and makes sure that it also says no.
///
/// # Errors
/// [`ProbeError`].
pub async fn probe(key: &dyn MacKey, now: UnixMs) -> Result<(), ProbeError> {
    let client: ClientId = NOBODY.parse().map_err(|_| ProbeError::Random)?;
    let version = VersionId::generate(now).map_err(|_| ProbeError::Random)?;
    let secret = Secret::generate().map_err(|_| ProbeError::Random)?;
    let made = key.sign(&client, &version, secret.expose()).await;
    let made = made.map_err(ProbeError::Sign)?;
    let wrong = SecretHash::from_mac(&[0; 32]);
    for (hash, right) in [(&made.hash, true), (&wrong, false)] {
        let answer = key.verify(&made.key_ref, &client, &version, secret.expose(), hash);
        match (answer.await.map_err(ProbeError::Verify)?, right) {
            (true, true) | (false, false) => {}
            (false, true) => return Err(ProbeError::Contradicts),
            (true, false) => return Err(ProbeError::AcceptsAnything),
        }
    }
    Ok(())
}

/// Whether `key` can verify under `key_ref` now: asks about a hash that nothing has.
///
/// # Errors
/// [`MacError`]: why not.
pub async fn can_verify(key: &dyn MacKey, key_ref: &str) -> Result<(), MacError> {
    let unknown = || MacError::UnknownKey(key_ref.to_owned());
    let client: ClientId = NOBODY.parse().map_err(|_| unknown())?;
    let version: VersionId = "0".repeat(26).parse().map_err(|_| unknown())?;
    let hash = SecretHash::from_mac(&[0; 32]);
    key.verify(key_ref, &client, &version, "", &hash)
        .await
        .map(drop)
}
