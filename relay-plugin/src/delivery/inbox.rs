//! The member's encrypted inbox: what is kept of an opened message, and what waits there.
//!
//! Opening a message destroys its MLS key, so the decision is made inside that very transaction (architecture.md, step 0). What must always
//! hold: only requests and acks are kept, never anything that bears a secret; a row goes when its effect is in the store.

use std::collections::{BTreeMap, HashSet};

use keyturn_mls::{AppMessage, Disposition, InboxRow, MlsGroupId};
use keyturn_proto::inner::InnerKind;
use keyturn_proto::{Inner, Npub, ServiceNotify, kinds};
use keyturn_store::documents::AdminGroupDoc;
use nostr::PublicKey;
use zeroize::Zeroizing;

use super::service_member::{ServiceError, ServiceMember, failed, is_bound, npub};
use crate::admission::{GroupContext, Leaf, Opened};
use crate::rotation::audit::Entry;

/// A request or an ack in the inbox.
pub struct Waiting {
    /// To be named when it is done.
    pub row: i64,
    /// What it is.
    pub kind: InnerKind,
    /// The message.
    pub opened: Opened,
}

/// A message that was consumed and not kept, and why.
pub(super) struct Dropped {
    pub(super) sender: PublicKey,
    pub(super) event: String,
    pub(super) reason: &'static str,
}

/// Somebody's word that an event of this group has been answered.
pub(super) struct Answer {
    pub(super) by: Leaf,
    pub(super) group: MlsGroupId,
    pub(super) event: String,
}

/// What was made of the messages of one call, beside the inbox.
#[derive(Default)]
pub(super) struct Taken {
    pub(super) dropped: Vec<Dropped>,
    /// What a leaf under a sibling's npub says it has answered: true only if that sibling has signed the leaf's key.
    pub(super) answered: Vec<Answer>,
    /// Messages of a sibling that bear a secret: opened because the ratchet has to advance, and gone.
    pub(super) notifies: u32,
}

/// Kinds of rumor that announce a request, and an ack.
const REQUESTS: [u16; 2] = [kinds::SERVICE_REQUEST, kinds::ROTATE_REQUEST];
const ACKS: [u16; 2] = [kinds::ROTATE_ACK, kinds::SERVICE_ACK];

fn is_sent_as(message: &AppMessage, kinds: &[u16]) -> bool {
    let rumor = message.rumor.as_ref();
    rumor.is_some_and(|rumor| kinds.contains(&rumor.kind.as_u16()))
}

/// What is made of a message, inside the transaction that opens it.
pub(super) fn decide(
    message: &AppMessage,
    siblings: &HashSet<Npub>,
    taken: &mut Taken,
) -> Disposition {
    let kind = std::str::from_utf8(&message.body).map_or(InnerKind::Foreign, Inner::classify);
    if siblings.contains(&npub(&message.sender)) {
        return by_a_sibling(message, kind, taken);
    }
    let dropped = &mut taken.dropped;
    let mut drop_as = |reason| {
        dropped.push(Dropped {
            sender: message.sender,
            event: message.event_id.to_hex(),
            reason,
        });
        Disposition::Consume
    };
    match kind {
        // Removed since: no longer one who may ask or ack.
        InnerKind::Request | InnerKind::Ack if !message.still_member => {
            drop_as("sender.left_group")
        }
        InnerKind::Request | InnerKind::Ack => Disposition::Inbox(message.body.to_vec()),
        // Only the relay makes these. Somebody else's is not kept: it may bear a secret.
        InnerKind::Notify => drop_as("notify.by_a_member"),
        // Sent as one of ours, and no JSON object at all: admission refuses it, so that its sender hears of it.
        InnerKind::Foreign if is_sent_as(message, &REQUESTS) && message.still_member => {
            Disposition::Inbox(message.body.to_vec())
        }
        InnerKind::Foreign if is_sent_as(message, &ACKS) => drop_as("ack.malformed"),
        InnerKind::Service | InnerKind::Foreign => Disposition::Consume,
    }
}

