//! How often something may be done: a token bucket as one number, the time until which it is used up (the generic cell rate algorithm, ITU-T I.371).

/// A rate, and how many may come at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Nanoseconds in which one more may come; 0 when there is no limit.
    pub interval: u64,
    /// Nanoseconds that may be used up in advance: the interval times what may come at once, less one.
    pub tolerance: u64,
}

impl Rate {
    /// No limit.
    pub const UNLIMITED: Self = Self { interval: 0, tolerance: 0 };

    /// So many a second, and so many at once; both at least 1.
    pub const fn new(per_second: u32, burst: u32) -> Self {
        let interval = 1_000_000_000 / per_second as u64;
        Self { interval, tolerance: interval * (burst - 1) as u64 }
    }

    /// Whether one more may come at `now`, and the state after it. `state` is 0 at first.
    #[inline(always)]
    pub const fn take(self, state: u64, now: u64) -> (bool, u64) {
        if state > now.wrapping_add(self.tolerance) {
            return (false, state);
        }
        let used = if state > now { state } else { now };
        (true, used.wrapping_add(self.interval))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn a_burst_is_let_through_and_then_the_rate() {
        let rate = Rate::new(10, 3);
        let mut state = 0;
        let mut take = |now| {
            let (taken, next) = rate.take(state, now);
            state = next;
            taken
        };
        let start = 5 * SECOND;
        assert_eq!([take(start), take(start), take(start), take(start)], [true, true, true, false]);
        assert!(!take(start + SECOND / 10 - 1));
        assert!(take(start + SECOND / 10));
        assert!(!take(start + SECOND / 10));
        assert_eq!([0; 4].map(|_| take(start + 9 * SECOND)), [true, true, true, false]);
    }

    #[test]
    fn without_a_limit_everything_is_let_through() {
        assert_eq!(Rate::UNLIMITED.take(7, 7), (true, 7));
    }

    proptest! {
        #[test]
        fn no_more_come_than_burst_and_rate_allow(
            per_second in 1..1_000_000u32, burst in 1..1000u32, waits in proptest::collection::vec(0..SECOND / 100, 1..300),
        ) {
            let rate = Rate::new(per_second, burst);
            let (mut now, mut state, mut taken) = (SECOND, 0, 0);
            for wait in waits {
                now += wait;
                let (one, next) = rate.take(state, now);
                state = next;
                taken += u64::from(one);
            }
            // Intervals are whole nanoseconds: the rate may be higher by what that leaves out.
            prop_assert!(taken <= u64::from(burst) + (now - SECOND) / rate.interval);
        }
    }
}
