//! Determines the start time of the node's process, and whether the node was restarted, or whether another node
//! responds than before (for example behind a proxy).
//!
//! Bitcoin Core 30 and earlier compute the uptime as the difference of two wall clock readings, so the uptime jumps
//! when the wall clock is set. From version 31 on the uptime is monotonic. An uptime that is smaller than expected is
//! therefore not sufficient evidence of a restart: the wall clock may have been set back.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use nix::time::ClockId;

use crate::sys;

/// Tolerance in seconds when two uptimes are compared. The node rounds each uptime to whole seconds, so the difference
/// of two uptimes can be wrong by about a second.
const TOLERANCE: f64 = 2.0;

/// An uptime of the node, and the exporter's times before and after the call that returned this uptime.
#[derive(Clone, Copy)]
pub struct UptimeReading {
    /// The node's uptime in seconds.
    pub seconds: f64,
    /// Time before the call, on the exporter's monotonic clock. Like the uptime of Bitcoin Core 31, this clock does not
    /// advance while the machine is suspended.
    pub called: Instant,
    /// Time after the call, on the exporter's monotonic clock.
    pub returned: Instant,
}

impl UptimeReading {
    /// Whether this uptime shows that the node's process started after the reading `last`.
    fn is_of_another_process(&self, last: &UptimeReading) -> bool {
        let expected = last.seconds + self.called.saturating_duration_since(last.returned).as_secs_f64();
        let since_last = self.returned.saturating_duration_since(last.called).as_secs_f64();
        self.seconds >= 0.0 && self.seconds + TOLERANCE < expected && self.seconds <= since_last + TOLERANCE
    }

    /// Whether this uptime is the uptime that the process that returned `last` would return now, provided that the wall
    /// clock was not set between the two readings.
    fn continues(&self, last: &UptimeReading) -> bool {
        let least = last.seconds + self.called.saturating_duration_since(last.returned).as_secs_f64();
        let most = last.seconds + self.returned.saturating_duration_since(last.called).as_secs_f64();
        (least - TOLERANCE..=most + TOLERANCE).contains(&self.seconds)
    }
}

/// Whether the node process that responds now is the process that responded before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum NodeIdentity {
    /// The same process responds as before.
    #[default]
    Same,
    /// Another process responds, which started after the previous response.
    StartedSince,
    /// Another process responds, which started before the previous response, or there is no evidence of which process
    /// responds.
    Unknown,
}

/// Tracker of the node's process over all connections: when the process started, how often another process was
/// detected, and whether the current process is the previous one.
#[derive(Default)]
pub struct NodeStartTracker {
    /// PID of the node's process, and its start time in clock ticks since boot; `None` if the process is not visible in
    /// `/proc`.
    process: Option<(i32, u64)>,
    uptime: Option<UptimeReading>,
    /// Time of the last update, in clock ticks since boot.
    read: u64,
    /// Start time of the node's process, in Unix seconds. The start time is computed once and kept until another
    /// process responds, because a later computation would give another result if the wall clock is set.
    started: Option<f64>,
    /// Whether no uptime was read since the current connection was opened. The next uptime may be of another node,
    /// because a proxy can route a new connection to another node.
    is_new_connection: bool,
    restarts: u64,
    /// The least certain of the identities that were determined since the last call of
    /// [`take_identity`](Self::take_identity).
    identity: Option<NodeIdentity>,
}

impl NodeStartTracker {
    /// Number of detected restarts of the node. The number increases when the exporter detects that another process
    /// responds than before.
    pub fn restarts(&self) -> u64 {
        self.restarts
    }

    /// Records that a new connection to the node was opened.
    pub fn connected(&mut self) {
        self.is_new_connection = true;
    }

    /// Returns whether the process that responds now is the process that responded at the previous call of this method.
    /// Returns `Unknown` if the tracker was not updated since then.
    pub fn take_identity(&mut self) -> NodeIdentity {
        self.identity.take().unwrap_or(NodeIdentity::Unknown)
    }

    /// Compares the process that responds now with the process of the last update. Returns the result, and whether
    /// there is evidence of another process.
    fn identify(&self, process: Option<(i32, u64)>, uptime: Option<UptimeReading>) -> (NodeIdentity, bool) {
        let by_uptime = || {
            let readings = self.uptime.zip(uptime);
            readings.is_some_and(|(last, uptime)| uptime.is_of_another_process(&last))
        };
        match (self.process, process) {
            (Some(last), Some(process)) if last == process => (NodeIdentity::Same, false),
            (Some(_), Some((_, started))) if started >= self.read => (NodeIdentity::StartedSince, true),
            (Some(_), Some(_)) => (NodeIdentity::Unknown, true),
            _ if by_uptime() => (NodeIdentity::StartedSince, true),
            _ => (NodeIdentity::Unknown, false),
        }
    }

