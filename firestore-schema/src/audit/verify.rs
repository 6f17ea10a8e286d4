//! Checks a chain: entry by entry in the order of their ids, then against the head.
//!
//! It looks at what was stored, whoever stored it, so nothing found here is an error of the check itself. An entry is read again from its fields; no
//! hash that was stored is believed.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use super::chain::{GENESIS, chain_id, place};
use super::encode;
use crate::documents::{AuditChainDoc, AuditEntry, AuditRecord};
use crate::store::Stored;

/// Something that does not belong in an untouched chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "finding", rename_all = "snake_case")]
pub enum Finding {
    /// Entries are missing between two that are there.
    Removed {
        /// The first one missing.
        from: u64,
        /// The last one missing.
        to: u64,
    },
    /// The content is not what its hash says.
    Edited {
        /// Which entry.
        seq: u64,
    },
    /// It does not commit to the entry before it: that one was replaced, or this one.
    Unlinked {
        /// Which entry.
        seq: u64,
    },
    /// An entry lies in the place of another, or comes out of order.
    Reordered {
        /// The place.
        place: u64,
        /// The `seq` found in it.
        seq: u64,
    },
    /// An entry that belongs to another chain, or to none.
    Foreign {
        /// Its document id.
        id: String,
    },
    /// It does not read as an entry or a head at all.
    Unreadable {
        /// Its document id.
        id: String,
    },
    /// The last entries are missing.
    Truncated {
        /// The last one that is there; 0 for none.
        last: u64,
        /// The last one by the head.
        head: u64,
    },
    /// There are entries, but no head.
    HeadMissing {
        /// The last entry.
        last: u64,
    },
    /// The head names another hash for the last entry, or is none of this chain.
    HeadDiffers {
        /// Which entry.
        seq: u64,
    },
    /// Entries follow that the head knows nothing of.
    BeyondHead {
        /// The last entry.
        last: u64,
        /// The last one by the head.
        head: u64,
    },
    /// What the head says of its client is not what the client document says: one of them was written past the other.
    SummaryDiffers {
        /// Fields of the head.
        fields: Vec<&'static str>,
    },
    /// The head says something of a client that is not there.
    ClientMissing,
    /// There is a client, but no chain: nothing tells who made it.
    ChainMissing,
    /// Somebody noted another hash for this entry, or the entry is not there: the chain was written anew, or cut off together with its head.
    Rewritten {
        /// Which entry.
        seq: u64,
    },
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Removed { from, to } if from == to => write!(f, "entry {from} was removed"),
            Self::Removed { from, to } => write!(f, "entries {from} to {to} were removed"),
            Self::Edited { seq } => write!(f, "entry {seq} was edited"),
            Self::Unlinked { seq } => {
                write!(
                    f,
                    "entry {seq} does not follow the one before: one of them was replaced"
                )
            }
            Self::Reordered { place, seq } => {
                write!(f, "entry {seq} was found in the place of entry {place}")
            }
            Self::Foreign { id } => write!(f, "{id} does not belong here"),
            Self::Unreadable { id } => write!(f, "{id} cannot be read"),
            Self::Truncated { last, head } => {
                write!(f, "the head names entry {head}, but the last one is {last}")
            }
            Self::HeadMissing { last } => {
                write!(f, "there are entries up to {last}, but no head")
            }
            Self::HeadDiffers { seq } => write!(f, "the head is not that of entry {seq}"),
            Self::BeyondHead { last, head } => {
                write!(
                    f,
                    "the head names entry {head}, but there are entries up to {last}"
                )
            }
            Self::SummaryDiffers { fields } => write!(
                f,
                "the head's {} and the client document differ",
                fields.join(", ")
            ),
            Self::ClientMissing => write!(f, "the head tells of a client that is not there"),
            Self::ChainMissing => write!(f, "the client is there, but no chain tells of it"),
            Self::Rewritten { seq } => write!(f, "entry {seq} is not the one that was noted"),
        }
    }
}

/// A chain under check. Holds one hash, however long the chain is.
#[derive(Debug)]
pub struct ChainCheck {
    id: String,
    /// Known from the first entry that belongs here.
    name: Option<String>,
    last: u64,
    /// Hash of the entry at `last`; `None` after a gap, when nothing can be said of the link.
    previous: Option<String>,
    /// The first entry may have any place: what comes before it was not asked for.
    partial: bool,
    /// Hashes that were noted elsewhere, by `seq`; taken out when they were met.
    noted: BTreeMap<u64, String>,
    findings: Vec<Finding>,
}

impl ChainCheck {
    /// Of the chain whose head has this document id.
    #[must_use]
    pub fn new(id: &str) -> Self {
        Self {
            id: id.to_owned(),
            name: None,
            last: 0,
            previous: Some(GENESIS.to_owned()),
            partial: false,
            noted: BTreeMap::new(),
            findings: Vec::new(),
        }
    }

