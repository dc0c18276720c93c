//! The node itself: version, uptime, memory, warnings.

use std::time::Instant;

use serde_json::{Value, json};

use super::Calls;
use crate::collect::json::{length, number};

/// Has to come before the peers: the uptime tells whether theirs are the same.
pub async fn poll(calls: &mut Calls, chain_info: &Value, network_info: &Value) {
    let asked = Instant::now();
    let uptime = calls.rpc("uptime", json!([])).await.as_f64();
    if let Some(uptime) = uptime {
        calls.context.memory.borrow_mut().peers.node_is_up_for(uptime, asked, Instant::now());
    }
    let memory = calls.rpc("getmemoryinfo", json!([])).await;

    let metrics = &calls.metrics().node;
    metrics.uptime.set(uptime);
    let locked = ["used", "free", "locked"].into_iter();
    metrics
        .memory_locked
        .replace(locked.filter_map(|state| Some(([state], number(&memory["locked"], state)?))));
    metrics.warnings.set(length(&network_info["warnings"]));
    let labels = (
        number(network_info, "version"),
        network_info["subversion"].as_str(),
        number(network_info, "protocolversion"),
        chain_info["chain"].as_str(),
    );
    if let (Some(version), Some(subversion), Some(protocol), Some(chain)) = labels {
        let (version, protocol) = (version.to_string(), protocol.to_string());
        metrics.node_info.replace([([version.as_str(), subversion, protocol.as_str(), chain], 1.0)]);
    }
}
