//! CPU scheduling and OOM priorities of threads and processes, and the kernel's statistic of their run delay (time
//! spent waiting for a CPU). The priority of the guard, the process that answers the node's callbacks, is higher than
//! the priority of the HTTP thread, because the node waits for the guard's answers.
//!
//! Errors of the functions in this file are ignored: if the kernel or a system call filter rejects a call, for example
//! without privileges, the exporter keeps the default priority.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use procfs::process::Process;

pub use crate::sys::{lower_priority, shorten_timeslice};

/// Run delay of a process: the total time that the process was runnable and waited for a CPU. `process` is `self` or a
/// PID. `None` if the kernel has no such statistic.
pub fn run_delay(process: &str) -> Option<Duration> {
    delay(&std::fs::read_to_string(format!("/proc/{process}/schedstat")).ok()?)
}

/// The open file `/proc/self/schedstat`, which has this process's run delay. The open file remains readable in the
/// sandbox.
pub struct RunDelayFile(File);

impl RunDelayFile {
    /// Opens the file; `None` if the kernel has no such statistic.
    pub fn open() -> Option<Self> {
        File::open("/proc/self/schedstat").ok().map(RunDelayFile)
    }

    /// Reads the run delay of this process; see [`run_delay`].
    pub fn read(&self) -> Option<Duration> {
        let mut statistics = [0; 128];
        let read = self.0.read_at(&mut statistics, 0).ok()?;
        delay(std::str::from_utf8(&statistics[..read]).ok()?)
    }
}

fn delay(statistics: &str) -> Option<Duration> {
    Some(Duration::from_nanos(statistics.split_whitespace().nth(1)?.parse().ok()?))
}

/// Protects this process from the kernel's OOM killer, by an OOM score adjustment of -1000. Has no effect without the
/// privilege to lower the adjustment.
pub fn protect_from_oom_kill() {
    let _ = Process::myself().and_then(|process| process.set_oom_score_adj(-1000));
}

/// Increases the OOM score adjustment of this process by 1. Of processes with equal memory use and equal initial
/// adjustment, the OOM killer then kills this process first.
pub fn prefer_for_oom_kill() {
    let _ = Process::myself().and_then(|process| process.set_oom_score_adj(process.oom_score_adj()? + 1));
}
