//! Converts times of the kernel's monotonic clock, which the BPF programs read, to the wall clock.

use std::fs;
use std::sync::LazyLock;

use nix::time::ClockId;

use crate::sys;

/// Unix time at which the kernel's monotonic clock was 0, in nanoseconds. This value plus a monotonic time from a BPF
/// program is the Unix time of the same moment. Each call measures the value again, because the wall clock can be set
/// and the monotonic clock stops while the machine is suspended.
pub(super) fn epoch_ns() -> i64 {
    const TRIES: usize = 5;
    let measured = (0..TRIES).map(|_| {
        let (before, wall, after) =
            (read(ClockId::CLOCK_MONOTONIC), read(ClockId::CLOCK_REALTIME), read(ClockId::CLOCK_MONOTONIC));
        (after - before, wall - (before + (after - before) / 2))
    });
    // A measurement is inaccurate if this thread is interrupted between the two readings of the monotonic clock, so the
    // measurement with the shortest time between these readings is used.
    let (_shortest, epoch_ns) = measured.min().expect("more than one try");
    epoch_ns + *NAMESPACE_OFFSET_NS
}

/// The time of a clock, in nanoseconds.
fn read(clock: ClockId) -> i64 {
    sys::clock(clock).as_nanos() as i64
}

/// Nanoseconds by which the monotonic clock of this process's time namespace is ahead of the kernel's monotonic clock.
/// The offset is read only once, because it cannot change while a process is in the namespace.
static NAMESPACE_OFFSET_NS: LazyLock<i64> = LazyLock::new(|| {
    // `timens_offsets` has the offsets of the time namespace for child processes. The file is read only if this
    // namespace is also the time namespace of this process.
    let namespace = |name| fs::read_link(format!("/proc/self/ns/{name}")).ok();
    match namespace("time") {
        Some(ours) if namespace("time_for_children") == Some(ours.clone()) => {
            fs::read_to_string("/proc/self/timens_offsets")
                .ok()
                .and_then(|text| monotonic_ns(&text))
                .unwrap_or(0)
        }
        _ => 0,
    }
});

/// Parses `/proc/PID/timens_offsets`, which has one line per clock with seconds and nanoseconds. Returns the offset of
/// the monotonic clock in nanoseconds.
fn monotonic_ns(offsets: &str) -> Option<i64> {
    let mut words = offsets.lines().find_map(|line| line.strip_prefix("monotonic"))?.split_whitespace();
    let mut number = || words.next()?.parse::<i64>().ok();
    number()?.checked_mul(1_000_000_000)?.checked_add(number()?)
}

#[cfg(test)]
mod tests {
    use super::monotonic_ns;

    #[test]
    fn offset_of_a_time_namespace_is_read() {
        assert_eq!(
            monotonic_ns("monotonic      86400         5\nboottime       1         0\n"),
            Some(86_400_000_000_005)
        );
        assert_eq!(
            monotonic_ns("monotonic           -2 500000000\nboottime            0         0\n"),
            Some(-1_500_000_000)
        );
        assert_eq!(monotonic_ns(""), None);
    }
}
