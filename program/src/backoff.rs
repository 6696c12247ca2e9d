//! How long to wait before a retry.

use std::time::Duration;

/// Exponential backoff with jitter: each wait doubles up to a maximum. Each is drawn from the upper half of its range,
/// so that clients that failed together do not return together.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    /// Longest wait before the first retry.
    pub initial: Duration,
    /// Longest wait before any retry.
    pub max: Duration,
}

impl Backoff {
    /// The wait after `attempts` failed ones, counted from 1.
    pub fn after(&self, attempts: u64) -> Duration {
        let doublings = u32::try_from(attempts.saturating_sub(1)).unwrap_or(u32::MAX);
        let factor = 2u32.checked_pow(doublings).unwrap_or(u32::MAX);
        let longest = self.initial.saturating_mul(factor).min(self.max);
        longest.mul_f64(rand::random_range(0.5..=1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_wait_is_never_longer_than_the_maximum(attempts: u64) {
            let backoff = Backoff { initial: Duration::from_millis(100), max: Duration::from_secs(30) };
            let wait = backoff.after(attempts);
            prop_assert!(wait <= backoff.max && wait >= backoff.initial / 2);
        }
    }

    #[test]
    fn waits_double() {
        let backoff = Backoff { initial: Duration::from_millis(100), max: Duration::from_secs(30) };
        for attempts in 1..8 {
            assert!(backoff.after(attempts) <= Duration::from_millis(100 << (attempts - 1)));
            assert!(backoff.after(attempts) >= Duration::from_millis(50 << (attempts - 1)));
        }
    }
}
