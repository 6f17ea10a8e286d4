//! `leases/{name}`: who does the timed work.

use keyturn_proto::UnixMs;

use super::apply::{Also, recorded};
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
        let (lease, record) = lifecycle::lease(known.as_ref(), name, owner, ttl_ms, now)?;
        let answer = Lease {
            fence: lease.fence,
            until: lease.until,
        };
        let done = match record {
            // Renewed, as every few seconds: one document.
            None => {
                let mut writes = Writes::new(&reading);
                writes.put(&lease)?;
                turn.happened(writes.finish(), None).await?
            }
            Some(record) => {
                let also = Also {
                    lease: Some(lease),
                    ..Also::default()
                };
                let verdict = recorded((), &record);
                turn.settle_with(reading, verdict, also).await?.is_some()
            }
        };
        if done {
            return Ok(answer);
        }
    }
}
