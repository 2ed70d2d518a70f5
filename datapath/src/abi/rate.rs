//! Rate limits of packets and of new connections: token buckets.
//!
//! A bucket is one number: the time at which it will be full again (generic cell rate algorithm).
//! Consuming tokens adds to that number. Several CPUs can do so concurrently without a lock, also
//! on kernels without a BPF compare-and-swap (before Linux 5.12).

use crate::abi::address::{Address, Family};
use crate::abi::pod::pod;

/// Units of the buckets' clock per nanosecond: enough for an error below 0.25 % at ten million
/// tokens per second.
const UNITS: u64 = 4;
/// Units per second.
const SECOND: u64 = 1_000_000_000 * UNITS;

/// Token rate and burst of a bucket: value of the array `RATES` at [`Rate::index`].
///
/// Eight bytes, so that one store updates the entry under traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C, align(8))]
pub struct Rate {
    /// Interval between tokens: units of a quarter nanosecond, shifted left by the upper byte of
    /// `burst`; 0 for no limit.
    interval: u32,
    /// Lower 24 bits: tokens in a full bucket. Upper byte: shift of `interval`.
    burst: u32,
}
pod!(Rate, 8);

/// The traffic that a rate limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u32)]
pub enum RateKind {
    /// All packets of a service.
    Packets = 0,
    /// New connections to a service.
    NewConnections = 1,
    /// Packets of each client prefix to a service.
    SourcePackets = 2,
    /// New connections of each client prefix to a service.
    SourceNewConnections = 3,
    /// Fragments of a service's packets.
    Fragments = 4,
}

impl RateKind {
    /// All kinds, in the order of their numbers.
    pub const ALL: [Self; 5] = [
        Self::Packets,
        Self::NewConnections,
        Self::SourcePackets,
        Self::SourceNewConnections,
        Self::Fragments,
    ];
}

impl Rate {
    /// No limit.
    pub const NONE: Self = Self { interval: 0, burst: 0 };
    /// Maximum tokens per second.
    pub const MAX: u32 = 10_000_000;

    /// Maximum tokens in a full bucket.
    pub const MAX_BURST: u32 = 0x00ff_ffff;

    /// A rate in tokens per second, 1 to [`Rate::MAX`], with a burst of 1 to [`Rate::MAX_BURST`].
    pub const fn new(per_second: u32, burst: u32) -> Self {
        assert!(per_second >= 1 && per_second <= Self::MAX, "the rate is out of range");
        Self::of_units(SECOND / per_second as u64, burst)
    }

    /// A rate of one token per `seconds`, at least 1, with a burst of 1 to [`Rate::MAX_BURST`].
    pub const fn every(seconds: u32, burst: u32) -> Self {
        assert!(seconds >= 1, "the rate is out of range");
        Self::of_units(SECOND * seconds as u64, burst)
    }

    const fn of_units(interval: u64, burst: u32) -> Self {
        assert!(burst >= 1 && burst <= Self::MAX_BURST, "the burst is out of range");
        let shift = 32u32.saturating_sub(interval.leading_zeros());
        Self { interval: (interval >> shift) as u32, burst: burst | (shift << 24) }
    }

    #[inline(always)]
    const fn interval(self) -> u64 {
        (self.interval as u64) << (self.burst >> 24)
    }

    /// Index of a service's rate in `RATES`.
    #[inline(always)]
    pub const fn index(service: u32, kind: RateKind) -> u32 {
        service.wrapping_mul(RateKind::ALL.len() as u32).wrapping_add(kind as u32)
    }

    /// Whether there is a limit.
    #[inline(always)]
    pub const fn is_limit(self) -> bool {
        self.interval != 0
    }

    /// Consumes tokens at time `now` (nanoseconds); `None` if the bucket is empty.
    ///
    /// One token is sufficient, and the bucket may go into debt for the rest. So a merged packet
    /// passes if its first segment would pass.
    #[inline(always)]
    pub const fn consume(self, bucket: u64, tokens: u64, now: u64) -> Option<BucketUpdate> {
        let (interval, now) = (self.interval(), now.wrapping_mul(UNITS));
        let cost = interval.wrapping_mul(tokens);
        if bucket <= now {
            return Some(BucketUpdate::Set(now.wrapping_add(cost)));
        }
        // Empty if the time until the bucket is full, plus one token, exceeds the time to fill it
        // from empty.
        if bucket.wrapping_sub(now).wrapping_add(interval)
            > interval.wrapping_mul((self.burst & Self::MAX_BURST) as u64)
        {
            return None;
        }
        Some(BucketUpdate::Add(cost))
    }
}

