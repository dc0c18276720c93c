//! Metrics of the node's chainstates, of its optional indexes, and of soft forks.

use serde_json::{Value, json};

use super::RateLimitedCalls;
use crate::collect::json::{entries, flag, number};
use crate::json_rpc::Method;

/// Reads the chainstates and the state of the indexes. This function is called at each poll.
pub async fn poll(calls: &mut RateLimitedCalls, chain_info: &Value) {
    let answer = calls.rpc(Method::GetChainstates, json!([])).await;
    let states = named_chainstates(&answer);
    let indexes = calls.rpc(Method::GetIndexInfo, json!([])).await;

    let metrics = &calls.metrics().chainstates;
    let heights = states.iter().filter_map(|(name, state)| Some(([*name], number(state, "blocks")?)));
    metrics.height.replace_if_any(heights);
    let caches = states.iter().flat_map(|(name, state)| {
        let cache = |cache, field| Some(([*name, cache], number(state, field)?));
        [cache("db", "coins_db_cache_bytes"), cache("tip", "coins_tip_cache_bytes")]
    });
    metrics.cache.replace_if_any(caches.flatten());
    metrics.background_progress.set(number(&chain_info["backgroundvalidation"], "verificationprogress"));
    let present = entries(&indexes);
    metrics.index_height.replace_if_any(
        present.iter().filter_map(|(name, index)| Some(([*name], number(index, "best_block_height")?))),
    );
    metrics.index_synced.replace_if_any(
        present.iter().filter_map(|(name, index)| Some(([*name], flag(index, "synced")?.into()))),
    );
}

/// Reads the deployment state of soft forks, once per tip.
pub async fn poll_deployments(calls: &mut RateLimitedCalls) {
    let info = calls.rpc_once_per_tip(Method::GetDeploymentInfo, json!([])).await;
    let present = entries(&info["deployments"]);
    let metrics = &calls.metrics().chainstates;
    metrics.deployment_active.replace_if_any(
        present.iter().filter_map(|(name, fork)| Some(([*name], flag(fork, "active")?.into()))),
    );
    metrics.deployment_signalling.replace_if_any(
        present
            .iter()
            .filter_map(|(name, fork)| Some(([*name], number(&fork["bip9"]["statistics"], "count")?))),
    );
}

/// Returns the chainstates in a response to getchainstates, with their label values. A node has one chainstate, and
/// with assumeutxo two chainstates until the snapshot is validated.
fn named_chainstates(answer: &Value) -> Vec<(&'static str, &Value)> {
    let states = answer["chainstates"].as_array().map_or(&[][..], Vec::as_slice);
    let states = &states[..states.len().min(2)];
    let named = states.iter().map(|state| match state.get("snapshot_blockhash") {
        Some(_) => ("snapshot", state),
        None if states.len() == 2 => ("background", state),
        None => ("normal", state),
    });
    named.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chainstates_are_distinguished() {
        let names = |states: Value| {
            let answer = json!({"headers": 9, "chainstates": states});
            named_chainstates(&answer)
                .into_iter()
                .map(|(name, state)| (name, state["blocks"].clone()))
                .collect::<Vec<_>>()
        };
        let snapshot = json!({"blocks": 9, "snapshot_blockhash": "00", "validated": false});
        assert_eq!(names(json!([{"blocks": 7}])), [("normal", json!(7))]);
        assert_eq!(names(json!([snapshot])), [("snapshot", json!(9))]);
        assert_eq!(
            names(json!([{"blocks": 7}, snapshot])),
            [("background", json!(7)), ("snapshot", json!(9))]
        );
        assert_eq!((names(json!([])), names(Value::Null)), (vec![], vec![]));
    }
}
