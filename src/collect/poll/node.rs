//! Metrics of the node as a whole (version, start time, locked memory, warnings), and of its process (memory, CPU time,
//! disk I/O, open file descriptors).

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use procfs::WithCurrentSystemInfo;
use serde_json::{Value, json};
use tracing::debug;

use super::RateLimitedCalls;
use super::file_system::directory_of_cookie;
use crate::collect::context::Context;
use crate::collect::json::{count, label, number};
use crate::collect::node_start::UptimeReading;
use crate::files;
use crate::metrics::ZMQ_TYPES;
use crate::node_process::{ProcessUsage, cpu_seconds};

/// Reads the node's uptime and its locked memory, and exports them with the node's versions, start time and warnings.
/// `process` is the PID and the start time (in clock ticks since boot) of the node's process; `None` if the process is
/// not visible in `/proc`. Returns the uptime in seconds.
pub async fn poll(
    calls: &mut RateLimitedCalls,
    process: Option<(i32, u64)>,
    chain_info: &Value,
    network_info: &Value,
) -> Option<f64> {
    let called = Instant::now();
    let uptime = calls.rpc("uptime", json!([])).await.as_f64();
    let read = uptime.map(|seconds| UptimeReading { seconds, called, returned: Instant::now() });
    let memory = calls.rpc("getmemoryinfo", json!([])).await;

    let metrics = &calls.metrics().node;
    metrics.uptime.set(uptime);
    metrics.version.set(number(network_info, "version"));
    metrics.protocol_version.set(number(network_info, "protocolversion"));
    let mut state = calls.context.persistent_state.borrow_mut();
    metrics.start_time.set(state.node_start.update(process, read, SystemTime::now()));
    let warnings = [network_info, chain_info].into_iter().find_map(|info| info.get("warnings"));
    let warnings = warnings.map_or(vec![], |warnings| state.warnings.update(warnings));
    metrics.warnings.replace_if_any(warnings.into_iter().map(|(kind, warnings)| ([kind], Some(warnings))));
    drop(state);
    let locked = ["used", "free", "locked"].map(|state| ([state], number(&memory["locked"], state)));
    metrics.memory_locked.replace_if_any(locked);
    let versions = (
        count(network_info, "version"),
        label(network_info, "subversion"),
        count(network_info, "protocolversion"),
    );
    if let (Some(version), Some(subversion), Some(protocol)) = versions {
        calls.versions = [version.to_string(), subversion, protocol.to_string()];
    }
    // The metric `bitcoin_node_info` is exported even without versions (`-rpcwhitelist` may not permit getnetworkinfo),
    // because the alerting rules need its label `chain`.
    if let Some(chain) = label(chain_info, "chain") {
        let [version, subversion, protocol] = &calls.versions;
        calls.metrics().node.node_info.replace([([&**version, &**subversion, &**protocol, &*chain], 1.0)]);
    }
    uptime
}

/// Reads the JSON-RPC calls that the node is executing for all clients, and exports their number and the longest
/// duration. Returns the response to getrpcinfo.
pub async fn poll_rpc_server(calls: &mut RateLimitedCalls) -> Value {
    let info = calls.rpc("getrpcinfo", json!([])).await;
    if let Some(commands) = info["active_commands"].as_array() {
        let (active, longest) = active_commands(commands);
        let metrics = &calls.metrics().node;
        metrics.rpc_active.set(Some(active));
        metrics.rpc_longest.set(Some(longest));
    }
    info
}

/// Returns the number of JSON-RPC calls that the node is executing, and the duration of the longest of these calls in
/// seconds. `commands` is a list from getrpcinfo; the exporter's own getrpcinfo call in the list is not counted.
fn active_commands(commands: &[Value]) -> (f64, f64) {
    let durations = |own: bool| {
        let commands = commands.iter().filter(move |command| own == (command["method"] == "getrpcinfo"));
        commands.map(|command| number(command, "duration").unwrap_or(0.0) / 1e6)
    };
    // Of several getrpcinfo calls, the call with the shortest duration is assumed to be the exporter's own call, which
    // has only just started when the node creates this list.
    let mut others: Vec<f64> = durations(true).collect();
    others.sort_by(f64::total_cmp);
    let others = others.into_iter().skip(1).chain(durations(false));
    others.fold((0.0, 0.0), |(active, longest), duration| (active + 1.0, f64::max(longest, duration)))
}

