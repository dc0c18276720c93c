//! Scheduling and memory: the guard, which the node waits for, comes before HTTP; and how long a process waited for a CPU.
//!
//! None of it needs a privilege, and all is best effort: a call that the kernel or a filter of system calls rejects changes no answer.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use crate::sys;

/// Lowers the calling thread's priority below the others of its process.
pub fn lower_priority() {
    const NICE: i32 = 10;
    sys::add_nice(NICE);
}

/// The calling thread runs in slices of 0.1 ms, and need not wait for the end of another's (3 ms for example) when it wakes
/// up. Linux 6.12 or later.
pub fn shorten_timeslice() {
    const SLICE_NS: u64 = 100_000;
    sys::set_slice(SLICE_NS);
}

/// How long a process, `self` or its id, was ready to run and waited for a CPU; `None` if the kernel has no such statistic.
pub fn run_delay(process: &str) -> Option<Duration> {
    delay(&std::fs::read_to_string(format!("/proc/{process}/schedstat")).ok()?)
}

/// How long this process waited for a CPU, from a file that stays open.
pub struct RunDelayFile(File);

impl RunDelayFile {
    /// `None` if the kernel has no such statistic.
    pub fn open() -> Option<Self> {
        File::open("/proc/self/schedstat").ok().map(RunDelayFile)
    }

    /// As [`run_delay`].
    pub fn read(&self) -> Option<Duration> {
        let mut statistics = [0; 128];
        let read = self.0.read_at(&mut statistics, 0).ok()?;
        delay(std::str::from_utf8(&statistics[..read]).ok()?)
    }
}

fn delay(statistics: &str) -> Option<Duration> {
    Some(Duration::from_nanos(statistics.split_whitespace().nth(1)?.parse().ok()?))
}

/// When memory runs out, the kernel kills this process last: with a privilege never, else by the score that it was given.
pub fn protect_from_oom_kill() {
    let _ = set_oom_score_adj(-1000);
}

/// When memory runs out, the kernel kills this process before those with the score that it was given.
pub fn prefer_for_oom_kill() {
    let _ = oom_score_adj().and_then(|score| set_oom_score_adj(score.saturating_add(1)));
}

/// How soon the kernel kills this process when memory runs out: -1000 (never) to 1000 (first).
fn oom_score_adj() -> io::Result<i32> {
    let text = std::fs::read_to_string("/proc/self/oom_score_adj")?;
    text.trim().parse().map_err(|_| io::ErrorKind::InvalidData.into())
}

fn set_oom_score_adj(score: i32) -> io::Result<()> {
    std::fs::write("/proc/self/oom_score_adj", score.to_string())
}
