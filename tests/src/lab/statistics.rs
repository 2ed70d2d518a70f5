//! A statistical test of replies per backend against the weights.

use statrs::distribution::{ChiSquared, ContinuousCDF};

/// A correct balancer deviates with less than this probability: once in a million runs.
pub const SIGNIFICANCE: f64 = 1e-6;

/// The result of Pearson's chi-square test of counts against expected shares.
#[derive(Clone, Copy, Debug)]
pub struct ChiSquareTest {
    /// The statistic: sum of (observed - expected)^2 / expected.
    pub statistic: f64,
    /// Degrees of freedom: categories with a share above 0, minus one.
    pub degrees: usize,
    /// Probability of a deviation at least as large if the flows follow the shares.
    pub p_value: f64,
}

impl ChiSquareTest {
    /// Tests counts against shares that add up to 1. The counts are multinomial, because the hash
    /// of each flow is keyed. A count above 0 for a share of 0 makes the p-value 0. With fewer than
    /// two shares above 0 the p-value is otherwise 1.
    pub fn new(observed: &[(u64, f64)]) -> Self {
        let total: u64 = observed.iter().map(|(count, _)| count).sum();
        let impossible = observed.iter().any(|(count, share)| *share <= 0.0 && *count > 0);
        let possible = || observed.iter().filter(|(_, share)| *share > 0.0);
        let statistic = possible()
            .map(|(count, share)| {
                let expected = total as f64 * share;
                (*count as f64 - expected).powi(2) / expected
            })
            .sum();
        let degrees = possible().count().saturating_sub(1);
        let p_value = match ChiSquared::new(degrees as f64) {
            _ if impossible => 0.0,
            // Without flows the statistic is NaN.
            Ok(_) if total == 0 => 1.0,
            Ok(distribution) => distribution.sf(statistic),
            Err(_) => 1.0,
        };
        Self { statistic, degrees, p_value }
    }

    /// Whether the counts are consistent with the shares.
    pub fn passes(&self) -> bool {
        self.p_value >= SIGNIFICANCE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_p_value_is_the_published_one() {
        // 7.815 is the 5 % point for 3 degrees of freedom in every table of the distribution.
        let deviation = (7.815_f64 * 1000.0 * 0.25 / 2.0).sqrt();
        let counts = [250.0 + deviation, 250.0 - deviation, 250.0, 250.0]
            .map(|count| (count.round() as u64, 0.25));
        let test = ChiSquareTest::new(&counts);
        assert_eq!(test.degrees, 3);
        assert!((test.p_value - 0.05).abs() < 0.005, "{test:?}");
    }

    #[test]
    fn counts_by_weight_pass_and_equal_counts_fail() {
        let shares = [0.5, 0.25, 0.125, 0.125];
        let by_weight: Vec<_> = [1012, 489, 244, 255].into_iter().zip(shares).collect();
        assert!(ChiSquareTest::new(&by_weight).passes());
        let equal: Vec<_> = [500; 4].into_iter().zip(shares).collect();
        assert!(!ChiSquareTest::new(&equal).passes());
    }

    #[test]
    fn a_reply_from_a_backend_without_a_share_fails() {
        assert!(!ChiSquareTest::new(&[(1000, 0.5), (1000, 0.5), (1, 0.0)]).passes());
        assert!(ChiSquareTest::new(&[(1000, 0.5), (1000, 0.5), (0, 0.0)]).passes());
    }
}
