//! `nonces/{hash}`: one create-once record per use of a proof's nonce.

use keyturn_proto::UnixMs;

use super::apply::{Also, recorded};
use super::load;
use super::paths::Path;
use super::query::Ask;
use super::turn::Turn;
use super::writes::Writes;
use crate::documents::NonceDoc;
use crate::queries::relay;
use crate::store::{BurnNonce, Burned, Result};

/// Most records deleted in one commit.
const BATCH: usize = 400;

/// Creates the record, with what the trail remembers of it.
pub(super) async fn burn(turn: &Turn<'_>, burn: BurnNonce) -> Result<Burned> {
    let path = Path::nonce(&burn.nonce_hash)?;
    let record = NonceDoc {
        nonce_hash: burn.nonce_hash,
        owner_event: burn.owner_event,
        expires_at: burn.expires_at,
        refused: None,
    };
    loop {
        let mut reading = turn.read();
        let mut first = load::named_by(&reading, &burn.audit)?;
        first.push(path.clone());
        reading.fetch(first).await?;
        let known: Option<NonceDoc> = reading.get(path.clone()).await?;
        if let Some(known) = known {
            // Its own use, from before a crash or a commit in doubt.
            return Ok(if known.owner_event == record.owner_event {
                Burned::Fresh
            } else {
                Burned::Reused
            });
        }
        let also = Also {
            nonces: vec![record.clone()],
            ..Also::default()
        };
        let verdict = recorded(Burned::Fresh, &burn.audit);
        if let Some(answer) = turn.settle_with(reading, verdict, also).await? {
            return Ok(answer);
        }
    }
}

/// Deletes what has expired, at most `limit`. More than a batch is deleted in several commits: each is complete in itself. Only the expiry is read.
pub(super) async fn forget(turn: &Turn<'_>, now: UnixMs, limit: usize) -> Result<u64> {
    let mut forgotten = 0;
    while forgotten < limit {
        let wanted = BATCH.min(limit - forgotten);
        let ask = Ask::new(&relay::NONCES_EXPIRED)
            .time(now)
            .only("expires_at")
            .limit(wanted);
        let mut reading = turn.read();
        let found = reading.raw(&ask).await?;
        let paths = paths(&found);
        for (path, found) in found {
            reading.remember(path, found);
        }
        let mut writes = Writes::new(&reading);
        for path in &paths {
            writes.delete(path.clone());
        }
        if !writes.is_empty() && !turn.happened(writes.finish(), None).await? {
            // Somebody else deletes as well, or nobody can say: what is left is read again.
            continue;
        }
        forgotten += paths.len();
        if paths.len() < wanted {
            break;
        }
    }
    Ok(u64::try_from(forgotten).unwrap_or(u64::MAX))
}

fn paths(found: &[(Path, super::reading::Found)]) -> Vec<Path> {
    found.iter().map(|(path, _)| path.clone()).collect()
}
