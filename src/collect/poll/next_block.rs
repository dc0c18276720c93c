//! Metrics of the last block template that the node assembled for any client (getmininginfo), for nodes without the
//! Mining interface.

use serde_json::json;

use super::RateLimitedCalls;
use crate::collect::json::number;
use crate::json_rpc::Method;

pub async fn poll(calls: &mut RateLimitedCalls) {
    if calls.interfaces.mining.is_some() {
        return;
    }
    let info = calls.rpc(Method::GetMiningInfo, json!([])).await;
    let metrics = &calls.metrics().next_block;
    metrics.assembled_transactions.set(number(&info, "currentblocktx"));
    metrics.assembled_weight.set(number(&info, "currentblockweight"));
}
