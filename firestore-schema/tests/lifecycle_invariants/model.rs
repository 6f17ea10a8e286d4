//! A store in a few maps, and random commands for it: everything that a rotation, an attacker, a second instance or a crash could send in any order.

use std::collections::BTreeMap;

use keyturn_proto::notify::Outcome;
use keyturn_proto::{RotationId, UnixMs, VersionId};
use keyturn_store::contract::fixture::{self, NOW, admin, audit, client, client_id, operation};
use keyturn_store::documents::{
    ActionDoc, ActiveRotation, AdminDoc, AdminGroupDoc, AuditRecord, ClientDoc, ClientStatus,
    GroupState, OutboxDoc, RotationDoc, VersionDoc, VersionState,
};
use keyturn_store::lifecycle::{self, Change, ClientUpdate, Family, Known, People, Verdict};
use keyturn_store::store::{ActionResult, Reserved, StoreError};
use proptest::prelude::*;

/// What the documents are, and what has ever been seen.
#[derive(Clone)]
pub struct Model {
    pub now: UnixMs,
    pub client: ClientDoc,
    pub versions: BTreeMap<VersionId, VersionDoc>,
    pub rotations: BTreeMap<RotationId, RotationDoc>,
    pub actions: BTreeMap<RotationId, ActionDoc>,
    pub admins: Vec<AdminDoc>,
    pub group: AdminGroupDoc,
    pub outbox: BTreeMap<String, OutboxDoc>,
    pub audit: Vec<AuditRecord>,
    /// Every rotation holder there ever was, so that stale ones can come back.
    pub holders: Vec<ActiveRotation>,
    next_version: u32,
}

#[derive(Clone, Debug)]
pub enum Command {
    Wait(u64),
    Reserve {
        id: u32,
        digest: u8,
        emergency: bool,
        grace: u64,
        delay: u64,
        required: u32,
        totp_step: Option<u64>,
    },
    Prepare {
        holder: prop::sample::Index,
        version: Option<prop::sample::Index>,
    },
    Ack {
        id: u32,
        by: u8,
        proven: bool,
        version: Option<prop::sample::Index>,
    },
    Promote {
        id: u32,
    },
    Cancel {
        id: u32,
        expired: bool,
        only_if: Option<prop::sample::Index>,
    },
    Withdraw {
        action: u32,
        target: Option<u32>,
    },
    Retire {
        version: prop::sample::Index,
    },
    Rollback {
        action: u32,
        target: Option<u32>,
    },
    Revoke {
        action: u32,
        version: Option<prop::sample::Index>,
    },
    TakeOver {
        holder: prop::sample::Index,
        fence: u64,
    },
    Operator(ClientStatus),
    Announce {
        id: u32,
    },
    /// The operator revokes an admin, or enrols one again.
    Admin {
        by: u8,
        active: bool,
    },
    /// The operator suspends the group, or approves it.
    Group {
        served: bool,
    },
}

/// Ids of rotations and actions overlap on purpose.
pub fn command() -> impl Strategy<Value = Command> {
    let index = any::<prop::sample::Index>;
    let id = || 0u32..6;
    let maybe = |p| prop::option::weighted(p, index());
    prop_oneof![
        4 => prop_oneof![Just(1u64), 0..400_000u64, Just(600_000), Just(3_600_000)].prop_map(Command::Wait),
        6 => (id(), 0u8..8, prop::bool::weighted(0.15), prop_oneof![Just(0u64), Just(3_600_000)],
              prop_oneof![Just(0u64), Just(600_000)], 0u32..3, prop::option::of(0u64..40))
            .prop_map(|(id, digest, emergency, grace, delay, required, totp_step)| Command::Reserve {
                id, digest: u8::from(digest == 0), emergency, grace, delay, required, totp_step }),
        8 => (index(), maybe(0.2)).prop_map(|(holder, version)| Command::Prepare { holder, version }),
        10 => (id(), 1u8..6, any::<bool>(), maybe(0.1))
            .prop_map(|(id, by, proven, version)| Command::Ack { id, by, proven, version }),
        3 => id().prop_map(|id| Command::Promote { id }),
        1 => (id(), any::<bool>(), maybe(0.4)).prop_map(|(id, expired, only_if)| Command::Cancel { id, expired, only_if }),
        1 => (id(), prop::option::of(id())).prop_map(|(action, target)| Command::Withdraw { action: action + 3, target }),
        3 => index().prop_map(|version| Command::Retire { version }),
        2 => (id(), prop::option::of(id())).prop_map(|(action, target)| Command::Rollback { action: action + 3, target }),
        1 => (id(), maybe(0.8)).prop_map(|(action, version)| Command::Revoke { action: action + 3, version }),
        2 => (index(), 0u64..4).prop_map(|(holder, fence)| Command::TakeOver { holder, fence }),
        1 => prop_oneof![4 => Just(ClientStatus::Active), 3 => Just(ClientStatus::Suspended), 1 => Just(ClientStatus::Revoked)]
            .prop_map(Command::Operator),
        1 => id().prop_map(|id| Command::Announce { id }),
        1 => (1u8..5, prop::bool::weighted(0.7)).prop_map(|(by, active)| Command::Admin { by, active }),
        1 => prop::bool::weighted(0.7).prop_map(|served| Command::Group { served }),
    ]
}

