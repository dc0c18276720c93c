//! Metrics of the node's process: memory, CPU time, disk I/O, open file descriptors.

use procfs::WithCurrentSystemInfo;

use crate::collect::context::Context;
use crate::node_process::{ProcessUsage, cpu_seconds};
use crate::supervisor::PrivateUsage;

/// Exports the resource usage of the node's process. Exports no values if this process has exited or is not visible in
/// `/proc`.
pub async fn poll(process: Option<&ProcessUsage>, context: &Context) {
    let private = match process {
        Some(process) => process.private().await,
        None => PrivateUsage::default(),
    };
    let metrics = &context.metrics.node_process;
    let state = &mut context.persistent_state.borrow_mut();
    // The CPU times of the threads are read before the CPU time of the process, so the sum of the threads' times
    // cannot exceed the time of the process.
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
    if let Some((process, stat)) = seen
        && !threads.is_empty()
    {
        let times = state.thread_times.by_group(process.id(), &threads, cpu_seconds(&stat));
        metrics.cpu.replace_if_any(times.map(|(group, seconds)| ([group], seconds)));
    }
}
