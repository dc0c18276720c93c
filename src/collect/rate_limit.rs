//! Decides when a call to the node may be repeated: after an interval, after a multiple of the duration of the last
//! call, and, if the call failed, after a back-off that grows with each failure.
//!
//! [`Suspensions`] detects that the machine was suspended. After a suspend, the values that were read before the
//! suspend are outdated, although the timer of the next call has not expired, because timers do not advance during a
//! suspend.

use std::time::Duration;

use nix::time::ClockId;
use tokio::time::Instant;

use crate::metrics;
use crate::sys::clock;

/// Rate limit of one type of call to the node, which determines the earliest time of the next call from the interval,
/// the duration of the last call and the number of failures.
pub struct RateLimit {
    /// Minimum time between the starts of two calls.
    interval: Duration,
    /// Minimum time between the starts of two calls, as a multiple of the duration of the first call. This limit is
    /// called the time budget, because it limits the share of the node's time: with 100, calls take at most 1 %. Zero
    /// for no time budget.
    share: u32,
    /// Maximum back-off after a failure.
    max_backoff: Duration,
    /// End of the interval after the last call, or end of the back-off if the last call failed.
    interval_end: Instant,
    /// Time from which the time budget permits the next call.
    busy_until: Instant,
    /// Whether the last call was made before the time budget permitted it.
    in_debt: bool,
    /// Earliest time at which an event (a new tip) may cause a call before the call is due.
    earliest_event: Instant,
    /// Number of failed calls in a row.
    failures: u32,
    /// Time for which the result of the last successful call is exported.
    lifetime: Duration,
}

impl RateLimit {
    /// Minimum interval of a costly call: a call during which the node holds a lock that many of its threads need, for
    /// example `cs_main`, or waits for another of its threads.
    const COSTLY_INTERVAL: Duration = Duration::from_secs(60);
    /// Value of `share` for costly calls, with which each type of costly call takes at most 0.1 % of the node's time.
    const COSTLY_SHARE: u32 = 1000;
    /// Maximum time for which the time budget delays the next call, even after a very long call. This maximum is less
    /// than [`MAX_LIFETIME`](Self::MAX_LIFETIME), so no value expires before the next call.
    const MAX_INTERVAL: Duration = Duration::from_secs(4 * 60);
    /// Maximum time for which the result of a call is exported, if the interval of the call is not longer than half of
    /// this time.
    const MAX_LIFETIME: Duration = Duration::from_secs(5 * 60);
    /// Minimum time between the starts of two calls that are made before they are due, because of events (new tips).
    const MIN_EARLY_INTERVAL: Duration = Duration::from_secs(1);
    /// Back-off after the first failure. The back-off doubles with each further failure.
    const MIN_BACKOFF: Duration = Duration::from_secs(1);
    /// Maximum back-off after a failure.
    const MAX_BACKOFF: Duration = Duration::from_secs(60);

    /// Creates the limit of a call that is due now. After a success the next call is due after `interval`, or after
    /// `share` times the duration of the call if that is longer. After failures in a row, the next call is due after
    /// one second, two seconds, four seconds and so on, at most after `interval` or one minute, whichever is shorter.
    pub fn new(interval: Duration, share: u32) -> Self {
        let now = Instant::now();
        RateLimit {
            interval,
            share,
            max_backoff: Self::MAX_BACKOFF.min(interval),
            interval_end: now,
            busy_until: now,
            in_debt: false,
            earliest_event: now,
            failures: 0,
            lifetime: metrics::lifetime(interval),
        }
    }

    /// Creates the limit of a costly call (see [`COSTLY_INTERVAL`](Self::COSTLY_INTERVAL)).
    pub fn costly(poll_interval: Duration) -> Self {
        Self::new(Self::COSTLY_INTERVAL.max(poll_interval), Self::COSTLY_SHARE)
    }

    /// Creates the limit of a call that is limited only by the back-off after failures.
    pub fn for_failures() -> Self {
        RateLimit { max_backoff: Self::MAX_BACKOFF, ..Self::new(Duration::ZERO, 0) }
    }

    /// Records a successful call that started at `started` and ended at `ended`.
    pub fn succeeded(&mut self, started: Instant, ended: Instant) {
        let cost = (ended - started).saturating_mul(self.share).min(Self::MAX_INTERVAL);
        self.failures = 0;
        self.in_debt = started < self.busy_until;
        self.busy_until = (self.busy_until.max(started) + cost).min(ended + Self::MAX_INTERVAL);
        self.interval_end = started + self.interval;
        let apart = self.due() - started;
        let lifetime = apart.saturating_mul(2).min(Self::MAX_LIFETIME);
        self.lifetime = lifetime.max(metrics::lifetime(self.interval));
    }

    /// Records that the call that started at `started` was made before it was due, because of an event, for example a
    /// new tip.
    pub fn was_early(&mut self, started: Instant) {
        self.earliest_event = started + Self::MIN_EARLY_INTERVAL.min(self.interval);
    }

    /// Records a call that failed at the time `ended`.
    pub fn failed(&mut self, ended: Instant) {
        let backoff = Self::MIN_BACKOFF.saturating_mul(2u32.saturating_pow(self.failures));
        self.failures = self.failures.saturating_add(1);
        self.interval_end = ended + backoff.min(self.max_backoff);
        self.earliest_event = self.interval_end;
    }

