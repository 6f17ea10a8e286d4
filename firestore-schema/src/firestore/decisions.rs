//! Decisions that change nothing else: refusals above all, many in one commit.
//!
//! What must always hold: the refusal of an event and its record are written together, once.

use std::collections::BTreeMap;

use super::apply::Also;
use super::load;
use super::paths::Path;
use super::stored::Document as _;
use super::turn::Turn;
use crate::audit::{Chain, Instance, chain_of};
use crate::documents::NonceDoc;
use crate::lifecycle::{Change, Known, Verdict};
use crate::store::{Asked, Decided, Decision, Result};

/// Those of one chain together, each in its order.
pub(super) fn by_chain(
    decisions: Vec<Decision>,
    instance: &Instance,
) -> BTreeMap<Chain, Vec<Decision>> {
    let mut chains: BTreeMap<Chain, Vec<Decision>> = BTreeMap::new();
    for decision in decisions {
        let chain = chain_of(&decision.audit, instance);
        chains.entry(chain).or_default().push(decision);
    }
    chains
}

/// Records decisions of one chain, without those that were recorded before.
pub(super) async fn record(turn: &Turn<'_>, decisions: &[Decision]) -> Result<()> {
    loop {
        let mut reading = turn.read();
        let mut wanted = Vec::new();
        for Decision { audit, refuses } in decisions {
            wanted.extend(load::named_by(&reading, audit)?);
            if let Some(refuse) = refuses {
                wanted.push(refuse.document().path()?);
            }
        }
        reading.fetch(wanted).await?;
        let (mut change, mut also) = (Change::default(), Also::default());
        for Decision { audit, refuses } in decisions {
            if let Some(refuse) = refuses {
                let document = refuse.document();
                let known = reading.seen(&document.path()?).flatten().is_some();
                if known
                    || also
                        .nonces
                        .iter()
                        .any(|other| other.nonce_hash == document.nonce_hash)
                {
                    continue;
                }
                also.nonces.push(document);
            }
            change.audit.push(audit.clone());
        }
        let verdict = Verdict { answer: (), change };
        if let Some(answer) = turn.settle_with(reading, verdict, also).await? {
            return Ok(answer);
        }
    }
}

/// What was decided before, in one read.
pub(super) async fn decided(turn: &Turn<'_>, asked: &[Asked]) -> Result<Vec<Decided>> {
    let mut reading = turn.read();
    let mut wanted = Vec::new();
    for Asked {
        event_id,
        operation,
    } in asked
    {
        wanted.push(Path::nonce(&NonceDoc::refusal_id(event_id))?);
        if let Some(id) = operation {
            wanted.extend([Path::rotation(id)?, Path::action(id)?]);
        }
    }
    reading.fetch(wanted).await?;
    let mut decided = Vec::with_capacity(asked.len());
    for Asked {
        event_id,
        operation,
    } in asked
    {
        let refusal: Option<NonceDoc> = reading
            .get(Path::nonce(&NonceDoc::refusal_id(event_id))?)
            .await?;
        decided.push(Decided {
            refused: refusal.and_then(|doc| doc.refused),
            known: match operation {
                Some(id) => load::known(&mut reading, id).await?,
                None => Known::default(),
            },
        });
    }
    Ok(decided)
}
