//! Documents and commands to test with, all from small numbers, so that a failure names itself.

use keyturn_proto::notify::Outcome;
use keyturn_proto::{
    Action, ClientId, ErrorClass, MlsGroupId, Npub, RotationId, UnixMs, VersionId,
};

use crate::documents::{
    AckEntry, ActiveRotation, Actor, AdminDoc, AdminGroupDoc, AuditRecord, ClientDoc, ClientScope,
    ClientStatus, GroupState, Origin, OutboxDoc, PolicyOverrides, Quorum, RotationDoc,
    RotationState, TotpState, VersionDoc, VersionState,
};
use crate::mac::SecretHash;
use crate::store::{
    Cancel, Decision, Prepare, RecordAck, Refuse, Reserve, Revoke, Rollback, Withdraw,
};

/// When tests begin.
pub const NOW: UnixMs = UnixMs(1_760_000_000_000);
/// Default delay before the promotion, milliseconds.
pub const DELAY: u64 = 600_000;
/// Default grace, milliseconds.
pub const GRACE: u64 = 3_600_000;
/// Default time until the ack deadline, milliseconds.
pub const ACK_TIME: u64 = 1_800_000;
/// Default lifetime of a proof, milliseconds.
pub const PROOF_TIME: u64 = 300_000;
/// Default retention of ciphertext, milliseconds.
pub const RETENTION: u64 = 86_400_000;
/// The fencing number of everything that says no other.
pub const FENCE: u64 = 1;
/// The admin that asks.
pub const REQUESTER: u8 = 1;
/// Another admin.
pub const SECOND: u8 = 2;
/// One more.
pub const THIRD: u8 = 3;

/// `by` milliseconds after [`NOW`].
#[must_use]
pub fn at(by: u64) -> UnixMs {
    UnixMs(NOW.0 + by)
}

/// The client of most tests.
#[must_use]
pub fn client_id() -> ClientId {
    "ext-totp-svc".parse().expect("a valid id")
}

/// A public key.
#[must_use]
pub fn npub(n: u8) -> Npub {
    Npub::from_bytes([n; 32])
}

/// An operation id.
#[must_use]
pub fn operation(n: u32) -> RotationId {
    format!("{n:026}").parse().expect("digits are a ULID")
}

/// A version id.
#[must_use]
pub fn version_id(n: u32) -> VersionId {
    format!("{n:026}").parse().expect("digits are a ULID")
}

/// An event id.
#[must_use]
pub fn event_id(n: u32) -> String {
    format!("{n:064x}")
}

/// An audit record of a test.
#[must_use]
pub fn audit(event: &str, now: UnixMs) -> AuditRecord {
    AuditRecord {
        at: now,
        actor: Actor::Admin {
            npub: npub(REQUESTER),
        },
        event: event.to_owned(),
        reason: "test".to_owned(),
        client_id: Some(client_id()),
        rotation_id: None,
        version_id: None,
        group: None,
        nostr_event: None,
        device: None,
    }
}

/// A client without versions.
#[must_use]
pub fn client(id: ClientId) -> ClientDoc {
    ClientDoc {
        client_id: id,
        current_version: None,
        previous_version: None,
        status: ClientStatus::Active,
        admin_groups: vec!["ops".to_owned()],
        updated_at: NOW,
        last_rotation_at: None,
        policy: PolicyOverrides::default(),
        active_rotation: None,
        fence: 0,
        snapshot: Vec::new(),
    }
}

/// A version of [`client_id`].
#[must_use]
pub fn version(
    n: u32,
    rotation: Option<&RotationId>,
    state: VersionState,
    not_before: UnixMs,
) -> VersionDoc {
    let mut mac = [0u8; 32];
    mac[..4].copy_from_slice(&n.to_be_bytes());
    VersionDoc {
        client_id: client_id(),
        version_id: version_id(n),
        secret_hash: SecretHash::from_mac(&mac).as_str().to_owned(),
        algo: "HMAC-SHA-256".to_owned(),
        mac_key_ref: "local:hmac-sha-256:0000000000000000".to_owned(),
        created_at: NOW,
        not_before,
        not_after: None,
        state,
        rotated_by: rotation.map(|_| npub(REQUESTER)),
        rotation_reason: "test".to_owned(),
        rotation_id: rotation.cloned(),
        origin: Origin::Generated,
        prefilter: Some(format!("{n:08x}")),
        prehash: None,
        ack_public_key: None,
    }
}

/// An enrolled admin.
#[must_use]
pub fn admin(n: u8, totp: bool) -> AdminDoc {
    AdminDoc {
        npub: npub(n),
        active: true,
        scope: ClientScope::All,
        signature_keys: Vec::new(),
        totp: totp.then(|| TotpState {
            seed_ciphertext: format!("sealed-{n}"),
            last_step: None,
            failures: 0,
            locked_until: None,
        }),
        created_at: NOW,
        updated_at: NOW,
    }
}

/// The binding of an alias.
#[must_use]
pub fn group(alias: &str, id: Option<u8>) -> AdminGroupDoc {
    AdminGroupDoc {
        alias: alias.to_owned(),
        mls_group_id: id.map(|n| MlsGroupId::from_bytes(&[n; 16]).expect("16 bytes are an id")),
        nostr_group_id: id.map(|n| hex::encode([n; 32])),
        welcomers: vec![npub(REQUESTER)],
        status: GroupState::Active,
        updated_at: NOW,
    }
}

