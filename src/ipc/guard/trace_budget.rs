//! How long the node waits for the UTXO cache trace.
//!
//! The node calls for every coin while it holds its main lock, and each call is a round trip of tens of microseconds,
//! most of it the node's own thread switches. The waiting shows as the time between one call and the next in a burst.

use std::time::Duration;

/// The time of a block. Blocks that follow each other more closely share one budget: a hundred in a minute do not
/// block the node a hundred times.
const BUDGET_PERIOD: Duration = Duration::from_secs(600);
/// The node did not wait between calls that are further apart than this.
const MAX_BURST_GAP: Duration = Duration::from_millis(250);
/// A longer gap between two calls is the node's own work, script checks for example, and no round trip.
const MAX_ROUND_TRIP: Duration = Duration::from_micros(500);

/// How long the node has waited in the present period, and the limit.
pub struct TraceBudget {
    allowed: Option<Duration>,
    began: Duration,
    last: Duration,
    waited: Duration,
    /// The guard's run delay at its last reading in this burst.
    run_delay: Option<Duration>,
}

impl TraceBudget {
    /// `None` allows everything.
    pub fn new(allowed: Option<Duration>) -> Self {
        TraceBudget {
            allowed,
            began: Duration::ZERO,
            last: Duration::ZERO,
            waited: Duration::ZERO,
            run_delay: None,
        }
    }

    /// A call arrives; `true` if the node has waited too long.
    pub fn on_call(&mut self, now: Duration) -> bool {
        if now.saturating_sub(self.began) > BUDGET_PERIOD {
            (self.began, self.waited) = (now, Duration::ZERO);
        }
        let gap = now.saturating_sub(std::mem::replace(&mut self.last, now));
        if gap <= MAX_BURST_GAP {
            self.waited += gap.min(MAX_ROUND_TRIP);
        } else {
            self.run_delay = None;
        }
        self.allowed.is_some_and(|allowed| self.waited > allowed)
    }

    /// Time spent waiting for a CPU (a quota, other tasks) is not the node's work. `total` is since the guard was started.
    pub fn add_run_delay(&mut self, total: Duration) {
        let before = self.run_delay.replace(total).unwrap_or(total);
        self.waited += total.saturating_sub(before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_adds_up_within_a_period() {
        let mut budget = TraceBudget::new(Some(Duration::from_millis(50)));
        let start = Duration::from_secs(1000);
        let mut now = start;
        for _ in 0..=1000 {
            assert!(!budget.on_call(now));
            now += Duration::from_micros(40);
        }
        assert_eq!(budget.waited, Duration::from_millis(40));
        now += Duration::from_millis(100); // the node checks scripts
        budget.on_call(now);
        assert_eq!(budget.waited, Duration::from_millis(40) + MAX_ROUND_TRIP);
        now += Duration::from_secs(60); // the next block
        budget.on_call(now);
        assert_eq!(budget.waited, Duration::from_millis(40) + MAX_ROUND_TRIP);
        let calls = (1..=1000).map(|i| budget.on_call(now + Duration::from_micros(40) * i));
        assert_eq!(calls.filter(|&over| over).count(), 1000 - 237); // 9.5 ms are left
        assert!(!budget.on_call(start + BUDGET_PERIOD + Duration::from_micros(1)));
        assert_eq!(budget.waited, Duration::ZERO);
    }

    #[test]
    fn waiting_for_a_cpu_counts_within_a_burst() {
        let mut budget = TraceBudget::new(Some(Duration::from_millis(50)));
        let now = Duration::from_secs(1000);
        budget.on_call(now);
        budget.add_run_delay(Duration::from_secs(7)); // earlier
        assert!(!budget.on_call(now + Duration::from_micros(40)));
        budget.add_run_delay(Duration::from_millis(7060));
        assert!(budget.on_call(now + Duration::from_millis(61)));
    }

    #[test]
    fn without_a_budget_everything_is_allowed() {
        let mut budget = TraceBudget::new(None);
        assert!(!(0..1_000_000).any(|i| budget.on_call(Duration::from_micros(400) * i)));
    }
}
