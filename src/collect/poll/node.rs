//! Metrics of the node as a whole: version, start time, locked memory, warnings.

use std::time::{Instant, SystemTime};

use serde_json::{Value, json};

use super::RateLimitedCalls;
use crate::collect::json::{count, label, number};
use crate::collect::node_start::UptimeReading;
use crate::json_rpc::Method;

/// Reads the uptime and the memory usage, and exports them with the node's versions and warnings. `process` is the PID
/// and the start time (in clock ticks since boot) of the node's process; `None` if the process is not visible in
/// `/proc`.
pub async fn poll(
    calls: &mut RateLimitedCalls,
    process: Option<(i32, u64)>,
    chain_info: &Value,
    network_info: &Value,
) {
    let called = Instant::now();
    let uptime = calls.rpc(Method::Uptime, json!([])).await.as_f64();
    let read = uptime.map(|seconds| UptimeReading { seconds, called, returned: Instant::now() });
    let memory = calls.rpc(Method::GetMemoryInfo, json!([])).await;

    let metrics = &calls.metrics().node;
    metrics.uptime.set(uptime);
    let mut state = calls.context.persistent_state.borrow_mut();
    metrics.start_time.set(state.node_start.update(process, read, SystemTime::now()));
    let warnings = [network_info, chain_info].into_iter().find_map(|info| info.get("warnings"));
    let warnings = warnings.map_or(vec![], |warnings| state.warnings.update(warnings));
    metrics.warnings.replace_if_any(warnings.into_iter().map(|(kind, warnings)| ([kind], warnings)));
    drop(state);
    let locked = ["used", "free", "locked"].into_iter();
    metrics
        .memory_locked
        .replace_if_any(locked.filter_map(|state| Some(([state], number(&memory["locked"], state)?))));
    let versions = (
        count(network_info, "version"),
        label(network_info, "subversion"),
        count(network_info, "protocolversion"),
    );
    if let (Some(version), Some(subversion), Some(protocol)) = versions {
        calls.versions = [version.to_string(), subversion, protocol.to_string()];
    }
    // The metric is exported even without versions (`-rpcwhitelist` may not permit getnetworkinfo), because the
    // alerting rules need its label `chain`.
    if let Some(chain) = label(chain_info, "chain") {
        let [version, subversion, protocol] = &calls.versions;
        calls.metrics().node.node_info.replace([([&**version, &**subversion, &**protocol, &*chain], 1.0)]);
    }
}