    /// Records a call that failed at the time `ended` and would fail again if it was repeated. The next call is due
    /// after the maximum back-off.
    pub fn failed_permanently(&mut self, ended: Instant) {
        self.failures = u32::MAX;
        self.failed(ended);
    }

    /// Time from which the next call may be made without an event.
    pub fn due(&self) -> Instant {
        self.interval_end.max(self.busy_until)
    }

    /// Time from which the next call may be made because of an event. One early call may exceed the time budget; the
    /// call after the early call has to wait until the time budget permits a call.
    pub fn due_at_event(&self) -> Instant {
        if self.in_debt { self.busy_until.max(self.earliest_event) } else { self.earliest_event }
    }

    /// Time for which the result of the last successful call is exported: twice the time from the start of this call
    /// until the next call is due, but at most five minutes, and at least the lifetime of a value that is read once per
    /// interval.
    pub fn lifetime(&self) -> Duration {
        self.lifetime
    }
}

/// Interval between two checks whether the machine was suspended.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Minimum duration of a suspend that is detected. A shorter suspend cannot be distinguished from a delay between the
/// readings of the two clocks.
const MIN_SUSPENSION: Duration = Duration::from_secs(1);

/// Detector of suspends of the machine, which compares a clock that advances during a suspend with a clock that does
/// not.
pub struct Suspensions {
    /// Total time for which the machine was suspended since boot, at the last check.
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

    const SECOND: Duration = Duration::from_secs(1);

    /// Returns a new limit, and the time at which its first call is due.
    fn limit(interval: Duration, share: u32) -> (RateLimit, Instant) {
        let limit = RateLimit::new(interval, share);
        let start = limit.due();
        (limit, start)
    }

    #[test]
    fn calls_keep_their_interval_and_their_share_of_time() {
        let (mut limit, start) = limit(15 * SECOND, 100);
        limit.succeeded(start, start + SECOND / 100);
        assert_eq!((limit.due(), limit.lifetime()), (start + 15 * SECOND, 30 * SECOND));
        limit.succeeded(start + 15 * SECOND, start + 15 * SECOND + SECOND / 2);
        assert_eq!((limit.due(), limit.lifetime()), (start + 65 * SECOND, 100 * SECOND));
    }

    #[test]
    fn slow_calls_are_repeated_before_their_values_vanish() {
        let mut limit = RateLimit::costly(15 * SECOND);
        for _ in 0..3 {
            let start = limit.due();
            limit.succeeded(start, start + 12 * SECOND);
            assert!(limit.due() - start < limit.lifetime(), "{:?}", limit.lifetime());
            assert!(limit.lifetime() <= 300 * SECOND);
        }
    }

    #[test]
    fn failures_back_off_from_a_second_to_a_minute() {
        let mut limit = RateLimit::costly(15 * SECOND);
        let mut backoffs = Vec::new();
        for _ in 0..40 {
            let ended = limit.due() + 12 * SECOND;
            limit.failed(ended);
            backoffs.push((limit.due() - ended).as_secs());
            assert_eq!(limit.due_at_event(), limit.due(), "an event is no reason either");
        }
        assert_eq!(backoffs[..7], [1, 2, 4, 8, 16, 32, 60]);
        assert_eq!(backoffs[39], 60);
        let started = limit.due();
        limit.succeeded(started, started);
        limit.failed(started);
        assert_eq!(limit.due(), started + SECOND, "a success starts over");
        limit.failed_permanently(started);
        assert_eq!(limit.due(), started + 60 * SECOND);
        let (mut polls, start) = self::limit(5 * SECOND, 0);
        (0..9).for_each(|_| polls.failed(start));
        assert_eq!(polls.due(), start + 5 * SECOND, "never longer than the interval");
    }

    #[test]
    fn events_are_early_once_and_charged_to_the_budget() {
        let (mut limit, start) = limit(15 * SECOND, 100);
        limit.succeeded(start, start + SECOND / 2); // the time budget permits the next call after 50 s
        let tip = start + 20 * SECOND;
        assert!(limit.due_at_event() < tip);
        limit.succeeded(tip, tip + SECOND / 2);
        limit.was_early(tip);
        assert_eq!((limit.due(), limit.due_at_event()), (start + 100 * SECOND, start + 100 * SECOND));
        // With any number of events, the calls take at most 1 % of the time.
        let (mut limit, start) = self::limit(15 * SECOND, 100);
        let (mut now, mut busy) = (start, Duration::ZERO);
        for _ in 0..1000 {
            now = limit.due_at_event().max(now);
            limit.succeeded(now, now + SECOND / 5);
            limit.was_early(now);
            (now, busy) = (now + SECOND / 5, busy + SECOND / 5);
        }
        assert!((now - start).as_secs_f64() > 0.99 * 100.0 * busy.as_secs_f64());
    }

    #[test]
    fn events_in_a_burst_are_a_second_apart() {
        let (mut limit, start) = limit(15 * SECOND, 100);
        limit.succeeded(start, start);
        assert_eq!(limit.due_at_event(), start, "the first is not one of many");
        limit.succeeded(start, start);
        limit.was_early(start);
        assert_eq!(limit.due_at_event(), start + SECOND);
        // Without a time budget, an event may cause a call one second after the start of the last early call.
        let (mut limit, start) = self::limit(15 * SECOND, 0);
        limit.succeeded(start, start + 10 * SECOND);
        limit.was_early(start);
        assert_eq!((limit.due(), limit.due_at_event()), (start + 15 * SECOND, start + SECOND));
    }

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
