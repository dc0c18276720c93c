//! Metrics of the block at the tip, which are read once per tip with getblockstats.

use serde_json::{Value, json};

use super::RateLimitedCalls;
use crate::collect::json::number;
use crate::json_rpc::Method;

pub async fn poll(calls: &mut RateLimitedCalls, tip: Option<&str>, ibd: Option<bool>) {
    // The call is made only after initial block download, because the node reads the block and its undo data from disk
    // for it, and a syncing node has many new tips per second.
    let mut stats = Value::Null;
    if let (Some(tip), Some(false)) = (tip, ibd) {
        let fields = ["txs", "total_weight", "total_size", "totalfee", "ins", "outs"];
        stats = calls.rpc_once_per_tip(Method::GetBlockStats, json!([tip, fields])).await;
    }
    let field = |name| number(&stats, name);
    let metrics = &calls.metrics().blocks;
    let shown = [
        (&metrics.last_transactions, field("txs")),
        (&metrics.last_weight, field("total_weight")),
        (&metrics.last_size, field("total_size")),
        (&metrics.last_fees, field("totalfee")),
        (&metrics.last_inputs, field("ins")),
        (&metrics.last_outputs, field("outs")),
    ];
    for (gauge, value) in shown {
        // Without a new value, the exported value would belong to an earlier block.
        if tip.is_some() && value.is_none() {
            gauge.clear();
        }
        gauge.set(value);
    }
    if let Some(tip) = tip {
        let blocks = &calls.context.status.last_blocks;
        blocks.describe(tip, field("txs"), field("total_size"), field("totalfee"));
    }
}
