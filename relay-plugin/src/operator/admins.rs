//! Enrolling and revoking admins.

use keyturn_proto::notify::Outcome;
use keyturn_proto::{ClientId, Npub, RotationId, UnixMs};
use keyturn_store::documents::{ActiveRotation, AdminDoc, ClientScope, ProvenKey, TotpState};
use keyturn_store::lifecycle::quorum::enrolled_for;
use keyturn_store::store::{Cancel, Store, StoreError};
use serde::Serialize;
use zeroize::Zeroizing;

use super::{AGAIN, OperatorError, about_client, audit};
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
    /// Rotations that ended because the change of scope took the right to their secret away.
    pub withdrawn: Vec<Withdrawn>,
}

/// A rotation that ended because somebody can read its pending secret who may not any more.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Withdrawn {
    /// Which.
    pub rotation_id: RotationId,
    /// Whose.
    pub client_id: ClientId,
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
    // The relay changes the document as well, with each key it finds proven and each code: what was changed meanwhile is read again.
    let mut tries = AGAIN;
    loop {
        match enrol_once(store, seed_key, &enrolment, now).await {
            Err(OperatorError::Store(StoreError::Conflict {
                why: "admin.changed",
            })) if tries > 0 => tries -= 1,
            result => return result,
        }
    }
}

async fn enrol_once(
    store: &dyn Store,
    seed_key: &SeedKey,
    enrolment: &Enrolment,
    now: UnixMs,
) -> Result<Enrolled, OperatorError> {
    let Enrolment {
        npub,
        scope,
        keys,
        new_seed,
        issuer,
    } = enrolment;
    let npub = *npub;
    let known = store.admin(&npub).await?;
    let read_at = known.as_ref().map_or(now, |admin| admin.updated_at);
    let known = known.filter(|admin| admin.active);
    let (created_at, signature_keys, kept) = match known {
        Some(AdminDoc {
            created_at,
            signature_keys,
            totp,
            ..
        }) => (created_at, signature_keys, totp.filter(|_| !*new_seed)),
        None => (now, Vec::new(), None),
    };
    let (totp, otpauth) = match kept {
        Some(totp) => (totp, None),
        None => {
            let seed = Seed::generate()?;
            let otpauth = seed.otpauth(issuer, &npub.to_string())?;
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
        scope: scope.clone(),
        signature_keys,
        totp: Some(totp),
        created_at,
        updated_at: read_at,
    };
    store
        .put_admin(admin.clone(), audit(event, &npub.to_string(), now))
        .await?;
    for key in keys {
        let record = audit("admin.key_proven", &format!("{npub} {}", key.key), now);
        store.prove_key(&npub, key.clone(), record).await?;
    }
    let withdrawn = withdraw(store, &admin, now).await?;
    Ok(Enrolled { otpauth, withdrawn })
}

/// Ends an enrolment at once: no request, ack or delivery counts for this npub any more, and what it has acked and was not promoted counts no
/// more. Rotations whose pending secret it can read are withdrawn.
///
/// # Errors
/// [`OperatorError::Unknown`]; the store's. If it fails after the enrolment ended, no rotation concerned can be promoted all the same: repeat it.
pub async fn revoke(
    store: &dyn Store,
    npub: &Npub,
    now: UnixMs,
) -> Result<Vec<Withdrawn>, OperatorError> {
    let mut tries = AGAIN;
    loop {
        let admin = store
            .admin(npub)
            .await?
            .ok_or_else(|| OperatorError::Unknown {
                what: "admin",
                name: npub.to_string(),
            })?;
        let revoked = AdminDoc {
            active: false,
            ..admin
        };
        let record = audit("admin.revoked", &npub.to_string(), now);
        match store.put_admin(revoked.clone(), record).await {
            Ok(()) => return withdraw(store, &revoked, now).await,
            Err(StoreError::Conflict {
                why: "admin.changed",
            }) if tries > 0 => tries -= 1,
            Err(error) => return Err(error.into()),
        }
    }
}

/// Ends every rotation under way whose pending secret this admin can read and may not: it is known to somebody who is not trusted any more. This
/// only does at once what the store does anyway: it judges the readers again before it promotes.
async fn withdraw(
    store: &dyn Store,
    admin: &AdminDoc,
    now: UnixMs,
) -> Result<Vec<Withdrawn>, OperatorError> {
    let mut withdrawn = Vec::new();
    for rotation in store.active_rotations().await? {
        let reads = rotation.readers.contains(&admin.npub);
        if !reads || enrolled_for(admin, &rotation.client_id) {
            continue;
        }
        let mut record = about_client(
            audit("rotation.canceled", "reader.revoked", now),
            &rotation.client_id,
        );
        record.rotation_id = Some(rotation.rotation_id.clone());
        record.version_id = rotation.new_version;
        let cancel = Cancel {
            rotation_id: rotation.rotation_id.clone(),
            outcome: Outcome::Canceled,
            only_if: Some(ActiveRotation {
                rotation_id: rotation.rotation_id.clone(),
                attempt: rotation.attempt,
                fence: rotation.fence,
            }),
            retention_ms: 0,
            fence: None,
            now,
            audit: record,
        };
        match store.cancel(cancel).await {
            Ok(_) => withdrawn.push(Withdrawn {
                rotation_id: rotation.rotation_id,
                client_id: rotation.client_id,
            }),
            // It ended, or began anew for those who may read it now.
            Err(StoreError::Conflict { .. } | StoreError::Fenced) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(withdrawn)
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
