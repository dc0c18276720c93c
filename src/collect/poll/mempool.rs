//! Metrics of the mempool, of fee estimates, and of transactions that are not in the mempool: orphan transactions,
//! whose parent transactions the node does not have, and private broadcasts, which the node sends to peers over
//! separate connections (`-privatebroadcast`).

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::json;
use tokio::time::Instant;

use super::RateLimitedCalls;
use super::feerate_diagram::FeerateDiagram;
use crate::collect::json::{count, flag, number, sat_per_vbyte, satoshis};
use crate::ipc::Node;

/// Confirmation targets, in blocks, for which the exporter requests fee estimates.
const FEE_TARGETS: [u64; 5] = [2, 3, 6, 12, 144];

/// Maximum confirmation target of a fee estimate in Bitcoin Core, in blocks.
const MAX_FEE_TARGET: u64 = 1008;

pub async fn poll(calls: &mut RateLimitedCalls) {
    let interfaces = calls.interfaces.clone();
    let node = interfaces.node.as_ref();
    let info = calls.rpc("getmempoolinfo", json!([])).await;
    let size = calls.call("Node.getMempoolSize", node.map(Node::mempool_size)).await;
    let usage = calls.call("Node.getMempoolDynamicUsage", node.map(Node::mempool_usage)).await;
    let max_usage = calls.call("Node.getMempoolMaxUsage", node.map(Node::mempool_max_usage)).await;

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

/// Reads the fee estimates at each new tip and once a minute. The estimatesmartfee calls are rate-limited, because they
/// can take long: the node responds only after its validation queue has processed the last blocks.
pub async fn poll_fee_estimates(calls: &mut RateLimitedCalls, is_new_tip: bool) {
    const CALLS: &str = "fee estimates";
    let limit = calls.limit(CALLS, true);
    // The time is read after the creation of `limit`, because a new limit is due at the time of its creation.
    let started = Instant::now();
    let is_early = limit.due() > started;
    let is_due = !is_early || is_new_tip && limit.due_at_event() <= started;
    if calls.recovers || !is_due {
        return;
    }
    // If the node has not seen enough blocks to estimate for a target, it returns the estimate for a different target,
    // and that target in `blocks`.
    let mut estimates = BTreeMap::new();
    for target in FEE_TARGETS {
        let estimate = calls.rpc("estimatesmartfee", json!([target])).await;
        if estimate.is_null() {
            return calls.limit(CALLS, true).failed(Instant::now());
        }
        let answered = count(&estimate, "blocks").filter(|blocks| *blocks <= MAX_FEE_TARGET);
        if let (Some(blocks), Some(rate)) = (answered, sat_per_vbyte(&estimate, "feerate")) {
            estimates.insert(blocks.to_string(), rate);
        }
    }
    let limit = calls.limit(CALLS, true);
    limit.succeeded(started, Instant::now());
    if is_early {
        limit.was_early(started);
    }
    let shown_for = limit.lifetime();
    // If the node has no fee estimate for any target, the empty list removes all series of the fee estimates.
    let estimates = estimates.iter().map(|(blocks, rate)| ([blocks.as_str()], *rate));
    calls.metrics().mempool.fee_estimate.replace_for(shown_for, estimates);
}

/// Reads the mempool's fee rate diagram, only after initial block download. The call getmempoolfeeratediagram is made
/// at most once a minute, because the node holds the mempool's lock during the call.
pub async fn poll_feerates(calls: &mut RateLimitedCalls, ibd: Option<bool>) {
    if ibd != Some(false) {
        return;
    }
    let feerates = calls.costly::<FeerateDiagram>("getmempoolfeeratediagram", json!([])).await;
    let Some((feerates, shown_for)) = feerates else { return };
    let metrics = &calls.metrics().mempool;
    let bands = || feerates.bands();
    metrics.band_vbytes.replace_for(shown_for, bands().map(|(from, vbytes, _)| ([from], vbytes)));
    metrics.band_fees.replace_for(shown_for, bands().map(|(from, _, satoshis)| ([from], satoshis)));
    let depths = feerates.depths().map(|(blocks, feerate)| ([blocks], feerate));
    metrics.depth_feerate.replace_for(shown_for, depths); // no series if the mempool is smaller than a block
}

/// An orphan transaction in a response to getorphantxs.
#[derive(Deserialize)]
struct Orphan {
    bytes: u64,
}

/// Reads the number and the size of the orphan transactions. The call getorphantxs is costly, because the node copies
/// the list of orphan transactions while it holds the lock of its transaction download logic. The list has at most 100
/// transactions up to Bitcoin Core 29, and up to several thousand from version 30 on.
pub async fn poll_orphans(calls: &mut RateLimitedCalls) {
    const WITHOUT_HEX: u8 = 1;
    let orphans = calls.costly::<Vec<Orphan>>("getorphantxs", json!([WITHOUT_HEX])).await;
    let Some((orphans, shown_for)) = orphans else { return };
    let metrics = &calls.metrics().mempool;
    metrics.orphans.set_for(shown_for, Some(orphans.len() as f64));
    let bytes = orphans.iter().map(|orphan| orphan.bytes as f64).sum::<f64>();
    metrics.orphan_bytes.set_for(shown_for, Some(bytes));
}

/// The response to getprivatebroadcastinfo.
#[derive(Deserialize)]
struct PrivateBroadcast {
    transactions: Vec<PendingBroadcast>,
}

/// A transaction that the node broadcasts privately, from the response to getprivatebroadcastinfo. The response also
/// contains the transaction's bytes, which the parser skips.
#[derive(Deserialize)]
struct PendingBroadcast {
    /// Number of attempts to broadcast the transaction that the node still makes; `None` before Bitcoin Core 32. In
    /// earlier versions, which do not return this number, a transaction stays in the list until the network has relayed
    /// the transaction back to the node.
    attempts_remaining: Option<u64>,
}

/// Counts the transactions that the node has yet to broadcast privately. In Bitcoin Core 32 the method
/// getprivatebroadcastinfo exists only with `-privatebroadcast`.
pub async fn poll_private_broadcast(calls: &mut RateLimitedCalls) {
    let broadcast = calls.costly::<PrivateBroadcast>("getprivatebroadcastinfo", json!([])).await;
    let Some((broadcast, shown_for)) = broadcast else { return };
    let transactions = broadcast.transactions.iter();
    let pending = transactions.filter(|transaction| transaction.attempts_remaining != Some(0)).count();
    calls.metrics().mempool.private_broadcast_pending.set_for(shown_for, Some(pending as f64));
}
