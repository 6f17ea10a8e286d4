//! `leases/{name}`: who does the timed work.

use keyturn_proto::UnixMs;

use super::paths::Path;
use super::turn::Turn;
use super::writes::Writes;
use crate::documents::LeaseDoc;
use crate::lifecycle;
use crate::store::{Lease, Result};

/// A commit in doubt is judged by what lies there: if it was ours, the repeat renews it under the same fence.
pub(super) async fn lease(
    turn: &Turn<'_>,
    name: &str,
    owner: &str,
    ttl_ms: u64,
    now: UnixMs,
) -> Result<Lease> {
    let path = Path::lease(name)?;
    loop {
        let mut reading = turn.read();
        let known: Option<LeaseDoc> = reading.get(path.clone()).await?;
        let lease = lifecycle::lease(known.as_ref(), name, owner, ttl_ms, now)?;
        let mut writes = Writes::new(&reading);
        writes.put(&lease)?;
        if turn.happened(writes.finish(), None).await? {
            return Ok(Lease {
                fence: lease.fence,
                until: lease.until,
            });
        }
    }
}