/// A packet's request for tokens from a service's and a client's buckets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenRequest {
    /// Index of the service.
    pub service: u32,
    /// Packet tokens: the segments of a merged packet, else 1.
    pub packets: u64,
    /// Whether the packet opens a TCP connection. UDP has no connections, so only its packets are
    /// limited.
    pub is_syn: bool,
    /// Nanoseconds of `CLOCK_MONOTONIC`.
    pub now: u64,
}

/// Update of a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BucketUpdate {
    /// Store this value: the bucket was full. If two CPUs do so concurrently, one of the two
    /// updates is lost.
    Set(u64),
    /// Add this value atomically, so that no concurrent update is lost.
    Add(u64),
}

impl BucketUpdate {
    /// The updated bucket, without concurrent updates.
    #[inline(always)]
    pub const fn apply(self, bucket: u64) -> u64 {
        match self {
            Self::Set(value) => value,
            Self::Add(value) => bucket.wrapping_add(value),
        }
    }
}

/// Key of the map `CLIENT_BUCKETS`: a client prefix and a service. The prefix is an IPv4 address or
/// an IPv6 /64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct ClientKey {
    source: Address,
    service: u32,
}
pod!(ClientKey, 20);

impl ClientKey {
    /// Index of the service.
    pub const fn service(&self) -> u32 {
        self.service
    }

    /// The key of a client's address, of `family`, and a service.
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

/// Buckets of a service or of a client prefix: value of the maps `SERVICE_BUCKETS` and
/// `CLIENT_BUCKETS`. Zero is a full bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Buckets {
    /// Bucket of packets.
    pub packets: u64,
    /// Bucket of new connections.
    pub new_connections: u64,
    /// Bucket of fragments; only of a service.
    pub fragments: u64,
}
pod!(Buckets, 24);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Number of requests for one token, at these times, that a full bucket grants.
    fn granted(rate: Rate, times: impl IntoIterator<Item = u64>) -> u64 {
        let mut bucket = 0;
        let mut granted = 0;
        for now in times {
            if let Some(update) = rate.consume(bucket, 1, now) {
                bucket = update.apply(bucket);
                granted += 1;
            }
        }
        granted
    }

    #[test]
    fn a_full_bucket_grants_exactly_its_burst() {
        for burst in [1, 2, 10, 1000] {
            assert_eq!(
                granted(Rate::new(5, burst), std::iter::repeat_n(1_000_000_000_000, 5000)),
                u64::from(burst)
            );
        }
    }

    #[test]
    fn a_slow_bucket_grants_a_token_after_each_interval() {
        let rate = Rate::every(3600, 2);
        let second = 1_000_000_000;
        assert_eq!(
            granted(rate, [second, second, second, 3500 * second, 3602 * second, 3603 * second]),
            3
        );
    }

    #[test]
    fn an_idle_bucket_does_not_exceed_its_burst() {
        let rate = Rate::new(10, 3);
        let (first, second) =
            (std::iter::repeat_n(1_000_000_000, 9), std::iter::repeat_n(900_000_000_000, 9));
        assert_eq!(granted(rate, first.chain(second)), 6);
    }

    #[test]
    fn a_merged_packet_needs_one_token_and_consumes_one_per_segment() {
        let rate = Rate::new(1, 4);
        let now = 1_000_000_000_000;
        let bucket = rate.consume(0, 40, now).unwrap().apply(0);
        assert_eq!(rate.consume(bucket, 1, now), None);
        // 40 tokens were consumed from a burst of 4: the next token is available after 37 seconds.
        assert_eq!(rate.consume(bucket, 1, now + 36_900_000_000), None);
        assert!(rate.consume(bucket, 1, now + 37_000_000_000).is_some());
    }

    proptest! {
        #[test]
        fn over_time_a_bucket_grants_its_rate(per_second in 1..=Rate::MAX, burst in 2..100u32) {
            // Requests at twice the rate, for the time of 1,000 tokens. A burst of 1 would refuse a
            // request that is a nanosecond early, so the burst is at least 2.
            let rate = Rate::new(per_second, burst);
            let token = 1_000_000_000.0 / f64::from(per_second);
            let times = (0..2000u32).map(|n| 5_000_000_000 + (f64::from(n) * token / 2.0) as u64);
            let granted = granted(rate, times) as f64;
            let expected = 1000.0 + f64::from(burst);
            prop_assert!((granted - expected).abs() <= 2.0 + expected / 400.0, "{granted} of {expected}");
        }
    }
}
