//! How long to wait before trying again: exponential, with full jitter, so that those who met once do not meet again.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(10);
const LONGEST: Duration = Duration::from_secs(1);

/// The pause before repeat number `repeat` (from 0): anything from nothing to twice the one before, never over a second.
pub(super) fn pause(repeat: u32) -> Duration {
    jittered(longest(repeat), random())
}

fn longest(repeat: u32) -> Duration {
    FIRST
        .saturating_mul(2u32.saturating_pow(repeat))
        .min(LONGEST)
}

/// `random` of 2^32 parts of `longest`.
fn jittered(longest: Duration, random: u32) -> Duration {
    longest.mul_f64(f64::from(random) / f64::from(u32::MAX))
}

/// Without a generator everybody waits the longest: slower, never wrong.
fn random() -> u32 {
    getrandom::u32().unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_second_and_no_further() {
        let longest: Vec<_> = (0..9).map(|n| longest(n).as_millis()).collect();
        assert_eq!(longest, [10, 20, 40, 80, 160, 320, 640, 1000, 1000]);
        assert!(pause(u32::MAX) <= LONGEST);
    }

    #[test]
    fn the_jitter_spans_everything() {
        assert_eq!(jittered(LONGEST, 0), Duration::ZERO);
        assert_eq!(jittered(LONGEST, u32::MAX), LONGEST);
    }
}
