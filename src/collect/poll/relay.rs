//! Transactions on their way: orphans, and those that are broadcast privately.

use serde::Deserialize;
use serde_json::json;

use super::RateLimitedCalls;
use crate::json_rpc::Method;

/// An entry of getorphantxs.
#[derive(Deserialize)]
struct Orphan {
    bytes: u64,
}

/// The node copies its list while it holds the lock under which it decides what to download. The list has at most 100
/// transactions up to Bitcoin Core 29, and some thousand from 30 on.
pub async fn poll_orphans(calls: &mut RateLimitedCalls) {
    const WITHOUT_HEX: u8 = 1;
    let orphans = calls.costly::<Vec<Orphan>>(Method::GetOrphanTxs, json!([WITHOUT_HEX])).await;
    let Some((orphans, shown_for)) = orphans else { return };
    let metrics = &calls.metrics().relay;
    metrics.orphans.set_for(shown_for, Some(orphans.len() as f64));
    let bytes = orphans.iter().map(|orphan| orphan.bytes as f64).sum::<f64>();
    metrics.orphan_bytes.set_for(shown_for, Some(bytes));
}

/// The result of getprivatebroadcastinfo.
#[derive(Deserialize)]
struct PrivateBroadcast {
    transactions: Vec<PendingBroadcast>,
}

/// Of one transaction, whose bytes it has, too.
#[derive(Deserialize)]
struct PendingBroadcast {
    /// Bitcoin Core 32. Before, a transaction stays until it has come back.
    attempts_remaining: Option<u64>,
}

/// Bitcoin Core 32 does not have the method unless it was started with `-privatebroadcast`.
pub async fn poll_private_broadcast(calls: &mut RateLimitedCalls) {
    let broadcast = calls.costly::<PrivateBroadcast>(Method::GetPrivateBroadcastInfo, json!([])).await;
    let Some((broadcast, shown_for)) = broadcast else { return };
    let transactions = broadcast.transactions.iter();
    let pending = transactions.filter(|transaction| transaction.attempts_remaining != Some(0)).count();
    calls.metrics().relay.private_broadcast_pending.set_for(shown_for, Some(pending as f64));
}