    /// A chain whose beginning is not at hand.
    #[must_use]
    pub fn partial(id: &str) -> Self {
        Self {
            partial: true,
            ..Self::new(id)
        }
    }

    /// Expects an entry to be the one that somebody noted. This finds even a chain that was written anew from some point on, head and all.
    pub fn expect(&mut self, seq: u64, hash: &str) {
        self.noted.insert(seq, hash.to_owned());
    }

    /// The document id of its head.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The chain's name, once an entry has told it.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// `seq` of the last entry seen.
    #[must_use]
    pub fn last(&self) -> u64 {
        self.last
    }

    /// The hash that the last entry bears; `None` if it could not be read.
    #[must_use]
    pub fn last_hash(&self) -> Option<&str> {
        self.previous.as_deref()
    }

    /// Takes the next entry.
    pub fn push(&mut self, stored: &Stored<AuditEntry>) {
        let seq = match place(&stored.id) {
            Some((chain, seq)) if chain == self.id => seq,
            _ => {
                return self.found(Finding::Foreign {
                    id: stored.id.clone(),
                });
            }
        };
        if seq <= self.last {
            return self.found(Finding::Reordered {
                place: self.last + 1,
                seq,
            });
        }
        if self.partial && self.last == 0 {
            self.previous = None;
        } else if seq > self.last + 1 {
            self.found(Finding::Removed {
                from: self.last + 1,
                to: seq - 1,
            });
            self.previous = None;
        }
        let linked = std::mem::take(&mut self.previous);
        self.last = seq;
        let Some(entry) = &stored.doc else {
            return self.found(Finding::Unreadable {
                id: stored.id.clone(),
            });
        };
        self.previous = Some(entry.hash.clone());
        if let Some(hash) = self.noted.remove(&seq)
            && hash != entry.hash
        {
            self.found(Finding::Rewritten { seq });
        }
        self.judge(seq, entry, &stored.id, linked);
    }

    fn judge(&mut self, seq: u64, entry: &AuditEntry, id: &str, linked: Option<String>) {
        // Exhaustive: a new field has to be judged, or this does not compile.
        let AuditEntry {
            id: own,
            record,
            chain,
            seq: stated,
            previous,
            hash,
        } = entry;
        if chain_id(chain) != self.id || !belongs(chain, record) {
            return self.found(Finding::Foreign { id: id.to_owned() });
        }
        self.name.get_or_insert_with(|| chain.clone());
        if *stated != seq {
            return self.found(Finding::Reordered {
                place: seq,
                seq: *stated,
            });
        }
        if own != id || *hash != encode::hash(chain, seq, previous, record) {
            return self.found(Finding::Edited { seq });
        }
        if linked.is_some_and(|hash| hash != *previous) {
            self.found(Finding::Unlinked { seq });
        }
    }

    /// What was found, where no head is at hand.
    #[must_use]
    pub fn finish_without_head(mut self) -> Vec<Finding> {
        for seq in std::mem::take(&mut self.noted).into_keys() {
            self.found(Finding::Rewritten { seq });
        }
        self.findings
    }

    /// Compares with the head, and says what was found.
    #[must_use]
    pub fn finish(mut self, head: Option<&AuditChainDoc>) -> Vec<Finding> {
        let last = self.last;
        match head {
            None if last > 0 => self.found(Finding::HeadMissing { last }),
            None => {}
            Some(head) if head.id != self.id || chain_id(&head.chain) != self.id => {
                self.found(Finding::HeadDiffers { seq: head.seq });
            }
            Some(head) if head.seq > last => self.found(Finding::Truncated {
                last,
                head: head.seq,
            }),
            Some(head) if head.seq < last => self.found(Finding::BeyondHead {
                last,
                head: head.seq,
            }),
            Some(head) if self.previous.as_ref().is_some_and(|it| *it != head.hash) => {
                self.found(Finding::HeadDiffers { seq: head.seq });
            }
            Some(_) => {}
        }
        self.finish_without_head()
    }

    fn found(&mut self, finding: Finding) {
        self.findings.push(finding);
    }
}

/// As [`crate::audit::chain_of`]: a client's chain holds what names the client, a device's what names it (and is no mere claim) and no client, an instance's
/// the rest.
fn belongs(chain: &str, record: &AuditRecord) -> bool {
    match (&record.client_id, &record.device) {
        (Some(client), _) => chain.strip_prefix("client:") == Some(client.as_str()),
        (None, Some(device)) if !device.claimed => {
            chain.strip_prefix("device:") == Some(device.device_id.as_str())
        }
        (None, _) => chain.starts_with("instance:"),
    }
}

/// Checks a whole chain that fits in memory. Empty if nothing was touched.
#[must_use]
pub fn verify_chain(
    id: &str,
    head: Option<&AuditChainDoc>,
    entries: &[Stored<AuditEntry>],
) -> Vec<Finding> {
    let mut check = ChainCheck::new(id);
    for entry in entries {
        check.push(entry);
    }
    check.finish(head)
}

#[cfg(test)]
mod tests;