    /// Updates the tracker. `process` is the node's process if it is visible in `/proc`, and `uptime` is a new reading
    /// of the node's uptime, if the node returned one. Returns the start time of the current process in Unix seconds,
    /// computed from `/proc` if the process is visible there, otherwise as `now` minus the uptime.
    pub fn update(
        &mut self,
        process: Option<(i32, u64)>,
        uptime: Option<UptimeReading>,
        now: SystemTime,
    ) -> Option<f64> {
        let (identity, restarted) = self.identify(process, uptime);
        let identity = self.identity.max(Some(identity));
        if restarted {
            *self = NodeStartTracker { restarts: self.restarts + 1, ..NodeStartTracker::default() };
        }
        if let (true, None, Some(last), Some(uptime)) = (self.is_new_connection, process, self.uptime, uptime)
            && !uptime.continues(&last)
        {
            self.started = None;
        }
        self.is_new_connection &= uptime.is_none();
        self.identity = identity;
        self.read = (since_boot() * procfs::ticks_per_second() as f64) as u64;
        self.process = process.or(self.process);
        self.uptime = uptime.or(self.uptime);
        if self.started.is_none() {
            let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
            let ago = process.map(age).or(uptime.map(|uptime| uptime.seconds));
            self.started = ago.map(|ago| (now - ago).floor());
        }
        self.started
    }
}

/// Age in seconds of a process, of which the PID and the start time in clock ticks since boot are given.
fn age((_, ticks): (i32, u64)) -> f64 {
    since_boot() - ticks as f64 / procfs::ticks_per_second() as f64
}

