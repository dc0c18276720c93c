//! The last block, once per tip.

use serde_json::{Value, json};

use super::RateLimitedCalls;
use crate::collect::json::number;

pub async fn poll(calls: &mut RateLimitedCalls, tip: Option<&str>, ibd: Option<bool>) {
    // It reads the block and its undo data, and a syncing node has a new tip every moment.
    let mut stats = Value::Null;
    if let (Some(tip), Some(false)) = (tip, ibd) {
        let fields = ["txs", "total_weight", "total_size", "totalfee", "ins", "outs"];
        stats = calls.rpc_once_per_tip("getblockstats", json!([tip, fields])).await;
    }
    let field = |name| number(&stats, name);
    let metrics = &calls.metrics().blocks;
    metrics.last_transactions.set(field("txs"));
    metrics.last_weight.set(field("total_weight"));
    metrics.last_size.set(field("total_size"));
    metrics.last_fees.set(field("totalfee"));
    metrics.last_inputs.set(field("ins"));
    metrics.last_outputs.set(field("outs"));
    if let Some(tip) = tip {
        let blocks = &calls.context.status.last_blocks;
        blocks.describe(tip, field("txs"), field("total_size"), field("totalfee"));
    }
}
