//! A client's snapshot, made ready: always two slots, so that every call does the same work whatever the client has.

use std::sync::Arc;
use std::time::Duration;

use keyturn_proto::{ClientId, PresentedSecret, UnixMs, VersionId};
use subtle::ConstantTimeEq as _;

use super::book::Trust;
use super::coverage::Coverage;
use super::limits::Weight;
use super::memo::{Memo, MemoKey, MemoPrefix};
use super::source::ClientSnapshot;
use super::{Verified, Which};
use crate::documents::{ClientStatus, SnapshotEntry, VersionState};
use crate::mac::SecretHash;
use crate::mac::prehash::BcryptSetting;

/// Tolerance for clocks that disagree; never applied to a dead version, because dead versions are not in the snapshot.
const TOLERANCE: Duration = Duration::from_secs(2);

/// What is known of a client that is not listened to is read again sooner than it would be, but no sooner than this, when a secret is presented that waits to be promoted.
const AWAITED: Duration = Duration::from_secs(1);

/// One client as of `read_at`.
pub(super) struct Cached {
    pub(super) client_id: Option<ClientId>,
    read_at: UnixMs,
    pub(super) revision: u64,
    coverage: Option<Coverage>,
    /// Current, then previous.
    pub(super) slots: [Slot; 2],
    /// Prefilter of the version that waits to be promoted.
    pending: Option<[u8; 4]>,
}

/// A place for a version; an empty one costs the same as a full one.
pub(super) struct Slot {
    prefix: MemoPrefix,
    pub(super) entry: Option<Entry>,
}

/// A version that may verify inside its window.
pub(super) struct Entry {
    pub(super) version_id: VersionId,
    which: Which,
    not_before: UnixMs,
    not_after: Option<UnixMs>,
    pub(super) hash: SecretHash,
    pub(super) key_ref: String,
    /// `None` for an imported secret.
    prefilter: Option<[u8; 4]>,
    /// For a secret that was imported as a bcrypt hash.
    pub(super) prehash: Option<Arc<BcryptSetting>>,
}

impl Cached {
    pub(super) fn of(
        memo: &Memo,
        client: &ClientId,
        snapshot: ClientSnapshot,
        read_at: UnixMs,
    ) -> Self {
        let place = |state, which| {
            let entry = snapshot
                .entries
                .iter()
                .find(|entry| entry.state == state)
                .filter(|_| snapshot.status == ClientStatus::Active)
                .and_then(|entry| Entry::of(entry, which));
            Slot::new(memo, client.as_str(), entry)
        };
        Self {
            client_id: Some(client.clone()),
            read_at,
            revision: snapshot.revision,
            slots: [
                place(VersionState::Current, Which::Current),
                place(VersionState::Grace, Which::Previous),
            ],
            pending: snapshot
                .entries
                .iter()
                .find(|entry| entry.state == VersionState::Pending)
                .filter(|_| snapshot.status == ClientStatus::Active)
                .and_then(|entry| prefilter(entry).ok().flatten()),
            coverage: snapshot.coverage,
        }
    }

    /// A client that does not exist: one for all of them. When that was found out is not in it.
    pub(super) fn nobody(memo: &Memo) -> Self {
        Self {
            client_id: None,
            read_at: UnixMs(0),
            revision: 0,
            coverage: None,
            slots: [Slot::new(memo, "", None), Slot::new(memo, "", None)],
            pending: None,
        }
    }

    /// Whether it can be used without asking anybody.
    pub(super) fn is_fresh(&self, trust: &Trust, now: UnixMs) -> bool {
        self.is_heard(trust, now) || self.age(now) < trust.snapshot_ttl
    }

    /// Whether a change would have been told.
    fn is_heard(&self, trust: &Trust, now: UnixMs) -> bool {
        self.coverage.as_ref().is_some_and(|coverage| {
            coverage.touch();
            coverage.is_open() && age(coverage.true_at(), now) < trust.heartbeat_limit
        })
    }

    /// How long ago it was last known to be so.
    pub(super) fn age(&self, now: UnixMs) -> Duration {
        let heard = self
            .coverage
            .as_ref()
            .map_or(Duration::MAX, |coverage| age(coverage.true_at(), now));
        heard.min(age(self.read_at, now))
    }

