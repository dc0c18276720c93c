//! Metrics of the next block from getmininginfo: its difficulty, and for nodes without the Mining interface the last
//! block template that the node built for any client.

use serde_json::json;

use super::RateLimitedCalls;
use crate::collect::json::{number, sat_per_vbyte};
use crate::json_rpc::Method;

pub async fn poll(calls: &mut RateLimitedCalls) {
    // The last template is exported only for nodes without Mining. With Mining, the exporter requests templates itself
    // and exports their contents.
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
