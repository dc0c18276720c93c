//! Metrics of the next block from getmininginfo: its difficulty, and the last block template that the node assembled for
//! any client, for nodes without the Mining interface.

use serde_json::json;

use super::RateLimitedCalls;
use crate::collect::json::{number, sat_per_vbyte};
use crate::json_rpc::Method;

pub async fn poll(calls: &mut RateLimitedCalls) {
    // With Mining the exporter has the node build templates, and the last template is no news.
    let has_mining = calls.interfaces.mining.is_some();
    let info = match has_mining {
        true => calls.rpc_once_per_tip(Method::GetMiningInfo, json!([])).await,
        false => calls.rpc(Method::GetMiningInfo, json!([])).await,
    };
    calls.metrics().chain.next_difficulty.set(number(&info["next"], "difficulty"));
    let metrics = &calls.metrics().next_block;
    metrics.min_feerate.set(sat_per_vbyte(&info, "blockmintxfee"));
    if has_mining {
        return;
    }
    metrics.assembled_transactions.set(number(&info, "currentblocktx"));
    metrics.assembled_weight.set(number(&info, "currentblockweight"));
}
