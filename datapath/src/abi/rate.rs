//! Rates of packets and of new flows, kept by token buckets.
//!
//! A bucket is one number: the time at which it will be full again (the generic cell rate
//! algorithm). Taking tokens is adding to it, which CPUs can do at the same time without a lock,
//! also where the kernel knows no compare-and-swap (before Linux 5.12).

use crate::abi::address::{Address, Family};
use crate::abi::pod::pod;

/// Units of the buckets' clock in a nanosecond: enough that ten million tokens a second are right
/// to a quarter of a percent.
const UNITS: u64 = 4;
/// Units in a second.
const SECOND: u64 = 1_000_000_000 * UNITS;

/// How many tokens come, and how many a full bucket holds: value of the array `RATES` at
/// [`Rate::index`].
///
/// Eight bytes, written as one: it changes under traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C, align(8))]
pub struct Rate {
    /// Until the next token comes, quarter nanoseconds times a power of two; 0 when there is no
    /// limit.
    interval: u32,
    /// Tokens in a full bucket, 24 bits; above them the power of two.
    burst: u32,
}
pod!(Rate, 8);

/// What a rate is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u32)]
pub enum RateKind {
    /// All packets of a service.
    Packets = 0,
    /// The connections that are opened to a service.
    NewConnections = 1,
    /// The packets of each source to a service.
    SourcePackets = 2,
    /// The connections that each source is_syn to a service.
    SourceNewConnections = 3,
}

impl RateKind {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 4] =
        [Self::Packets, Self::NewConnections, Self::SourcePackets, Self::SourceNewConnections];
}

impl Rate {
    /// No limit.
    pub const NONE: Self = Self { interval: 0, burst: 0 };
    /// The most tokens a second that a rate can say.
    pub const MAX: u32 = 10_000_000;

    /// The most tokens that a bucket can hold.
    pub const MAX_BURST: u32 = 0x00ff_ffff;

    /// So many tokens a second, 1 to [`Rate::MAX`], and so many in a full bucket, 1 to
    /// [`Rate::MAX_BURST`].
    pub const fn new(per_second: u32, burst: u32) -> Self {
        assert!(per_second >= 1 && per_second <= Self::MAX, "a rate that can be said");
        Self::of_units(SECOND / per_second as u64, burst)
    }

    /// A token whenever so many seconds have passed, 1 to 2^32 - 1, and so many in a full bucket.
    pub const fn every(seconds: u32, burst: u32) -> Self {
        assert!(seconds >= 1, "a rate that can be said");
        Self::of_units(SECOND * seconds as u64, burst)
    }

    const fn of_units(interval: u64, burst: u32) -> Self {
        assert!(burst >= 1 && burst <= Self::MAX_BURST, "a bucket that can be said");
        let shift = 32u32.saturating_sub(interval.leading_zeros());
        Self { interval: (interval >> shift) as u32, burst: burst | shift << 24 }
    }

    #[inline(always)]
    const fn interval(self) -> u64 {
        (self.interval as u64) << (self.burst >> 24)
    }

    /// Index in `RATES` of a service's rate.
    #[inline(always)]
    pub const fn index(service: u32, limit: RateKind) -> u32 {
        service << 2 | limit as u32
    }

    /// Whether there is a limit.
    #[inline(always)]
    pub const fn is_limit(self) -> bool {
        self.interval != 0
    }

    /// What taking tokens does to a bucket at a time (nanoseconds); `None` when there is no token
    /// in it.
    ///
    /// One token is enough: who takes more goes into debt, so that a merged packet passes as its
    /// first segment would.
    #[inline(always)]
    pub const fn consume(self, bucket: u64, tokens: u64, now: u64) -> Option<BucketUpdate> {
        let (interval, now) = (self.interval(), now.wrapping_mul(UNITS));
        let cost = interval.wrapping_mul(tokens);
        if bucket <= now {
            return Some(BucketUpdate::Set(now.wrapping_add(cost)));
        }
        // Empty when less than a token's time is missing from the time that a whole bucket takes to
        // fill.
        if bucket.wrapping_sub(now).wrapping_add(interval)
            > interval.wrapping_mul((self.burst & Self::MAX_BURST) as u64)
        {
            return None;
        }
        Some(BucketUpdate::Add(cost))
    }
}