impl Model {
    pub fn new() -> Self {
        let mut model = Self {
            now: NOW,
            client: client(client_id()),
            versions: BTreeMap::new(),
            rotations: BTreeMap::new(),
            actions: BTreeMap::new(),
            // 1 to 3 are enrolled readers, 4 is enrolled but no reader, 5 is nobody.
            admins: (1..=4).map(|n| admin(n, n == 1)).collect(),
            group: fixture::group("ops", None),
            outbox: BTreeMap::new(),
            audit: Vec::new(),
            holders: Vec::new(),
            next_version: 2,
        };
        let first = fixture::version(1, None, VersionState::Current, NOW);
        let created = lifecycle::create_client(
            None,
            model.client.clone(),
            Some(first),
            audit("client.created", NOW),
        );
        model.write(created.unwrap());
        model
    }

    /// Runs one command; `Ok(true)` if it changed anything.
    pub fn run(&mut self, command: &Command) -> Result<bool, StoreError> {
        let change = self.decide(command)?;
        if let Command::Wait(ms) = command {
            self.now = UnixMs(self.now.0 + ms);
        }
        let changed = change != Change::default();
        self.write(change);
        Ok(changed)
    }

    fn decide(&mut self, command: &Command) -> Result<Change, StoreError> {
        let now = self.now;
        let missing = StoreError::NotFound { what: "rotation" };
        match command {
            Command::Wait(_) => Ok(Change::default()),
            Command::Reserve {
                id,
                digest,
                emergency,
                grace,
                delay,
                required,
                totp_step,
            } => {
                let id = operation(*id);
                let mut reserve = if *emergency {
                    fixture::emergency(&id, now)
                } else {
                    fixture::reserve(&id, now)
                };
                if !emergency {
                    reserve.rotation.grace_duration_ms = *grace;
                    reserve.rotation.not_before = UnixMs(now.0 + delay);
                }
                reserve.rotation.request_digest = format!("digest {digest}");
                reserve.rotation.quorum.required = *required;
                reserve.totp_step = *totp_step;
                reserve.rotation.fence = self.fence();
                let verdict = lifecycle::reserve(
                    self.family(),
                    self.known(&id),
                    self.active(),
                    self.admins.first(),
                    reserve,
                )?;
                if let Reserved::New(active) = &verdict.answer {
                    self.holders.push(active.clone());
                }
                Ok(verdict.change)
            }
            Command::Prepare { holder, version } => {
                let holder = self.holder(holder).ok_or(missing.clone())?;
                let rotation = self.rotations.get(&holder.rotation_id).ok_or(missing)?;
                let not_before = rotation.not_before;
                let mut prepare = fixture::prepare(&holder, self.next_version, not_before, now);
                if let Some(index) = version {
                    // A version id that was seen before must not be recorded a second time.
                    let known: Vec<_> = self.versions.values().collect();
                    prepare.version.version_id = index.get(&known).version_id;
                } else {
                    self.next_version += 1;
                }
                let exists = self.versions.contains_key(&prepare.version.version_id);
                lifecycle::prepare(self.family(), rotation.clone(), exists, prepare).map(change)
            }
            Command::Ack {
                id,
                by,
                proven,
                version,
            } => {
                let rotation = self.rotation(*id)?;
                let mut ack = fixture::ack(&rotation.rotation_id, 0, *by, *proven, now);
                ack.version_id = match version {
                    Some(index) => self.version(index),
                    None => rotation.new_version.unwrap_or(ack.version_id),
                };
                ack.fence = self.fence();
                lifecycle::record_ack(self.family(), rotation, &self.people(), ack).map(change)
            }
            Command::Promote { id } => {
                let rotation = self.rotation(*id)?;
                let audit = audit("rotation.promoted", now);
                let (people, fence) = (self.people(), self.fence());
                lifecycle::promote(self.family(), rotation, &people, 1000, fence, now, audit)
                    .map(change)
            }
            Command::Cancel {
                id,
                expired,
                only_if,
            } => {
                let rotation = self.rotation(*id)?;
                let outcome = if *expired {
                    Outcome::Expired
                } else {
                    Outcome::Canceled
                };
                let mut cancel = fixture::cancel(&rotation.rotation_id, outcome, now);
                cancel.fence = Some(self.fence());
                cancel.only_if = only_if.as_ref().and_then(|index| self.holder(index));
                lifecycle::cancel(self.family(), rotation, cancel).map(change)
            }
            Command::Withdraw { action, target } => {
                let target = target.map(operation);
                let mut withdraw = fixture::withdraw(&operation(*action), target.as_ref(), now);
                withdraw.fence = self.fence();
                let known = self.known(&withdraw.action_id);
                let decided = known.action.is_some() || known.rotation.is_some();
                let found = match &target {
                    Some(id) => self.rotations.get(id).cloned(),
                    None => self.active(),
                };
                let verdict = lifecycle::withdraw(self.family(), known, found, None, withdraw)?;
                if decided {
                    assert_eq!(verdict.change, Change::default(), "decided twice");
                }
                Ok(verdict.change)
            }
            Command::Retire { version } => {
                let id = self.version(version);
                let state = self.versions[&id].state;
                let audit = audit("version.retired", now);
                lifecycle::retire(self.family(), id, state, self.fence(), now, audit).map(change)
            }
            Command::Rollback { action, target } => {
                let mut rollback = fixture::rollback(&operation(*action), now);
                rollback.fence = self.fence();
                rollback.target = target.map(operation);
                let current = self.client.current_version;
                let made_by = current
                    .and_then(|id| self.versions[&id].rotation_id.as_ref())
                    .and_then(|id| self.rotations.get(id).cloned());
                let known = self.known(&rollback.action_id);
                let previous = self
                    .client
                    .previous_version
                    .map(|id| self.versions[&id].clone());
                let verdict = lifecycle::rollback(self.family(), known, made_by, None, rollback)?;
                if matches!(verdict.answer, ActionResult::Done(_)) {
                    let end = previous.and_then(|doc| doc.not_after);
                    assert!(
                        end.is_some_and(|end| now < end),
                        "rolled back outside grace"
                    );
                }
                Ok(verdict.change)
            }
            Command::Revoke { action, version } => {
                let version = version.as_ref().map(|index| self.version(index));
                let mut revoke = fixture::revoke(&operation(*action), version, now);
                revoke.fence = self.fence();
                let known = self.known(&revoke.action_id);
                lifecycle::revoke(self.family(), known, self.active(), true, None, revoke)
                    .map(change)
            }
            Command::TakeOver { holder, fence } => {
                let holder = self.holder(holder).ok_or(missing.clone())?;
                let rotation = self.rotations.get(&holder.rotation_id).ok_or(missing)?;
                let audit = audit("rotation.taken_over", now);
                let verdict = lifecycle::take_over(
                    self.family(),
                    rotation.clone(),
                    &holder,
                    *fence,
                    now,
                    audit,
                )?;
                self.holders.push(verdict.answer);
                Ok(verdict.change)
            }
            Command::Operator(status) => {
                let update = ClientUpdate {
                    status: Some(*status),
                    ..ClientUpdate::default()
                };
                let audit = audit("client.updated", now);
                lifecycle::update_client(self.family(), self.active(), true, update, now, audit)
                    .map(change)
            }
            Command::Announce { id } => lifecycle::announced(self.rotation(*id)?, now).map(change),
            Command::Admin { by, active } => {
                let known = self
                    .admins
                    .iter()
                    .find(|doc| doc.npub == fixture::npub(*by));
                let known = known.expect("1 to 4 are enrolled").clone();
                let admin = AdminDoc {
                    active: *active,
                    ..known.clone()
                };
                let audit = audit("admin.changed", now);
                lifecycle::enrol(Some(known), admin, audit).map(change)
            }
            Command::Group { served } => {
                let state = if *served {
                    GroupState::Active
                } else {
                    GroupState::Suspended {
                        reason: "test".to_owned(),
                    }
                };
                if let Some(group) = lifecycle::set_group_state(&self.group, state, now) {
                    self.group = group;
                }
                Ok(Change::default())
            }
        }
    }

