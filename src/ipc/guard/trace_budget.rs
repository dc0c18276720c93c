//! The time budget of the UTXO cache trace (a subscription to the changes of coins in the node's UTXO caches). The
//! budget limits the time for which the trace may delay the node.
//!
//! The node makes a callback for every coin that it adds, spends or uncaches, and holds its lock `cs_main` while it
//! waits for the response of the guard, the process that responds to callbacks on behalf of the exporter. Each callback
//! takes tens of microseconds, most of it for thread switches in the node. The node's waiting time is measured as the
//! time between two callbacks of a burst.

use std::time::Duration;

/// Period of the budget, equal to the average time between two blocks. All blocks that are connected within one period
/// share one budget, even a hundred blocks in a minute.
const BUDGET_PERIOD: Duration = Duration::from_secs(600);
/// Maximum gap between two callbacks of a burst. A longer gap does not count as waiting time.
const MAX_BURST_GAP: Duration = Duration::from_millis(250);
/// Maximum waiting time that is counted for one gap between two callbacks. A longer gap contains other work of the
/// node, for example script checks.
const MAX_ROUND_TRIP: Duration = Duration::from_micros(500);

/// Counter of the time for which the node has waited for responses to the trace's callbacks in the current period, with
/// the budget as its limit.
#[derive(Default)]
pub struct TraceBudget {
    allowed: Option<Duration>,
    began: Duration,
    last: Duration,
    waited: Duration,
    /// The guard's run delay (time for which the guard waited for a CPU) at the last call of `add_run_delay` in this
    /// burst of callbacks; `None` before the first call.
    run_delay: Option<Duration>,
}

impl TraceBudget {
    /// Creates a counter for the budget `allowed`; `None` sets no limit.
    pub fn new(allowed: Option<Duration>) -> Self {
        TraceBudget { allowed, ..TraceBudget::default() }
    }

    /// Records a callback of the trace. Returns whether the node's waiting time in the current period exceeds the
    /// budget.
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

    /// Adds the time for which the guard waited for a CPU (because of a quota or other tasks) since the previous call
    /// of this method in the same burst. The node waited for the guard during this time, so the time counts against the
    /// budget. `total` is the guard's run delay since its start.
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
        now += Duration::from_millis(100); // a gap in which the node checks scripts
        budget.on_call(now);
        assert_eq!(budget.waited, Duration::from_millis(40) + MAX_ROUND_TRIP);
        now += Duration::from_secs(60); // a gap until the next block
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
