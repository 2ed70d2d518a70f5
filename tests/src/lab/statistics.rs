//! Is this many answers per backend what the weights promise, or not?

use statrs::distribution::{ChiSquared, ContinuousCDF};

/// Below this probability a deviation is no accident: a right balancer fails one in a million runs.
pub const SIGNIFICANCE: f64 = 1e-6;

/// Pearson's chi-square test of counts against expected shares.
#[derive(Clone, Copy, Debug)]
pub struct Fit {
    /// The statistic: sum of (observed - expected)^2 / expected.
    pub chi_square: f64,
    /// Categories with an expectation, less one.
    pub freedom: usize,
    /// Probability of a deviation at least as large, if the flows really follow the shares.
    pub probability: f64,
}

impl Fit {
    /// Tests counts against shares that add up to 1. The key of each flow is random to the
    /// balancer's keyed hash, so the counts are multinomial. A count where the share is 0 makes the
    /// probability 0. Fewer than two shares above 0 leave nothing to test: the probability is 1, or
    /// 0 as said.
    pub fn test(observed: &[(u64, f64)]) -> Self {
        let total: u64 = observed.iter().map(|(count, _)| count).sum();
        let impossible = observed.iter().any(|(count, share)| *share <= 0.0 && *count > 0);
        let possible = || observed.iter().filter(|(_, share)| *share > 0.0);
        let chi_square = possible()
            .map(|(count, share)| {
                let expected = total as f64 * share;
                (*count as f64 - expected).powi(2) / expected
            })
            .sum();
        let freedom = possible().count().saturating_sub(1);
        let probability = match ChiSquared::new(freedom as f64) {
            _ if impossible => 0.0,
            // The sum over no flows at all is not a number: nothing deviates.
            Ok(_) if total == 0 => 1.0,
            Ok(distribution) => distribution.sf(chi_square),
            Err(_) => 1.0,
        };
        Self { chi_square, freedom, probability }
    }

    /// Whether the counts may come from the shares.
    pub fn plausible(&self) -> bool {
        self.probability >= SIGNIFICANCE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_probability_is_the_published_one() {
        // 7.815 is the 5 % point for 3 degrees of freedom in every table of the distribution.
        let deviation = (7.815_f64 * 1000.0 * 0.25 / 2.0).sqrt();
        let counts = [250.0 + deviation, 250.0 - deviation, 250.0, 250.0]
            .map(|count| (count.round() as u64, 0.25));
        let fit = Fit::test(&counts);
        assert_eq!(fit.freedom, 3);
        assert!((fit.probability - 0.05).abs() < 0.005, "{fit:?}");
    }

    #[test]
    fn counts_by_weight_pass_and_even_counts_do_not() {
        let shares = [0.5, 0.25, 0.125, 0.125];
        let by_weight: Vec<_> = [1012, 489, 244, 255].into_iter().zip(shares).collect();
        assert!(Fit::test(&by_weight).plausible());
        let even: Vec<_> = [500; 4].into_iter().zip(shares).collect();
        assert!(!Fit::test(&even).plausible());
    }

    #[test]
    fn an_answer_from_a_backend_without_a_share_fails() {
        assert!(!Fit::test(&[(1000, 0.5), (1000, 0.5), (1, 0.0)]).plausible());
        assert!(Fit::test(&[(1000, 0.5), (1000, 0.5), (0, 0.0)]).plausible());
    }
}
