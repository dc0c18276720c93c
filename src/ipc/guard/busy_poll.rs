//! Busy polling of the node's socket by the guard, the process that responds to the node's callbacks. The guard polls
//! in a loop during a burst of callbacks, for example for the coins of a block or for many transactions that are sent
//! over RPC.

use std::time::Duration;

/// Maximum interval between two consecutive callbacks of one burst. During a burst the guard polls in a loop for this
/// time after each callback before it sleeps, because waking the guard takes longer than responding to a callback.
const MAX_GAP: Duration = Duration::from_micros(300);
/// Maximum duration of one busy-polling loop. During the loop, events for the exporter wait in the guard's event queue
/// unless the queue exceeds 64 KiB.
const MAX_STRETCH: Duration = Duration::from_millis(1);
/// Duration of a `sched_yield` call above which the guard assumes that the kernel ran another task on the CPU.
const LONG_YIELD: Duration = Duration::from_micros(80);
/// Time after a long `sched_yield` during which the guard sleeps in poll(2) instead of busy polling. The guard sleeps
/// because a task that wakes from poll(2) preempts the running task, but a task that called `sched_yield` waits in the
/// run queue.
const PREEMPTED_INTERVAL: Duration = Duration::from_millis(1);

/// State from which the guard decides whether to poll the node's socket in a loop or to sleep in poll(2): the times of
/// the node's last callback and of the guard's last preemption.
#[derive(Default)]
pub struct BusyPoll {
    last_callback_at: Duration,
    is_burst: bool,
    /// The guard does not busy-poll before this time, because another task needs the CPU.
    preempted_until: Duration,
}

impl BusyPoll {
    /// Records that a callback of the node arrived.
    pub fn on_callback(&mut self, now: Duration) {
        self.is_burst = now.saturating_sub(self.last_callback_at) < MAX_GAP;
        self.last_callback_at = now;
    }

    /// Records that a part of a large message of the node arrived. The remaining bytes are expected immediately, like
    /// the next callback of a burst.
    pub fn on_partial_message(&mut self, now: Duration) {
        (self.is_burst, self.last_callback_at) = (true, now);
    }

    /// Whether the guard should continue the busy-polling loop that started at `since`.
    pub fn should_spin(&self, since: Duration, now: Duration) -> bool {
        let until = (since + MAX_STRETCH).min(self.last_callback_at + MAX_GAP);
        self.is_burst && now >= self.preempted_until && now < until
    }

    /// Records a call of `sched_yield` that lasted from `from` to `to`. A long call means that another task needed the
    /// CPU.
    pub fn on_preempted(&mut self, from: Duration, to: Duration) {
        if to.saturating_sub(from) > LONG_YIELD {
            self.preempted_until = to + PREEMPTED_INTERVAL;
        }
    }
}
