//! How long the node waits for the UTXO cache trace.
//!
//! The node calls for every coin while it holds its main lock, and each call is a round trip of tens of microseconds,
//! most of it the node's own thread switches. The waiting shows as the time between one call and the next in a burst.

use std::time::Duration;

/// Calls further apart than this belong to different blocks.
const NEXT_BLOCK: Duration = Duration::from_millis(250);
/// A longer gap between two calls is the node's own work, script checks say, and no round trip.
const LONGEST_ROUND_TRIP: Duration = Duration::from_micros(500);

/// How long the node has waited in the present block, and may.
pub struct Budget {
    allowed: Option<Duration>,
    last: Option<Duration>,
    waited: Duration,
}

impl Budget {
    /// `None` allows everything.
    pub fn new(allowed: Option<Duration>) -> Self {
        Budget { allowed, last: None, waited: Duration::ZERO }
    }

    /// A call arrives; `true` if the node has waited too long.
    pub fn call(&mut self, now: Duration) -> bool {
        match self.last.replace(now).map(|last| now.saturating_sub(last)) {
            Some(gap) if gap <= NEXT_BLOCK => self.waited += gap.min(LONGEST_ROUND_TRIP),
            _ => self.waited = Duration::ZERO,
        }
        self.allowed.is_some_and(|allowed| self.waited > allowed)
    }

    /// A block is connected: what it took counts no more.
    pub fn next_block(&mut self) {
        self.waited = Duration::ZERO;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_adds_up_within_a_block_and_starts_anew_with_the_next() {
        let mut budget = Budget::new(Some(Duration::from_millis(50)));
        let mut now = Duration::from_secs(1000);
        for _ in 0..=1000 {
            assert!(!budget.call(now));
            now += Duration::from_micros(40);
        }
        assert_eq!(budget.waited, Duration::from_millis(40));
        now += Duration::from_millis(100); // the node checks scripts
        budget.call(now);
        assert_eq!(budget.waited, Duration::from_millis(40) + LONGEST_ROUND_TRIP);
        budget.call(now + NEXT_BLOCK * 2);
        assert_eq!(budget.waited, Duration::ZERO);
        let calls = (0..2000).map(|i| budget.call(now + NEXT_BLOCK * 4 + Duration::from_micros(40) * i));
        assert_eq!(calls.filter(|&over| over).count(), 2000 - 1251);
        budget.next_block();
        assert!(!budget.call(now + NEXT_BLOCK * 4 + Duration::from_millis(80)));
    }
}
