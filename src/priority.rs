//! Scheduling: the guard, which the node waits for, before HTTP; and how long a process waited for a CPU.
//!
//! The first two need no privilege and are best effort: what the kernel or a filter of system calls refuses changes no answer.

use std::time::Duration;

use crate::sys;

/// The calling thread gives way to the others of its process.
pub fn give_way() {
    const NICE: i32 = 10;
    sys::add_nice(NICE);
}

/// The calling thread runs in slices of 0.1 ms, so that it need not wait for the end of another's (3 ms, say) when it wakes
/// up. Linux 6.12 or later.
pub fn answer_soon() {
    const SLICE_NS: u64 = 100_000;
    sys::set_slice(SLICE_NS);
}

/// How long a process, `self` or its id, was ready to run and waited for a CPU; `None` if the kernel does not tell.
pub fn run_delay(process: &str) -> Option<Duration> {
    let statistics = std::fs::read_to_string(format!("/proc/{process}/schedstat")).ok()?;
    Some(Duration::from_nanos(statistics.split_whitespace().nth(1)?.parse().ok()?))
}
