//! Detects that the machine was suspended. After a suspend, the values that were read before the suspend are outdated,
//! although the timer of the next poll has not expired, because timers do not advance during a suspend.

use std::time::Duration;

use nix::time::ClockId;

use crate::sys::clock;

/// Interval between two checks whether the machine was suspended.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Minimum duration of a suspend that is detected. A shorter suspend cannot be distinguished from a delay between the
/// readings of the two clocks.
const MIN_SUSPENSION: Duration = Duration::from_secs(1);

/// Detector of suspends of the machine.
pub struct Suspensions {
    /// Total suspend time since boot, at the last check.
    before: Duration,
}

impl Suspensions {
    /// Creates a detector of suspends that start after this call.
    pub fn new() -> Self {
        Suspensions { before: suspended_since_boot() }
    }

    /// Waits for the next suspend. Returns within a second after the machine has resumed.
    pub async fn next(&mut self) {
        while !self.is_longer(suspended_since_boot()) {
            tokio::time::sleep(CHECK_INTERVAL).await;
        }
    }

    /// Whether the machine was suspended since the last check. `now` is the total suspend time since boot.
    fn is_longer(&mut self, now: Duration) -> bool {
        let before = std::mem::replace(&mut self.before, now);
        now.saturating_sub(before) >= MIN_SUSPENSION
    }
}

/// Total time for which the machine was suspended since boot, computed as CLOCK_BOOTTIME, which includes this time,
/// minus CLOCK_MONOTONIC, which does not.
fn suspended_since_boot() -> Duration {
    let running = clock(ClockId::CLOCK_MONOTONIC);
    clock(ClockId::CLOCK_BOOTTIME).saturating_sub(running)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suspension_is_noticed_once() {
        let at = Duration::from_millis;
        let mut suspensions = Suspensions { before: at(5_000) };
        assert!(!suspensions.is_longer(at(5_001)), "the clocks are not read at the same time");
        assert!(!suspensions.is_longer(at(4_999)));
        assert!(suspensions.is_longer(at(604_999)), "ten minutes");
        assert!(!suspensions.is_longer(at(605_000)));
        assert!(suspensions.is_longer(at(606_000)), "a second");
    }
}