/// Counts the node's ZMQ publishers by type of notification. The call getzmqnotifications is cheap, because the node
/// only copies a list.
pub async fn poll_zmq(calls: &mut RateLimitedCalls) {
    let Some(publishers) = calls.rpc_if_known::<Value>("getzmqnotifications", json!([])).await else {
        return;
    };
    let Some(publishers) = publishers.as_array() else { return };
    let types = || publishers.iter().filter_map(|publisher| publisher["type"].as_str());
    let other = types().filter(|name| !ZMQ_TYPES.contains(name)).count();
    let known = ZMQ_TYPES.iter().map(|known| (*known, types().filter(|name| name == known).count()));
    let by_type = known.chain((other > 0).then_some(("other", other)));
    calls
        .metrics()
        .node
        .zmq_publishers
        .replace(by_type.map(|(name, publishers)| ([name], publishers as f64)));
}

/// Exports the resource usage of the node's process. Exports no values if the node's process has exited or is not
/// visible in `/proc`.
pub async fn poll_process(process: Option<&ProcessUsage>, context: &Context) {
    let Some(process) = process else { return };
    let private = process.private().await;
    // The CPU times of the threads are read before the CPU time of the process, so the sum of the threads' times
    // cannot exceed the time of the process.
    let threads = process.threads();
    let Some(stat) = process.stat() else { return };
    let metrics = &context.metrics.node;
    metrics.process_resident_memory.set(Some(stat.rss_bytes().get() as f64));
    metrics.process_threads.set(Some(stat.num_threads as f64));
    metrics.process_open_fds.set(private.open_fds.map(|fds| fds as f64));
    metrics
        .process_page_faults
        .replace_if_any([(["minor"], stat.minflt as f64), (["major"], stat.majflt as f64)]);
    let io = private.io.map(|(read, written)| [(["read"], read as f64), (["write"], written as f64)]);
    metrics.process_io.replace_if_any(io.into_iter().flatten());
    if !threads.is_empty() {
        let thread_times = &mut context.persistent_state.borrow_mut().thread_times;
        let times = thread_times.by_group(process.id(), &threads, cpu_seconds(&stat));
        metrics.process_cpu.replace_if_any(times.map(|(group, seconds)| ([group], seconds)));
    }
}

/// Default name of the file in the data directory to which each program of Bitcoin Core writes its PID. The option
/// `-pid` changes the name.
const PID_FILE: &str = "bitcoind.pid";
/// Maximum size of the PID file that the exporter reads, in bytes.
const MAX_PID_FILE_BYTES: u64 = 32;
/// Timeout for reading the PID file, which can be on a network mount that does not respond. A local file system
/// responds within microseconds.
const READ_TIMEOUT: Duration = Duration::from_millis(100);

/// Returns the process whose PID is in the PID file, if the age of the process matches `uptime`, which is the uptime of
/// the node in seconds. Returns `None` over IPC, because the process behind the socket is already known, and if the URL
/// for JSON-RPC over HTTP is not local.
pub async fn find_process(calls: &RateLimitedCalls, uptime: f64) -> Option<ProcessUsage> {
    if !calls.interfaces.is_http_only() || !calls.context.http_rpc.as_ref()?.config().url.is_local() {
        return None;
    }
    let named = calls.context.config.data_directory.named.clone();
    for directory in named.into_iter().chain(directory_of_cookie(calls)) {
        let found =
            read_pid(directory.join(PID_FILE)).await.and_then(|pid| ProcessUsage::of_node(pid, uptime));
        if found.is_some() {
            return found;
        }
    }
    None
}

/// Reads the PID in a PID file; `None` if the exporter may not read the file, or if there is no file because the node
/// is not running.
async fn read_pid(path: PathBuf) -> Option<i32> {
    let reading = files::on_thread(&path, |path: &Path| files::read_regular(path, MAX_PID_FILE_BYTES));
    match tokio::time::timeout(READ_TIMEOUT, reading).await {
        Ok(Ok(Ok(bytes))) => std::str::from_utf8(&bytes).ok()?.trim().parse().ok().filter(|pid| *pid > 0),
        Ok(Ok(Err(error)) | Err(error)) => {
            debug!("cannot read {}: {error}", path.display());
            None
        }
        Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_call_is_no_active_command() {
        let commands = |list: &[(&str, u64)]| {
            let list: Vec<_> =
                list.iter().map(|(method, micros)| json!({"method": method, "duration": micros})).collect();
            active_commands(&list)
        };
        assert_eq!(commands(&[("getrpcinfo", 40)]), (0.0, 0.0));
        assert_eq!(commands(&[]), (0.0, 0.0));
        let all =
            [("waitfornewblock", 2_500_000), ("getrpcinfo", 7_000_000), ("getrpcinfo", 40), ("uptime", 10)];
        assert_eq!(commands(&all), (3.0, 7.0));
    }
}
