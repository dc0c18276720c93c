//! The mempool and fee estimates.

use serde_json::json;
use tokio::time::Instant;

use super::Calls;
use super::diagram::Feerates;
use crate::collect::json::{flag, number, sat_per_vbyte, satoshis};
use crate::ipc::Node;

/// Confirmation targets of the fee estimates.
const FEE_TARGETS: [(&str, u32); 5] = [("1", 1), ("3", 3), ("6", 6), ("12", 12), ("144", 144)];

pub async fn poll(calls: &mut Calls) {
    let interfaces = calls.interfaces.clone();
    let node = interfaces.node.as_ref();
    let info = calls.rpc("getmempoolinfo", json!([])).await;
    let size = calls.ask("Node.getMempoolSize", node.map(Node::mempool_size)).await;
    let usage = calls.ask("Node.getMempoolDynamicUsage", node.map(Node::mempool_usage)).await;
    let max_usage = calls.ask("Node.getMempoolMaxUsage", node.map(Node::mempool_max_usage)).await;

    let metrics = &calls.metrics().mempool;
    metrics.size.set(size.map(|size| size as f64).or(number(&info, "size")));
    metrics.usage.set(usage.map(|usage| usage as f64).or(number(&info, "usage")));
    metrics.max_usage.set(max_usage.map(|usage| usage as f64).or(number(&info, "maxmempool")));
    metrics.vbytes.set(number(&info, "bytes"));
    metrics.fees.set(satoshis(&info, "total_fee"));
    metrics.min_feerate.set(sat_per_vbyte(&info, "mempoolminfee"));
    metrics.incremental_feerate.set(sat_per_vbyte(&info, "incrementalrelayfee"));
    metrics.relay_min_feerate.set(sat_per_vbyte(&info, "minrelaytxfee"));
    metrics.loaded.set(flag(&info, "loaded"));
    metrics.optimal.set(flag(&info, "optimal"));
    metrics.unbroadcast.set(number(&info, "unbroadcastcount"));
}

/// At each new tip and once a minute. The node first waits until its validation has handled the last blocks.
pub async fn poll_fee_estimates(calls: &mut Calls, is_new_tip: bool) {
    const CALLS: &str = "fee estimates";
    let limit = calls.limit(CALLS, true);
    let started = Instant::now(); // a new limit is due now
    let is_early = limit.due() > started;
    let is_due = !is_early || is_new_tip && limit.due_at_event() <= started;
    if calls.recovers || !is_due {
        return;
    }
    let mut estimates = Vec::new();
    for (label, target) in FEE_TARGETS {
        let estimate = calls.rpc("estimatesmartfee", json!([target])).await;
        if estimate.is_null() {
            return calls.limit(CALLS, true).failed(Instant::now());
        }
        estimates.extend(sat_per_vbyte(&estimate, "feerate").map(|rate| ([label], rate)));
    }
    let limit = calls.limit(CALLS, true);
    limit.succeeded(started, Instant::now());
    if is_early {
        limit.was_early(started);
    }
    let shown_for = limit.lifetime();
    calls.metrics().mempool.fee_estimate.replace_for(shown_for, estimates);
}

/// The mempool by feerate. The node holds its mempool's lock meanwhile.
pub async fn poll_feerates(calls: &mut Calls, ibd: Option<bool>) {
    if ibd != Some(false) {
        return;
    }
    let feerates = calls.costly::<Feerates>("getmempoolfeeratediagram", json!([])).await;
    let Some((feerates, shown_for)) = feerates else { return };
    let metrics = &calls.metrics().mempool;
    let bands = || feerates.bands();
    metrics.band_vbytes.replace_for(shown_for, bands().map(|(from, vbytes, _)| ([from], vbytes)));
    metrics.band_fees.replace_for(shown_for, bands().map(|(from, _, satoshis)| ([from], satoshis)));
    let mut depths = feerates.depths().map(|(blocks, feerate)| ([blocks], feerate)).peekable();
    if depths.peek().is_none() {
        metrics.depth_feerate.clear(); // the mempool is smaller than a block
    }
    metrics.depth_feerate.replace_for(shown_for, depths);
}
