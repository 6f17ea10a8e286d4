//! Audit records, made in one way everywhere: who, what, when, why (protocol.md §6). Never a secret, never a hash of one.

use keyturn_proto::device::DeviceId;
use keyturn_proto::{ClientId, Npub, RotationId, UnixMs, VersionId};
use keyturn_store::documents::{Actor, AuditDevice, AuditRecord, RotationDoc};

use crate::admission::{Opened, Permit};

/// A record in the making.
#[derive(Clone, Debug)]
#[must_use]
pub struct Entry(AuditRecord);

impl Entry {
    /// Something that `actor` did or tried. `event` and, for refusals, `reason` are stable machine words.
    pub fn new(at: UnixMs, actor: Actor, event: &str, reason: &str) -> Self {
        Self(AuditRecord {
            at,
            actor,
            event: event.to_owned(),
            reason: reason.to_owned(),
            client_id: None,
            rotation_id: None,
            version_id: None,
            group: None,
            nostr_event: None,
            device: None,
        })
    }

    /// Something the relay does by itself.
    pub fn by_relay(at: UnixMs, event: &str, reason: &str) -> Self {
        Self::new(at, Actor::Relay, event, reason)
    }

    /// Something an admin asked for and was permitted.
    pub fn of_permit(at: UnixMs, permit: &Permit, event: &str) -> Self {
        Self::new(
            at,
            Actor::Admin {
                npub: permit.requester(),
            },
            event,
            &permit.params().rotation_reason,
        )
        .client(permit.client_id())
        .rotation(permit.action_id())
        .group(&permit.group().alias)
        .event(permit.event_id())
    }

    /// Something an opened message did or tried; the sender is what MLS proved.
    pub fn of_opened(at: UnixMs, opened: &Opened, event: &str, reason: &str) -> Self {
        Self::by_admin(at, opened.sender, event, reason)
            .group(&opened.group.alias)
            .event(&opened.event_id)
    }

    /// Something `npub` did.
    pub fn by_admin(at: UnixMs, npub: Npub, event: &str, reason: &str) -> Self {
        Self::new(at, Actor::Admin { npub }, event, reason)
    }

    /// Something the relay does to a rotation.
    pub fn of_rotation(at: UnixMs, rotation: &RotationDoc, event: &str, reason: &str) -> Self {
        let entry = Self::by_relay(at, event, reason)
            .client(&rotation.client_id)
            .rotation(&rotation.rotation_id)
            .group(&rotation.mls_group);
        match &rotation.new_version {
            Some(version) => entry.version(*version),
            None => entry,
        }
    }

    /// Names the client.
    pub fn client(mut self, client: &ClientId) -> Self {
        self.0.client_id = Some(client.clone());
        self
    }

    /// Names the operation.
    pub fn rotation(mut self, rotation: &RotationId) -> Self {
        self.0.rotation_id = Some(rotation.clone());
        self
    }

    /// Names the version.
    pub fn version(mut self, version: VersionId) -> Self {
        self.0.version_id = Some(version);
        self
    }

    /// Names the group.
    pub fn group(mut self, group: &str) -> Self {
        self.0.group = Some(group.to_owned());
        self
    }

    /// Names the device and its secret_id's accessor.
    pub fn device(mut self, device_id: DeviceId, accessor: &str) -> Self {
        self.0.device = Some(AuditDevice {
            device_id,
            nonce: None,
            accessor: Some(accessor.to_owned()),
            claimed: false,
        });
        self
    }

    /// Names the event that caused it.
    pub fn event(mut self, event: &str) -> Self {
        self.0.nostr_event = Some(event.to_owned());
        self
    }

    /// The finished record.
    #[must_use]
    pub fn done(self) -> AuditRecord {
        self.0
    }
}
