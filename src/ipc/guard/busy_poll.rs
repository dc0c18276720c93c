//! Callbacks in a burst: a block's coins, or transactions sent over RPC.

use std::time::Duration;

/// Callbacks that follow each other closer than this are a burst. The guard then spins this long for the next one before
/// it sleeps, because waking up takes longer than answering.
const MAX_GAP: Duration = Duration::from_micros(300);
/// Limit on spinning at a stretch: events are sent after it.
const MAX_STRETCH: Duration = Duration::from_millis(1);
/// A yield longer than this means that an unrelated task had the CPU.
const LONG_YIELD: Duration = Duration::from_micros(80);
/// Then block in poll(2) this long instead of spinning: a woken task preempts, one that yielded queues.
const PREEMPTED_INTERVAL: Duration = Duration::from_millis(1);

/// Whether to look for the next message instead of going to sleep.
#[derive(Default)]
pub struct BusyPoll {
    last_callback_at: Duration,
    is_burst: bool,
    /// An unrelated task needs the CPU until then.
    preempted_until: Duration,
}

impl BusyPoll {
    /// A callback arrived.
    pub fn on_callback(&mut self, now: Duration) {
        self.is_burst = now.saturating_sub(self.last_callback_at) < MAX_GAP;
        self.last_callback_at = now;
    }

    /// Part of a large message arrived: the rest is on its way.
    pub fn on_partial_message(&mut self, now: Duration) {
        (self.is_burst, self.last_callback_at) = (true, now);
    }

    /// Whether to look for the next message. It has been looked for since `since`.
    pub fn should_spin(&self, since: Duration, now: Duration) -> bool {
        let until = (since + MAX_STRETCH).min(self.last_callback_at + MAX_GAP);
        self.is_burst && now >= self.preempted_until && now < until
    }

    /// The guard yielded at `from` and ran again at `to`.
    pub fn on_preempted(&mut self, from: Duration, to: Duration) {
        if to.saturating_sub(from) > LONG_YIELD {
            self.preempted_until = to + PREEMPTED_INTERVAL;
        }
    }
}