    /// Whether this is most likely the secret of the version that waits: one guess in four billion looks like it.
    pub(super) fn awaits(&self, prefilter: &[u8; 4], looks_generated: bool) -> bool {
        self.pending
            .is_some_and(|expected| looks_generated & bool::from(expected.ct_eq(prefilter)))
    }

    /// Whether a promotion may have happened that nobody would have told of.
    pub(super) fn may_be_overtaken(&self, trust: &Trust, now: UnixMs) -> bool {
        !self.is_heard(trust, now) && self.age(now) >= AWAITED
    }

    /// The versions that may verify, current first.
    pub(super) fn living(&self) -> impl Iterator<Item = VersionId> + '_ {
        self.slots
            .iter()
            .filter_map(|slot| slot.entry.as_ref().map(|entry| entry.version_id))
    }
}

/// What comes from the future is of no known age: the clock has been set back.
pub(super) fn age(at: UnixMs, now: UnixMs) -> Duration {
    if at > now.plus(TOLERANCE) {
        return Duration::MAX;
    }
    now.since(at)
}

impl Slot {
    fn new(memo: &Memo, client: &str, entry: Option<Entry>) -> Self {
        let prefix = match &entry {
            Some(entry) => memo.prefix([
                client,
                &entry.version_id.to_string(),
                entry.hash.as_str(),
                &entry.key_ref,
                entry
                    .prehash
                    .as_ref()
                    .map_or("", |setting| setting.as_str()),
            ]),
            // No version id is empty, so nothing remembered can ever hit.
            None => memo.prefix([client, "", "", "", ""]),
        };
        Self { prefix, entry }
    }

    pub(super) fn memo_key(&self, secret: &PresentedSecret) -> MemoKey {
        self.prefix.key(secret)
    }

    /// The answer if the secret is right: only inside the window.
    pub(super) fn verified(&self, now: UnixMs) -> Option<Verified> {
        let entry = self.entry.as_ref()?;
        let begun = entry.not_before <= now.plus(TOLERANCE);
        let over = entry
            .not_after
            .is_some_and(|end| now >= end.plus(TOLERANCE));
        (begun && !over).then_some(Verified {
            version_id: entry.version_id,
            which: entry.which,
        })
    }

    /// Whether the MAC key is worth asking.
    pub(super) fn passes(&self, prefilter: &[u8; 4], looks_generated: bool) -> bool {
        match self.entry.as_ref().map(|entry| entry.prefilter) {
            None => false,
            Some(None) => true,
            Some(Some(expected)) => looks_generated & bool::from(expected.ct_eq(prefilter)),
        }
    }
}

impl Entry {
    /// What it costs to ask about it.
    pub(super) fn weight(&self) -> Weight {
        self.prehash
            .as_ref()
            .map_or(Weight::ONE, |setting| Weight::of_bcrypt(setting.cost()))
    }

    /// `None` for an entry that breaks the schema: it cannot verify, and must not stop the other one.
    fn of(entry: &SnapshotEntry, which: Which) -> Option<Self> {
        let prehash = match entry.prehash.as_deref().map(BcryptSetting::parse) {
            None => Some(None),
            Some(setting) => setting.ok().map(|setting| Some(Arc::new(setting))),
        };
        let parsed = prefilter(entry)
            .ok()
            .zip(prehash)
            .zip(SecretHash::parse(&entry.secret_hash).ok());
        let Some(((prefilter, prehash), hash)) = parsed else {
            tracing::error!(version = %entry.version_id, "verify snapshot is damaged");
            return None;
        };
        Some(Self {
            version_id: entry.version_id,
            which,
            not_before: entry.not_before,
            not_after: entry.not_after,
            hash,
            key_ref: entry.mac_key_ref.clone(),
            prefilter,
            prehash,
        })
    }
}

/// `None` for an imported secret.
fn prefilter(entry: &SnapshotEntry) -> Result<Option<[u8; 4]>, hex::FromHexError> {
    let Some(text) = &entry.prefilter else {
        return Ok(None);
    };
    let mut bytes = [0u8; 4];
    hex::decode_to_slice(text, &mut bytes).map(|()| Some(bytes))
}
