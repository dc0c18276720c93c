//! Metrics of transaction relay: orphan transactions, and private broadcasts of transactions.

use serde::Deserialize;
use serde_json::json;

use super::RateLimitedCalls;
use crate::json_rpc::Method;

/// An orphan transaction in a response to getorphantxs.
#[derive(Deserialize)]
struct Orphan {
    bytes: u64,
}

/// Reads the orphan transactions. The node copies the list while it holds the lock of its transaction download logic.
/// The list has at most 100 transactions up to Bitcoin Core 29, and up to several thousand from version 30 on.
pub async fn poll_orphans(calls: &mut RateLimitedCalls) {
    const WITHOUT_HEX: u8 = 1;
    let orphans = calls.costly::<Vec<Orphan>>(Method::GetOrphanTxs, json!([WITHOUT_HEX])).await;
    let Some((orphans, shown_for)) = orphans else { return };
    let metrics = &calls.metrics().relay;
    metrics.orphans.set_for(shown_for, Some(orphans.len() as f64));
    let bytes = orphans.iter().map(|orphan| orphan.bytes as f64).sum::<f64>();
    metrics.orphan_bytes.set_for(shown_for, Some(bytes));
}

/// The response to getprivatebroadcastinfo.
#[derive(Deserialize)]
struct PrivateBroadcast {
    transactions: Vec<PendingBroadcast>,
}

/// A transaction in a response to getprivatebroadcastinfo. The response also contains the transaction's bytes, which
/// the parser skips.
#[derive(Deserialize)]
struct PendingBroadcast {
    /// Number of remaining broadcast attempts; `None` before Bitcoin Core 32. In earlier versions a transaction stays
    /// in the list until the network has relayed it back to the node.
    attempts_remaining: Option<u64>,
}

/// Counts the transactions that the node has yet to broadcast privately. In Bitcoin Core 32 the method exists only with
/// `-privatebroadcast`.
pub async fn poll_private_broadcast(calls: &mut RateLimitedCalls) {
    let broadcast = calls.costly::<PrivateBroadcast>(Method::GetPrivateBroadcastInfo, json!([])).await;
    let Some((broadcast, shown_for)) = broadcast else { return };
    let transactions = broadcast.transactions.iter();
    let pending = transactions.filter(|transaction| transaction.attempts_remaining != Some(0)).count();
    calls.metrics().relay.private_broadcast_pending.set_for(shown_for, Some(pending as f64));
}
