//! Enrolling and revoking admins.

use keyturn_proto::{Npub, UnixMs};
use keyturn_store::documents::{AdminDoc, ClientScope, ProvenKey, TotpState};
use keyturn_store::store::Store;
use serde::Serialize;
use zeroize::Zeroizing;

use super::{OperatorError, audit};
use crate::admission::SeedKey;
use crate::admission::totp_seed::Seed;

/// Who shall be enrolled, and for what.
pub struct Enrolment {
    /// Who.
    pub npub: Npub,
    /// Which clients.
    pub scope: ClientScope,
    /// MLS signature keys proven by signed events ([`super::proofs`]); others are found later, when the admin publishes a key package.
    pub keys: Vec<ProvenKey>,
    /// Makes a new TOTP seed for an admin that has one; the old one is dead from then on.
    pub new_seed: bool,
    /// What authenticator apps show as the issuer.
    pub issuer: String,
}

/// What an enrolment gave.
pub struct Enrolled {
    /// The `otpauth://` URI of a seed just made. It exists only here: it is shown once and cannot be had again.
    pub otpauth: Option<Zeroizing<String>>,
}

/// Enrols an admin, or changes an enrolment: the scope is replaced, keys are added, and the TOTP seed stays unless a new one is asked for. An
/// admin revoked before starts anew: new seed, and no key proven in the former life.
///
/// # Errors
/// [`OperatorError`]; nothing was changed, but keys may be missing when the store failed half-way: enrol again.
pub async fn enrol(
    store: &dyn Store,
    seed_key: &SeedKey,
    enrolment: Enrolment,
    now: UnixMs,
) -> Result<Enrolled, OperatorError> {
    let Enrolment {
        npub,
        scope,
        keys,
        new_seed,
        issuer,
    } = enrolment;
    let known = store.admin(&npub).await?.filter(|admin| admin.active);
    let (created_at, signature_keys, kept) = match known {
        Some(AdminDoc {
            created_at,
            signature_keys,
            totp,
            ..
        }) => (created_at, signature_keys, totp.filter(|_| !new_seed)),
        None => (now, Vec::new(), None),
    };
    let (totp, otpauth) = match kept {
        Some(totp) => (totp, None),
        None => {
            let seed = Seed::generate()?;
            let otpauth = seed.otpauth(&issuer, &npub.to_string())?;
            let seed_ciphertext = seed_key.seal(&seed, &npub)?;
            let fresh = TotpState {
                seed_ciphertext,
                last_step: None,
                failures: 0,
                locked_until: None,
            };
            (fresh, Some(otpauth))
        }
    };
    let event = if otpauth.is_some() {
        "admin.enrolled"
    } else {
        "admin.changed"
    };
    let admin = AdminDoc {
        npub,
        active: true,
        scope,
        signature_keys,
        totp: Some(totp),
        created_at,
        updated_at: now,
    };
    store
        .put_admin(admin, audit(event, &npub.to_string(), now))
        .await?;
    for key in keys {
        let record = audit("admin.key_proven", &format!("{npub} {}", key.key), now);
        store.prove_key(&npub, key, record).await?;
    }
    Ok(Enrolled { otpauth })
}

/// Ends an enrolment at once: no request, ack or delivery counts for this npub any more.
///
/// # Errors
/// [`OperatorError::Unknown`]; the store's.
pub async fn revoke(store: &dyn Store, npub: &Npub, now: UnixMs) -> Result<(), OperatorError> {
    let admin = store
        .admin(npub)
        .await?
        .ok_or_else(|| OperatorError::Unknown {
            what: "admin",
            name: npub.to_string(),
        })?;
    let revoked = AdminDoc {
        active: false,
        updated_at: now,
        ..admin
    };
    store
        .put_admin(revoked, audit("admin.revoked", &npub.to_string(), now))
        .await?;
    Ok(())
}

/// An admin as listed: no seed, not even encrypted.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct AdminView {
    /// Who.
    pub npub: Npub,
    /// False after a revoke.
    pub active: bool,
    /// Which clients.
    pub scope: ClientScope,
    /// Proven MLS signature keys, hex.
    pub signature_keys: Vec<String>,
    /// Whether a TOTP seed is enrolled.
    pub totp: bool,
    /// Wrong codes in a row.
    pub totp_failures: u32,
    /// Locked out until.
    pub locked_until: Option<UnixMs>,
    /// Since when.
    pub created_at: UnixMs,
}

/// Everybody ever enrolled.
///
/// # Errors
/// The store's.
pub async fn list(store: &dyn Store) -> Result<Vec<AdminView>, OperatorError> {
    Ok(store.admins().await?.into_iter().map(view).collect())
}

fn view(admin: AdminDoc) -> AdminView {
    let AdminDoc {
        npub,
        active,
        scope,
        signature_keys,
        totp,
        created_at,
        updated_at: _,
    } = admin;
    AdminView {
        npub,
        active,
        scope,
        signature_keys: signature_keys
            .into_iter()
            .map(|proven| proven.key)
            .collect(),
        totp: totp.is_some(),
        totp_failures: totp.as_ref().map_or(0, |totp| totp.failures),
        locked_until: totp.and_then(|totp| totp.locked_until),
        created_at,
    }
}
