//! The one place where the service reads the machine's clock.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use keyturn_proto::UnixMs;

use crate::rotation::ports::Clock;

/// Longest sleep without a look at the clock, which an operator or NTP may set meanwhile.
const NAP: Duration = Duration::from_secs(30);

/// The operating system's clock; a time before 1970 counts as 1970.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

#[async_trait]
impl Clock for SystemClock {
    fn now(&self) -> UnixMs {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        UnixMs(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }

    async fn sleep_until(&self, at: UnixMs) {
        loop {
            let left = at.0.saturating_sub(self.now().0);
            if left == 0 {
                return;
            }
            tokio::time::sleep(NAP.min(Duration::from_millis(left))).await;
        }
    }
}
