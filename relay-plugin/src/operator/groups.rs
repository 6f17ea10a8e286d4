//! The registry of admin groups. An alias binds to a group only here; names and ids inside a group never bind (architecture.md, "Who is
//! really in the group").

use keyturn_proto::{MlsGroupId, Npub, UnixMs};
use keyturn_store::documents::{AdminGroupDoc, GroupState};
use keyturn_store::store::{Store, StoreError};

use super::{AGAIN, OperatorError, about_group, audit};

/// What an alias shall mean.
pub struct Binding {
    /// The operator's name for the group.
    pub alias: String,
    /// Its MLS group id; the one we are first welcomed into when absent.
    pub mls_group_id: Option<MlsGroupId>,
    /// Its nostr_group_id, 32 bytes; likewise.
    pub nostr_group_id: Option<[u8; 32]>,
    /// Who may welcome us into it.
    pub welcomers: Vec<Npub>,
}

/// Binds an alias, or changes its binding. An id that is not given keeps its present value; a suspended group stays suspended.
///
/// # Errors
/// [`OperatorError::Value`] for an alias that cannot be one; the store's.
pub async fn bind(store: &dyn Store, binding: Binding, now: UnixMs) -> Result<(), OperatorError> {
    check_alias(&binding.alias)?;
    // The relay binds and suspends groups as well: what was changed meanwhile is read again.
    let mut tries = AGAIN;
    loop {
        match bind_once(store, &binding, now).await {
            Err(OperatorError::Store(StoreError::Conflict {
                why: "group.changed",
            })) if tries > 0 => tries -= 1,
            result => return result,
        }
    }
}

async fn bind_once(store: &dyn Store, binding: &Binding, now: UnixMs) -> Result<(), OperatorError> {
    let Binding {
        alias,
        mls_group_id,
        nostr_group_id,
        welcomers,
    } = binding;
    let known = store
        .groups()
        .await?
        .into_iter()
        .find(|group| group.alias == *alias);
    let (known_mls, known_nostr, status, read_at) = match known {
        Some(group) => (
            group.mls_group_id,
            group.nostr_group_id,
            group.status,
            group.updated_at,
        ),
        None => (None, None, GroupState::Active, now),
    };
    let group = AdminGroupDoc {
        alias: alias.clone(),
        mls_group_id: mls_group_id.clone().or(known_mls),
        nostr_group_id: nostr_group_id.map(hex::encode).or(known_nostr),
        welcomers: welcomers.clone(),
        status,
        updated_at: read_at,
    };
    let bound = group
        .mls_group_id
        .as_ref()
        .map_or("not joined yet".to_owned(), ToString::to_string);
    store
        .put_group(group, about_group(audit("group.bound", &bound, now), alias))
        .await?;
    Ok(())
}

/// Lets a suspended group act again. The operator has looked at its roster; the store cannot.
///
/// # Errors
/// [`OperatorError::Unknown`]; the store's.
pub async fn approve(store: &dyn Store, alias: &str, now: UnixMs) -> Result<(), OperatorError> {
    set_state(store, alias, GroupState::Active, "group.approved", now).await
}

/// Takes a group out of service at once: nothing is sealed in it, no request from it counts.
///
/// # Errors
/// [`OperatorError::Unknown`]; the store's.
pub async fn suspend(store: &dyn Store, alias: &str, now: UnixMs) -> Result<(), OperatorError> {
    let suspended = GroupState::Suspended {
        reason: "by the operator".to_owned(),
    };
    set_state(store, alias, suspended, "group.suspended", now).await
}

/// Every binding.
///
/// # Errors
/// The store's.
pub async fn list(store: &dyn Store) -> Result<Vec<AdminGroupDoc>, OperatorError> {
    Ok(store.groups().await?)
}

async fn set_state(
    store: &dyn Store,
    alias: &str,
    state: GroupState,
    event: &str,
    now: UnixMs,
) -> Result<(), OperatorError> {
    let record = about_group(audit(event, "by the operator", now), alias);
    match store.set_group_state(alias, state, now, record).await {
        Ok(_) => Ok(()),
        Err(StoreError::NotFound { .. }) => Err(OperatorError::Unknown {
            what: "group",
            name: alias.to_owned(),
        }),
        Err(error) => Err(error.into()),
    }
}

/// An alias is a document id and a word on command lines and in audit records.
fn check_alias(alias: &str) -> Result<(), keyturn_proto::Invalid> {
    let word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if (1..=64).contains(&alias.len())
        && alias.chars().all(word)
        && alias.starts_with(|c: char| c.is_ascii_alphanumeric())
    {
        return Ok(());
    }
    Err(keyturn_proto::Invalid::new(
        "alias",
        "1 to 64 letters, digits, '-', '_' or '.', beginning with a letter or digit",
    ))
}
