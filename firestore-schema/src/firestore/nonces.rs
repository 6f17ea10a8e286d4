//! `nonces/{hash}`: one create-once record per use of a proof's nonce.

use keyturn_proto::UnixMs;

use super::codec::Fields;
use super::paths::Path;
use super::query::Ask;
use super::turn::Turn;
use super::writes::Writes;
use crate::documents::NonceDoc;
use crate::queries::relay;
use crate::store::{BurnNonce, Burned, Result};

/// Most records deleted in one commit.
const BATCH: usize = 400;

/// Creates the record without looking first: nearly every nonce is new, and one call is enough then.
pub(super) async fn burn(turn: &Turn<'_>, burn: BurnNonce) -> Result<Burned> {
    let path = Path::nonce(&burn.nonce_hash)?;
    let record = NonceDoc {
        nonce_hash: burn.nonce_hash,
        owner_event: burn.owner_event,
        expires_at: burn.expires_at,
    };
    loop {
        let reading = turn.read();
        let mut writes = Writes::new(&reading);
        writes.create(&record, Fields::new())?;
        if turn.happened(writes.finish(), None).await? {
            return Ok(Burned::Fresh);
        }
        let known: Option<NonceDoc> = turn.read().get(path.clone()).await?;
        match known {
            Some(known) if known.owner_event == record.owner_event => return Ok(Burned::Fresh),
            Some(_) => return Ok(Burned::Reused),
            // Purged in between, or our own that has not landed yet.
            None => {}
        }
    }
}

/// Deletes what has expired. More than a batch is deleted in several commits: each is complete in itself.
pub(super) async fn purge(turn: &Turn<'_>, now: UnixMs) -> Result<()> {
    let expired = Ask::new(&relay::NONCES_EXPIRED).time(now).limit(BATCH);
    loop {
        let mut reading = turn.read();
        let found = reading.raw(&expired).await?;
        let (paths, last) = (paths(&found), found.len() < BATCH);
        for (path, found) in found {
            reading.remember(path, found);
        }
        let mut writes = Writes::new(&reading);
        for path in paths {
            writes.delete(path);
        }
        let done = writes.is_empty() || turn.happened(writes.finish(), None).await?;
        if done && last {
            return Ok(());
        }
    }
}

fn paths(found: &[(Path, super::reading::Found)]) -> Vec<Path> {
    found.iter().map(|(path, _)| path.clone()).collect()
}