/// A reservation by [`REQUESTER`]: two acks, one of them proven; the requester's counts.
#[must_use]
pub fn reserve(id: &RotationId, now: UnixMs) -> Reserve {
    let after = |ms: u64| UnixMs(now.0 + ms);
    Reserve {
        rotation: RotationDoc {
            rotation_id: id.clone(),
            client_id: client_id(),
            action: Action::Rotation,
            requested_by: npub(REQUESTER),
            reason: "test".to_owned(),
            mls_group: "ops".to_owned(),
            request_digest: format!("digest-of-{id}"),
            new_version: None,
            old_version: None,
            not_before: after(DELAY),
            grace_duration_ms: GRACE,
            grace_until: None,
            distribution_message_id: None,
            readers: Vec::new(),
            quorum: Quorum {
                required: 2,
                require_proven: true,
                requester_counts: true,
                acks: Vec::new(),
            },
            state: RotationState::Reserved,
            outcome: None,
            attempt: 1,
            fence: FENCE,
            created_at: now,
            proof_expires_at: after(PROOF_TIME),
            ack_deadline: after(ACK_TIME),
            completed_at: None,
            announced_at: None,
        },
        totp_step: None,
        min_interval_ms: 0,
        revoke_living: false,
        now,
        audit: audit("rotation.reserved", now),
    }
}

/// The same as an emergency: at once, without grace.
#[must_use]
pub fn emergency(id: &RotationId, now: UnixMs) -> Reserve {
    let mut reserve = reserve(id, now);
    reserve.rotation.action = Action::Emergency;
    reserve.rotation.not_before = now;
    reserve.rotation.grace_duration_ms = 0;
    reserve.revoke_living = true;
    reserve
}

/// Version `n` with one sealed event, read by the three admins.
#[must_use]
pub fn prepare(active: &ActiveRotation, n: u32, not_before: UnixMs, now: UnixMs) -> Prepare {
    Prepare {
        active: active.clone(),
        version: version(
            n,
            Some(&active.rotation_id),
            VersionState::Pending,
            not_before,
        ),
        readers: vec![npub(REQUESTER), npub(SECOND), npub(THIRD)],
        distribution_message_id: format!("message-{n}"),
        outbox: vec![outbox(n, active, now)],
        now,
        audit: audit("rotation.prepared", now),
    }
}

/// A sealed event.
#[must_use]
pub fn outbox(n: u32, active: &ActiveRotation, now: UnixMs) -> OutboxDoc {
    OutboxDoc {
        event_id: event_id(n),
        rotation_id: active.rotation_id.clone(),
        attempt: active.attempt,
        group: "ops".to_owned(),
        epoch: 7,
        roster_hash: "00".to_owned(),
        event_json: "{}".to_owned(),
        created_at: now,
        delete_after: None,
        withdrawn_at: None,
    }
}

/// An ack for version `n`.
#[must_use]
pub fn ack(id: &RotationId, n: u32, by: u8, proven: bool, now: UnixMs) -> RecordAck {
    RecordAck {
        rotation_id: id.clone(),
        version_id: version_id(n),
        ack: AckEntry {
            npub: npub(by),
            proven,
            group: Some("ops".to_owned()),
            at: now,
        },
        retention_ms: RETENTION,
        fence: FENCE,
        now,
        audit: audit("ack.recorded", now),
    }
}

/// An end by the relay's own decision.
#[must_use]
pub fn cancel(id: &RotationId, outcome: Outcome, now: UnixMs) -> Cancel {
    Cancel {
        rotation_id: id.clone(),
        outcome,
        only_if: None,
        retention_ms: RETENTION,
        fence: Some(FENCE),
        now,
        audit: audit("rotation.ended", now),
    }
}

/// An admin's withdrawal of `target`, or of what is under way.
#[must_use]
pub fn withdraw(action: &RotationId, target: Option<&RotationId>, now: UnixMs) -> Withdraw {
    Withdraw {
        client_id: client_id(),
        target: target.cloned(),
        action_id: action.clone(),
        request_digest: format!("digest-of-{action}"),
        totp_step: None,
        retention_ms: RETENTION,
        fence: FENCE,
        now,
        audit: audit("rotation.canceled", now),
    }
}

/// A refusal of event `n`.
#[must_use]
pub fn refusal(n: u32, now: UnixMs) -> Decision {
    Decision {
        audit: AuditRecord {
            nostr_event: Some(event_id(n)),
            ..audit("request.refused", now)
        },
        refuses: Some(Refuse {
            event_id: event_id(n),
            class: ErrorClass::PolicyViolation,
            reason: "test".to_owned(),
            expires_at: UnixMs(now.0 + RETENTION),
        }),
    }
}

/// A revoke.
#[must_use]
pub fn revoke(action: &RotationId, version: Option<VersionId>, now: UnixMs) -> Revoke {
    Revoke {
        client_id: client_id(),
        version_id: version,
        action_id: action.clone(),
        request_digest: format!("digest-of-{action}"),
        totp_step: None,
        retention_ms: RETENTION,
        fence: FENCE,
        now,
        audit: audit("client.revoke", now),
    }
}

/// A rollback.
#[must_use]
pub fn rollback(action: &RotationId, now: UnixMs) -> Rollback {
    Rollback {
        client_id: client_id(),
        target: None,
        action_id: action.clone(),
        request_digest: format!("digest-of-{action}"),
        totp_step: None,
        fence: FENCE,
        now,
        audit: audit("rotation.rolled_back", now),
    }
}
