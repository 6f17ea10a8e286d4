//! How long nobody connects after a connection was lost or could not be made.
//!
//! What must always hold: relays that lost the same broker at once do not come back at once, and a broker that refuses us is not asked more often than the longest pause says.

use std::time::Duration;

use crate::devices::settings::jittered;

/// A connection that lasted so long was a good one.
const SETTLED: Duration = Duration::from_secs(30);

/// Each pause is twice the one before, up to the longest; after a good connection the first one comes again.
pub(super) struct Pauses {
    first: Duration,
    longest: Duration,
    next: Duration,
}

impl Pauses {
    pub(super) fn new((first, longest): (Duration, Duration)) -> Self {
        Self {
            first,
            longest,
            next: first,
        }
    }

    /// The pause after a connection that lasted so long, or was never made. With up to half of it more, by chance.
    pub(super) fn after(&mut self, lasted: Option<Duration>) -> Duration {
        if lasted.is_some_and(|lasted| lasted >= SETTLED) {
            self.next = self.first;
        }
        let pause = self.next;
        self.next = (pause * 2).min(self.longest);
        jittered(pause, 0.5)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// The pauses that follow, each as a whole number of seconds that it is at least, and less than half as many above.
    fn follow(pauses: &mut Pauses, lasted: Option<Duration>, expected: &[u32]) {
        for &least in expected {
            let pause = pauses.after(lasted);
            let (least, most) = (SECOND * least, SECOND * least * 3 / 2);
            assert!((least..=most).contains(&pause), "{pause:?} for {least:?}");
        }
    }

    #[test]
    fn pauses_double_up_to_the_longest_and_begin_anew_after_a_good_connection() {
        let mut pauses = Pauses::new((SECOND, SECOND * 30));
        follow(&mut pauses, None, &[1, 2, 4, 8, 16, 30, 30, 30]);
        // One that was lost again at once proves nothing.
        let short = SETTLED.checked_sub(SECOND);
        follow(&mut pauses, short, &[30, 30]);
        follow(&mut pauses, Some(SETTLED), &[1]);
        follow(&mut pauses, None, &[2, 4]);
        follow(&mut pauses, Some(SETTLED * 100), &[1, 1]);
    }

    #[test]
    fn relays_that_lost_a_broker_together_do_not_come_back_together() {
        let pauses: std::collections::BTreeSet<Duration> = (0..100)
            .map(|_| Pauses::new((SECOND, SECOND * 30)).after(None))
            .collect();
        assert!(pauses.len() > 90, "{pauses:?}");
    }
}
