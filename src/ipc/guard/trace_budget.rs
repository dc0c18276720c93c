//! The time budget of the UTXO cache trace: limits how long the node waits for the exporter.
//!
//! The node makes a call for every coin while it holds its main lock. Each call is a round trip of tens of microseconds, most of it thread
//! switches of the node. The waiting time is measured as the time between two calls of a burst.

use std::time::Duration;

/// Period of the budget, the average time between two blocks. Blocks within one period share the budget: a hundred blocks in a minute do
/// not use it a hundred times.
const BUDGET_PERIOD: Duration = Duration::from_secs(600);
/// Maximum gap between two calls of a burst. A longer gap is not waiting time of the node.
const MAX_BURST_GAP: Duration = Duration::from_millis(250);
/// Limit on the waiting time per gap: a longer gap has work of the node, for example script checks, besides the round trip.
const MAX_ROUND_TRIP: Duration = Duration::from_micros(500);

/// Measures how long the node has waited in the present period, and compares it with the budget.
#[derive(Default)]
pub struct TraceBudget {
    allowed: Option<Duration>,
    began: Duration,
    last: Duration,
    waited: Duration,
    /// The guard's run delay at the last reading in this burst.
    run_delay: Option<Duration>,
}

impl TraceBudget {
    /// `None` sets no limit.
    pub fn new(allowed: Option<Duration>) -> Self {
        TraceBudget { allowed, ..TraceBudget::default() }
    }

    /// Records a call; returns `true` if the node has waited too long.
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

    /// Adds the time that the guard waited for a CPU (because of a quota or other tasks) since the last reading. The node waited meanwhile,
    /// so this time counts against the budget. `total` is the run delay since the guard was started.
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
        assert_eq!(calls.filter(|&over| over).count(), 1000 - 237); // 9.5 ms of the budget are left
        assert!(!budget.on_call(start + BUDGET_PERIOD + Duration::from_micros(1)));
        assert_eq!(budget.waited, Duration::ZERO);
    }

    #[test]
    fn waiting_for_a_cpu_counts_within_a_burst() {
        let mut budget = TraceBudget::new(Some(Duration::from_millis(50)));
        let now = Duration::from_secs(1000);
        budget.on_call(now);
        budget.add_run_delay(Duration::from_secs(7)); // run delay from before the burst
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