/// Another instance's word is for the admins. Nothing of it is kept: not what it seals for them, nor a request, which a service never makes.
fn by_a_sibling(message: &AppMessage, kind: InnerKind, taken: &mut Taken) -> Disposition {
    match kind {
        InnerKind::Notify => taken.notifies += 1,
        InnerKind::Service => {
            let notify = serde_json::from_slice::<ServiceNotify>(&message.body);
            let event = notify.ok().and_then(|notify| notify.in_reply_to);
            taken.answered.extend(event.map(|event| Answer {
                by: Leaf {
                    npub: npub(&message.sender),
                    signature_key: message.signature_key.as_bytes().to_vec(),
                },
                group: message.group.clone(),
                event,
            }));
        }
        InnerKind::Request | InnerKind::Ack => taken.dropped.push(Dropped {
            sender: message.sender,
            event: message.event_id.to_hex(),
            reason: "sibling.asks",
        }),
        InnerKind::Foreign => {}
    }
    Disposition::Consume
}

impl ServiceMember {
    /// What waits in the inbox after row `after` (0 for all of it), oldest first, at most `limit`. Rows of groups that the registry does not name
    /// are dropped: nobody there is entitled to anything.
    ///
    /// # Errors
    /// [`ServiceError`].
    pub async fn inbox(&self, after: i64, limit: u32) -> Result<Vec<Waiting>, ServiceError> {
        let rows = self.member().call(move |member| {
            let rows = member.inbox_after(after, limit)?;
            let mut hashes = BTreeMap::new();
            for row in &rows {
                if !hashes.contains_key(&row.group) {
                    let hash = member.roster_hash(&row.group)?;
                    let hash = hash.map(|hash| hash.to_hex()).unwrap_or_default();
                    hashes.insert(row.group.clone(), hash);
                }
            }
            Ok::<_, keyturn_mls::error::StoreError>((rows, hashes))
        });
        let (rows, hashes) = rows.await?.map_err(failed)?;
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let groups = self.store().groups().await?;
        let mut waiting = Vec::with_capacity(rows.len());
        for row in rows {
            let (id, sender, event) = (row.id, npub(&row.sender), row.event_id.to_hex());
            match opened(row, &groups, &hashes) {
                Some((kind, opened)) => waiting.push(Waiting {
                    row: id,
                    kind,
                    opened,
                }),
                None => {
                    let entry =
                        Entry::by_admin(self.now(), sender, "message.dropped", "group.not_bound");
                    self.audit_junk(entry.event(&event).done()).await;
                    self.done(id).await?;
                }
            }
        }
        Ok(waiting)
    }

    /// An inbox row was dealt with.
    ///
    /// # Errors
    /// [`ServiceError`]; it will be dealt with again, which changes nothing.
    pub async fn done(&self, row: i64) -> Result<(), ServiceError> {
        let done = self.member().call(move |member| member.inbox_done(row));
        done.await?.map(drop).map_err(failed)
    }
}

fn opened(
    row: InboxRow,
    groups: &[AdminGroupDoc],
    roster_hashes: &BTreeMap<MlsGroupId, String>,
) -> Option<(InnerKind, Opened)> {
    let group = groups.iter().find(|doc| is_bound(doc, &row.group))?;
    let json = Zeroizing::new(std::str::from_utf8(&row.body).ok()?.to_owned());
    let opened = Opened {
        event_id: row.event_id.to_hex(),
        received_at: row.received_at,
        group: GroupContext {
            alias: group.alias.clone(),
            roster_hash: roster_hashes.get(&row.group).cloned().unwrap_or_default(),
            mls_group_id: row.group,
            epoch: row.epoch,
        },
        sender: npub(&row.sender),
        leaf_signature_key: row.signature_key.as_bytes().to_vec(),
        json,
    };
    Some((Inner::classify(&opened.json), opened))
}