/// What a packet asks of the buckets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenRequest {
    /// Its service.
    pub service: u32,
    /// Packets: the segments of a merged one.
    pub packets: u64,
    /// Whether it is_syn a TCP connection. UDP knows no connections: its packets are limited, not
    /// its flows.
    pub is_syn: bool,
    /// The time, nanoseconds.
    pub now: u64,
}

/// How a bucket changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BucketUpdate {
    /// It was full: from now on it is this. Two CPUs that find it full at once cost it one of their
    /// takings, no more.
    Set(u64),
    /// It was not: this is added, by an atomic addition, so that nobody's taking is lost.
    Add(u64),
}

impl BucketUpdate {
    /// The bucket after it, for whoever has it alone.
    #[inline(always)]
    pub const fn apply(self, bucket: u64) -> u64 {
        match self {
            Self::Set(is) => is,
            Self::Add(more) => bucket.wrapping_add(more),
        }
    }
}

/// Key of the map `CLIENT_BUCKETS`: a client as far as its rate goes, at one service. An IPv6
/// client is a whole /64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct ClientKey {
    source: Address,
    service: u32,
}
pod!(ClientKey, 20);

impl ClientKey {
    /// The service at which the source has these buckets.
    pub const fn service(&self) -> u32 {
        self.service
    }

    /// The key of a source at a service. `family` is the address's.
    #[inline(always)]
    pub const fn new(source: &Address, family: Family, service: u32) -> Self {
        let [a, b, c, d] = source.words();
        let source = match family {
            Family::V4 => Address::v6([a, b, c, d]),
            Family::V6 => Address::v6([a, b, 0, 0]),
        };
        Self { source, service }
    }
}

/// The buckets of a service, or of a source: value of the maps `SERVICE_BUCKETS` and
/// `CLIENT_BUCKETS`. All zero, they are full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Buckets {
    /// Of packets.
    pub packets: u64,
    /// Of new flows.
    pub new_connections: u64,
}
pod!(Buckets, 16);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// How many of these takings a bucket gives, by time.
    fn given(rate: Rate, times: impl IntoIterator<Item = u64>) -> u64 {
        let mut bucket = 0;
        let mut given = 0;
        for now in times {
            if let Some(taken) = rate.consume(bucket, 1, now) {
                bucket = taken.apply(bucket);
                given += 1;
            }
        }
        given
    }

    #[test]
    fn a_full_bucket_gives_its_burst_and_no_more() {
        for burst in [1, 2, 10, 1000] {
            assert_eq!(
                given(Rate::new(5, burst), std::iter::repeat_n(1_000_000_000_000, 5000)),
                u64::from(burst)
            );
        }
    }

    #[test]
    fn a_slow_bucket_gives_a_token_when_its_time_has_come() {
        let rate = Rate::every(3600, 2);
        let second = 1_000_000_000;
        assert_eq!(
            given(rate, [second, second, second, 3500 * second, 3602 * second, 3603 * second]),
            3
        );
    }

    #[test]
    fn an_idle_bucket_holds_no_more_than_its_burst() {
        let rate = Rate::new(10, 3);
        let (first, second) =
            (std::iter::repeat_n(1_000_000_000, 9), std::iter::repeat_n(900_000_000_000, 9));
        assert_eq!(given(rate, first.chain(second)), 6);
    }

    #[test]
    fn a_merged_packet_passes_with_one_token_and_pays_for_all() {
        let rate = Rate::new(1, 4);
        let now = 1_000_000_000_000;
        let bucket = rate.consume(0, 40, now).unwrap().apply(0);
        assert_eq!(rate.consume(bucket, 1, now), None);
        // 40 tokens were taken of 4: the next one comes after 37 seconds.
        assert_eq!(rate.consume(bucket, 1, now + 36_900_000_000), None);
        assert!(rate.consume(bucket, 1, now + 37_000_000_000).is_some());
    }

    proptest! {
        #[test]
        fn over_time_a_bucket_gives_its_rate(per_second in 1..=Rate::MAX, burst in 2..100u32) {
            // Twice the rate is asked for, during a thousand tokens' time. (A bucket of one would
            // lose what comes a nanosecond too early.)
            let rate = Rate::new(per_second, burst);
            let token = 1_000_000_000.0 / f64::from(per_second);
            let times = (0..2000u32).map(|n| 5_000_000_000 + (f64::from(n) * token / 2.0) as u64);
            let given = given(rate, times) as f64;
            let expected = 1000.0 + f64::from(burst);
            prop_assert!((given - expected).abs() <= 2.0 + expected / 400.0, "{given} of {expected}");
        }
    }
}
