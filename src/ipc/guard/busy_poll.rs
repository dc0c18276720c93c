//! Busy polling during bursts of callbacks: the coins of a block, or transactions sent over RPC.

use std::time::Duration;

/// Maximum gap between two callbacks of a burst. During a burst the guard spins for this long before it sleeps, because waking up takes
/// longer than responding.
const MAX_GAP: Duration = Duration::from_micros(300);
/// Maximum duration of one spin. Events are sent after it.
const MAX_STRETCH: Duration = Duration::from_millis(1);
/// A `sched_yield` that takes longer than this means that an unrelated task had the CPU.
const LONG_YIELD: Duration = Duration::from_micros(80);
/// After such a yield, the guard blocks in poll(2) instead of spinning for this long: a woken task preempts the running one, a task that
/// yielded waits in the run queue.
const PREEMPTED_INTERVAL: Duration = Duration::from_millis(1);

/// Decides whether the guard polls the node's socket in a loop or sleeps in poll(2).
#[derive(Default)]
pub struct BusyPoll {
    last_callback_at: Duration,
    is_burst: bool,
    /// No spinning before this time, because an unrelated task needs the CPU.
    preempted_until: Duration,
}

impl BusyPoll {
    /// Records a callback.
    pub fn on_callback(&mut self, now: Duration) {
        self.is_burst = now.saturating_sub(self.last_callback_at) < MAX_GAP;
        self.last_callback_at = now;
    }

    /// Records that part of a large message arrived. The rest is expected at once, like the next callback of a burst.
    pub fn on_partial_message(&mut self, now: Duration) {
        (self.is_burst, self.last_callback_at) = (true, now);
    }

    /// Whether the guard should continue to spin. It has been spinning since `since`.
    pub fn should_spin(&self, since: Duration, now: Duration) -> bool {
        let until = (since + MAX_STRETCH).min(self.last_callback_at + MAX_GAP);
        self.is_burst && now >= self.preempted_until && now < until
    }

    /// Records a yield from `from` to `to`.
    pub fn on_preempted(&mut self, from: Duration, to: Duration) {
        if to.saturating_sub(from) > LONG_YIELD {
            self.preempted_until = to + PREEMPTED_INTERVAL;
        }
    }
}