    /// Of whoever holds the lease: at least that of the last change.
    fn fence(&self) -> u64 {
        self.client.fence.max(fixture::FENCE)
    }

    fn write(&mut self, change: Change) {
        let Change {
            client,
            versions,
            voided,
            rotations,
            actions,
            admin,
            outbox,
            expire_outbox,
            audit,
        } = change;
        if let Some(client) = client {
            assert!(client.fence >= self.client.fence, "a fence never goes back");
            self.client = client;
        }
        for id in voided {
            self.versions
                .remove(&id)
                .expect("a void version was recorded");
        }
        for doc in versions {
            self.versions.insert(doc.version_id, doc);
        }
        for doc in rotations {
            self.rotations.insert(doc.rotation_id.clone(), doc);
        }
        for doc in actions {
            self.actions.insert(doc.action_id.clone(), doc);
        }
        if let Some(doc) = admin {
            self.admins.retain(|known| known.npub != doc.npub);
            self.admins.insert(0, doc);
        }
        for (rotation, at) in expire_outbox {
            for doc in self.outbox.values_mut() {
                if doc.rotation_id == rotation {
                    doc.delete_after = Some(doc.delete_after.map_or(at, |known| known.min(at)));
                }
            }
        }
        for doc in outbox {
            self.outbox.insert(doc.event_id.clone(), doc);
        }
        self.audit.extend(audit);
    }