/// Seconds since boot, including the time for which the machine was suspended.
fn since_boot() -> f64 {
    sys::clock(ClockId::CLOCK_BOOTTIME).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const MINUTE: Duration = Duration::from_secs(60);

    /// Passes readings (time in seconds, uptime) to a tracker. Returns the start times that the tracker returned, and
    /// the number of restarts.
    fn starts(readings: &[(u64, f64)]) -> (Vec<f64>, u64) {
        let mut node = NodeStartTracker::default();
        let begin = Instant::now();
        let starts = readings.iter().map(|&(second, uptime)| {
            let at = begin + Duration::from_secs(second);
            let uptime = UptimeReading { seconds: uptime, called: at, returned: at };
            node.update(None, Some(uptime), UNIX_EPOCH + Duration::from_secs(1_000_000 + second))
        });
        let starts = starts.map(|start| start.unwrap() - 1e6).collect();
        (starts, node.restarts())
    }

    #[test]
    fn clock_step_is_no_restart() {
        assert_eq!(starts(&[(100, 100.0), (115, 115.0), (130, 129.0)]), (vec![0.0; 3], 0), "rounded");
        assert_eq!(starts(&[(100, 100.0), (115, 105.0), (130, 120.0)]), (vec![0.0; 3], 0), "-10 s");
        assert_eq!(starts(&[(100, 100.0), (115, 3715.0), (130, 130.0)]), (vec![0.0; 3], 0), "+1 h and back");
        assert_eq!(starts(&[(100, 100.0), (115, -3485.0), (130, -3470.0)]), (vec![0.0; 3], 0), "-1 h");
        assert_eq!(starts(&[(100, 100.0), (115, 715.0)]), (vec![0.0; 2], 0), "suspended for ten minutes");
        assert_eq!(starts(&[(1, 1.0), (2, 2.0), (3, 3.0), (18, 18.0)]), (vec![0.0; 4], 0), "young");
    }

    #[test]
    fn another_node_behind_a_proxy_has_its_own_start() {
        let (mut node, begin) = (NodeStartTracker::default(), Instant::now());
        let mut start = |is_new_connection: bool, second: u64, seconds: Option<f64>| {
            if is_new_connection {
                node.connected();
            }
            let at = begin + Duration::from_secs(second);
            let uptime = seconds.map(|seconds| UptimeReading { seconds, called: at, returned: at });
            node.update(None, uptime, UNIX_EPOCH + Duration::from_secs(1_000_000 + second))
                .map(|start| start - 1e6)
        };
        assert_eq!(start(true, 100, Some(100.0)), Some(0.0));
        assert_eq!(start(false, 115, Some(9000.0)), Some(0.0), "over one connection a clock was set");
        assert_eq!(start(false, 130, Some(130.0)), Some(0.0));
        assert_eq!(start(true, 145, Some(146.0)), Some(0.0), "the same node");
        assert_eq!(start(true, 160, None), Some(0.0));
        assert_eq!(start(false, 175, Some(50_175.0)), Some(-50_000.0), "an older one");
        assert_eq!(start(true, 190, Some(140.0)), Some(50.0), "a younger one");
        assert_eq!(start(false, 205, Some(3755.0)), Some(50.0), "a clock was set");
    }

    #[test]
    fn restart_changes_start_time_once() {
        assert_eq!(starts(&[(100, 100.0), (115, 10.0), (130, 25.0)]), (vec![0.0, 105.0, 105.0], 1));
        assert_eq!(starts(&[(100, 100.0), (115, 0.0), (116, 1.0)]), (vec![0.0, 115.0, 115.0], 1));
        assert_eq!(starts(&[(20, 20.0), (30, 5.0), (40, 3.0)]), (vec![0.0, 25.0, 37.0], 2), "crash loop");
        let (shown, restarts) = starts(&[(100, 100.0), (1000, 300.0)]);
        assert_eq!((shown, restarts), (vec![0.0, 700.0], 1), "away for longer than it had been up");
    }

    #[test]
    fn another_node_is_distinguished_from_a_restart() {
        let mut node = NodeStartTracker::default();
        let begin = Instant::now();
        let mut identity = |process, second, uptime: Option<f64>| {
            let at = begin + Duration::from_secs(second);
            let uptime = uptime.map(|seconds| UptimeReading { seconds, called: at, returned: at });
            node.update(process, uptime, SystemTime::now());
            node.take_identity()
        };
        assert_eq!(identity(None, 145, Some(145.0)), NodeIdentity::Unknown, "the first");
        assert_eq!(identity(None, 160, Some(160.0)), NodeIdentity::Unknown, "two can be of the same age");
        assert_eq!(identity(None, 175, Some(5.0)), NodeIdentity::StartedSince);
        assert_eq!(identity(None, 180, None), NodeIdentity::Unknown);
        assert_eq!(identity(None, 185, Some(90_000.0)), NodeIdentity::Unknown, "another, or a clock was set");
        // If the process is visible, its PID and start time determine the result, and the uptime is ignored.
        let now = (since_boot() * procfs::ticks_per_second() as f64) as u64;
        assert_eq!(identity(Some((7, 100)), 190, Some(90_005.0)), NodeIdentity::Unknown, "not seen before");
        assert_eq!(identity(Some((7, 100)), 205, Some(1.0)), NodeIdentity::Same);
        assert_eq!(identity(Some((8, now + 1_000_000)), 220, Some(1.0)), NodeIdentity::StartedSince);
        assert_eq!(identity(Some((9, 100)), 235, Some(16.0)), NodeIdentity::Unknown, "it ran all the time");
    }

    #[test]
    fn identity_is_the_least_certain_since_it_was_taken() {
        let mut node = NodeStartTracker::default();
        let begin = Instant::now();
        let at = |second| begin + Duration::from_secs(second);
        let update = |node: &mut NodeStartTracker, second, seconds| {
            let uptime = UptimeReading { seconds, called: at(second), returned: at(second) };
            node.update(None, Some(uptime), SystemTime::now());
        };
        update(&mut node, 0, 100.0);
        node.take_identity();
        update(&mut node, 15, 90_000.0);
        update(&mut node, 30, 10.0);
        assert_eq!(node.take_identity(), NodeIdentity::Unknown);
        update(&mut node, 45, 5.0);
        assert_eq!(node.take_identity(), NodeIdentity::StartedSince);
    }

    #[test]
    fn visible_process_decides() {
        let mut node = NodeStartTracker::default();
        let begin = Instant::now();
        let uptime =
            |seconds| Some(UptimeReading { seconds, called: begin + MINUTE, returned: begin + MINUTE });
        let now = SystemTime::now();
        let first = node.update(Some((7, 100)), uptime(90.0), now);
        assert_eq!(node.update(Some((7, 100)), uptime(1.0), now + MINUTE), first, "a step of either clock");
        assert_eq!(node.restarts(), 0);
        let later = node.update(Some((8, 10_000)), uptime(1.0), now).unwrap() - first.unwrap();
        let ticks = procfs::ticks_per_second() as f64;
        assert!((later - 9_900.0 / ticks).abs() <= 1.0, "{later}");
        assert_eq!(node.restarts(), 1);
        // A reading without an uptime does not change the start time.
        let last = node.update(Some((8, 10_000)), None, now + MINUTE);
        assert_eq!(last.zip(first).map(|(last, first)| last - first), Some(later));
        assert_eq!(NodeStartTracker::default().update(None, None, now), None);
    }
}
