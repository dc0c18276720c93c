//! Transactions on their way: orphans, and those that are broadcast privately.

use serde::Deserialize;
use serde_json::json;

use super::{Calls, OptionalCall};

/// What getorphantxs says of one.
#[derive(Deserialize)]
struct Orphan {
    bytes: u64,
}

/// The node copies its list while it holds the lock under which it decides what to download. The list has at most 100
/// transactions up to Bitcoin Core 29, and some thousand from 30 on.
pub async fn poll_orphans(calls: &mut Calls, call: &mut OptionalCall) {
    const WITHOUT_HEX: u8 = 1;
    let orphans = call.make_if_due::<Vec<Orphan>>(calls, "getorphantxs", json!([WITHOUT_HEX])).await;
    let Some(orphans) = orphans else { return };
    let metrics = &calls.metrics().relay;
    metrics.orphans.set(orphans.as_ref().map(|orphans| orphans.len() as f64));
    metrics
        .orphan_bytes
        .set(orphans.map(|orphans| orphans.iter().map(|orphan| orphan.bytes as f64).sum::<f64>()));
}

/// What getprivatebroadcastinfo says.
#[derive(Deserialize)]
struct PrivateBroadcast {
    transactions: Vec<Broadcast>,
}

/// Of one transaction, whose bytes it has, too.
#[derive(Deserialize)]
struct Broadcast {
    /// Bitcoin Core 32. Before, a transaction stays until it has come back.
    attempts_remaining: Option<u64>,
}

/// Bitcoin Core 32 says that there is no such method unless it was started with `-privatebroadcast`.
pub async fn poll_private_broadcast(calls: &mut Calls, call: &mut OptionalCall) {
    let broadcast = call.make_if_due::<PrivateBroadcast>(calls, "getprivatebroadcastinfo", json!([])).await;
    let Some(broadcast) = broadcast else { return };
    let pending = broadcast.map(|broadcast| {
        let transactions = broadcast.transactions.iter();
        transactions.filter(|transaction| transaction.attempts_remaining != Some(0)).count() as f64
    });
    calls.metrics().relay.private_broadcast_pending.set(pending);
}