    fn family(&self) -> Family {
        let living = self
            .client
            .snapshot
            .iter()
            .map(|entry| self.versions[&entry.version_id].clone())
            .collect();
        Family {
            client: self.client.clone(),
            living,
        }
    }

    pub fn people(&self) -> People {
        People {
            admins: self.admins.clone(),
            groups: vec![self.group.clone()],
        }
    }

    fn known(&self, id: &RotationId) -> Known {
        Known {
            rotation: self.rotations.get(id).cloned(),
            action: self.actions.get(id).cloned(),
        }
    }

    fn active(&self) -> Option<RotationDoc> {
        let active = self.client.active_rotation.as_ref()?;
        Some(self.rotations[&active.rotation_id].clone())
    }

    fn rotation(&self, id: u32) -> Result<RotationDoc, StoreError> {
        self.rotations
            .get(&operation(id))
            .cloned()
            .ok_or(StoreError::NotFound { what: "rotation" })
    }

    /// Mostly the present holder, sometimes one from the past.
    fn holder(&self, index: &prop::sample::Index) -> Option<ActiveRotation> {
        if index.index(4) < 3
            && let Some(active) = &self.client.active_rotation
        {
            return Some(active.clone());
        }
        (!self.holders.is_empty()).then(|| index.get(&self.holders).clone())
    }

    fn version(&self, index: &prop::sample::Index) -> VersionId {
        let ids: Vec<VersionId> = self.versions.keys().copied().collect();
        *index.get(&ids)
    }
}

fn change<T>(verdict: Verdict<T>) -> Change {
    verdict.change
}
