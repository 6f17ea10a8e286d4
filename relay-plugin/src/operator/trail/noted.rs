//! Heads that somebody noted elsewhere: `CHAIN=SEQ:HASH`, just as `keyturn audit verify` prints them.

use std::collections::BTreeMap;
use std::str::FromStr;

use keyturn_store::audit::{ChainCheck, chain_id};

/// Not of the form `CHAIN=SEQ:HASH`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected CHAIN=SEQ:HASH, as `keyturn audit verify` prints it")]
pub struct InvalidNote;

/// One noted head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Noted {
    /// The chain's name.
    pub chain: String,
    /// Which entry was the last one.
    pub seq: u64,
    /// Its hash, 64 hex digits.
    pub hash: String,
}

impl FromStr for Noted {
    type Err = InvalidNote;

    /// From the right: a client id may contain `=` and `:`.
    fn from_str(text: &str) -> Result<Self, InvalidNote> {
        let (chain, head) = text.rsplit_once('=').ok_or(InvalidNote)?;
        let (seq, hash) = head.split_once(':').ok_or(InvalidNote)?;
        let seq: u64 = seq.parse().map_err(|_| InvalidNote)?;
        let is_hash =
            hash.len() == 64 && hash.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        // An empty chain has no entry that could be compared.
        if chain.is_empty() || seq == 0 || !is_hash {
            return Err(InvalidNote);
        }
        Ok(Self {
            chain: chain.to_owned(),
            seq,
            hash: hash.to_owned(),
        })
    }
}

/// Noted heads by the id of their chain; each is taken out when its chain is checked.
pub(super) struct Notes(BTreeMap<String, Vec<Noted>>);

impl Notes {
    pub(super) fn new(noted: &[Noted]) -> Self {
        let mut notes: BTreeMap<String, Vec<Noted>> = BTreeMap::new();
        for note in noted {
            notes
                .entry(chain_id(&note.chain))
                .or_default()
                .push(note.clone());
        }
        Self(notes)
    }

    pub(super) fn expect(&mut self, id: &str, check: &mut ChainCheck) {
        for note in self.0.remove(id).unwrap_or_default() {
            check.expect(note.seq, &note.hash);
        }
    }

    /// Noted chains of which nothing was found.
    pub(super) fn left(self) -> impl Iterator<Item = Noted> {
        self.0.into_values().flatten()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_read_from_the_right() {
        let hash = "0a".repeat(32);
        let note: Noted = format!("client:a=b:c=7:{hash}").parse().unwrap();
        assert_eq!(
            (&*note.chain, note.seq, note.hash),
            ("client:a=b:c", 7, hash.clone())
        );
        let upper = hash.to_uppercase();
        for bad in [
            "".to_owned(),
            format!("client:a=0:{hash}"),
            format!("=1:{hash}"),
            format!("client:a=-1:{hash}"),
            format!("client:a=1:{upper}"),
            "client:a=1:0a".to_owned(),
            format!("client:a:{hash}"),
        ] {
            assert_eq!(bad.parse::<Noted>(), Err(InvalidNote), "{bad}");
        }
    }
}
