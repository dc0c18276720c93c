//! Metrics of the node's process: memory, CPU time, disk I/O, open file descriptors.

use procfs::WithCurrentSystemInfo;

use crate::collect::context::PersistentState;
use crate::metrics::NodeProcessMetrics;
use crate::node_process::{PrivateUsage, ProcessUsage, cpu_seconds};

/// Exports the resource usage of the process. Exports no values if the process has exited or is not visible in `/proc`.
pub fn show(
    process: Option<&ProcessUsage>,
    private: &PrivateUsage,
    state: &mut PersistentState,
    metrics: &NodeProcessMetrics,
) {
    // The CPU times of the threads are read before the CPU time of the process, so their sum cannot exceed it.
    let threads = process.map(ProcessUsage::threads).unwrap_or_default();
    let seen = process.and_then(|process| Some((process, process.stat()?)));
    let stat = seen.as_ref().map(|(_, stat)| stat);
    metrics.resident_memory.set(stat.map(|stat| stat.rss_bytes().get() as f64));
    metrics.threads.set(stat.map(|stat| stat.num_threads as f64));
    metrics.open_fds.set(private.open_fds.filter(|_| stat.is_some()).map(|fds| fds as f64));
    let faults = stat.map(|stat| [(["minor"], stat.minflt as f64), (["major"], stat.majflt as f64)]);
    metrics.page_faults.replace_if_any(faults.into_iter().flatten());
    let io = private.io.filter(|_| stat.is_some());
    let io = io.map(|(read, written)| [(["read"], read as f64), (["write"], written as f64)]);
    metrics.io.replace_if_any(io.into_iter().flatten());
    match seen {
        Some((process, stat)) if !threads.is_empty() => {
            let times = state.thread_times.by_group(process.id(), &threads, cpu_seconds(&stat));
            metrics.cpu.replace_if_any(times.map(|(group, seconds)| ([group], seconds)));
        }
        _ => metrics.cpu.replace_if_any([]),
    }
}
