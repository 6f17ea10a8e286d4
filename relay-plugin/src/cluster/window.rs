//! Which stretch of time a peer is asked for next: oldest first, as wide as can be had at once.
//!
//! What must always hold: every second between the ends is asked for, once it was got or given up; a stretch is never wider than [`WIDEST`] nor
//! narrower than a second. Pure: no clock, no network.

/// Seconds asked for at once at most.
pub(super) const WIDEST: u64 = 6 * 3600;

/// See the module. Both ends are unix seconds and belong to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Windows {
    from: u64,
    end: u64,
    width: u64,
}

impl Windows {
    /// Begins with stretches of `width` seconds.
    pub(super) fn new(from: u64, end: u64, width: u64) -> Self {
        Self {
            from,
            end,
            width: width.clamp(1, WIDEST),
        }
    }

    /// How wide the next stretch is.
    pub(super) const fn width(&self) -> u64 {
        self.width
    }

    /// The next stretch; `None` when all is done.
    pub(super) fn next(&self) -> Option<(u64, u64)> {
        let to = self.from.saturating_add(self.width - 1).min(self.end);
        (self.from <= self.end).then_some((self.from, to))
    }

    /// The stretch was got, or given up: the next one may be wider.
    pub(super) fn done(&mut self) {
        self.from = self.from.saturating_add(self.width);
        self.width = (self.width * 2).min(WIDEST);
    }

    /// It held too much. `false`: it is one second, and cannot be narrower.
    pub(super) const fn halve(&mut self) -> bool {
        let narrower = self.width > 1;
        self.width = self.width.div_ceil(2);
        narrower
    }

    /// Everything before this second is done.
    pub(super) const fn reached(&self) -> u64 {
        self.from
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_stretch_that_holds_too_much_is_halved_down_to_a_second() {
        let mut windows = Windows::new(0, 100_000, u64::MAX);
        assert_eq!(windows.next(), Some((0, WIDEST - 1)));
        let mut times = 0;
        while windows.halve() {
            times += 1;
        }
        assert_eq!((times, windows.next()), (15, Some((0, 0))));
        windows.done();
        assert_eq!(windows.next(), Some((1, 2)), "and grows again");
    }

    proptest! {
        #[test]
        fn invariant_every_second_is_asked_for_in_order(
            from in 0u64..50_000,
            length in 0u64..200_000,
            width in 0u64..100_000,
            crowded in proptest::collection::btree_set(0u64..200_000, 0..20),
        ) {
            let mut windows = Windows::new(from, from + length, width);
            let mut next = from;
            while let Some((first, last)) = windows.next() {
                prop_assert!(first == next && last >= first && last - first < WIDEST);
                let too_much = crowded.range(first - from..=last - from).next().is_some();
                if too_much && windows.halve() {
                    continue;
                }
                next = last + 1;
                windows.done();
            }
            prop_assert_eq!(next, from + length + 1);
        }
    }
}
