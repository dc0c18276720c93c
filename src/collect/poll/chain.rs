//! Metrics of the node's active chain (tip, headers, initial block download, next block), of all tips of its block tree
//! (getchaintips), of the network's estimated hashrate, of the node's chainstates and optional indexes, and of soft
//! forks.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::RateLimitedCalls;
use crate::collect::json::{entries, flag, number, sat_per_vbyte};
use crate::ipc::{BlockHash, Chain, Mining, Node};

/// Numbers of blocks, counted back from the tip, from which the hashrate is estimated, each with its label value: 144
/// blocks (a day), and 2016 blocks (a difficulty period of two weeks).
const HASHRATE_SPANS: [(&str, u32); 2] = [("144", 144), ("2016", 2016)];

/// Values of the field `status` of a tip in getchaintips, which are also label values.
const TIP_STATUSES: [&str; 5] = ["active", "valid-fork", "valid-headers", "headers-only", "invalid"];

/// The node's tip as read by one poll, and whether the node is in initial block download. The functions that read the
/// other metrics in the same poll use these values.
pub struct PolledTip {
    pub height: Option<f64>,
    /// Hash of the tip; `None` if the node did not respond to getblockchaininfo.
    pub hash: Option<String>,
    /// Whether the node is in initial block download.
    pub ibd: Option<bool>,
}

pub async fn poll(calls: &mut RateLimitedCalls, info: &Value) -> PolledTip {
    let interfaces = calls.interfaces.clone();
    let (chain, node, mining) =
        (interfaces.chain.as_ref(), interfaces.node.as_ref(), interfaces.mining.as_ref());
    let field = |name| number(info, name);

    let hash = info["bestblockhash"].as_str().and_then(|hash| hash.parse::<BlockHash>().ok());
    let mut tip = None;
    if hash.is_none() {
        tip = calls.call("Mining.getTip", mining.map(Mining::tip)).await.flatten();
    }
    let mut hash = hash.or(tip.map(|tip| tip.hash));
    if hash.is_none() {
        hash = calls.call("Node.getBestBlockHash", node.map(Node::best_block_hash)).await;
    }
    let mut height = calls.call("Chain.getHeight", chain.map(Chain::height)).await.flatten().map(f64::from);
    height = height.or(field("blocks"));
    height = height.or(tip.map(|tip| tip.height.into()));
    let headers = calls.call("Node.getHeaderTip", node.map(Node::header_height)).await.flatten();
    let mut ibd = calls.call("Node.isInitialBlockDownload", node.map(Node::is_initial_block_download)).await;
    if ibd.is_none() {
        ibd = calls.call("Chain.isInitialBlockDownload", chain.map(Chain::is_initial_block_download)).await;
    }
    ibd = ibd.or(info["initialblockdownload"].as_bool());
    if ibd.is_none() {
        let query = mining.map(Mining::is_initial_block_download);
        ibd = calls.call("Mining.isInitialBlockDownload", query).await;
    }
    let progress = calls.call("Node.getVerificationProgress", node.map(Node::verification_progress)).await;
    let tip_time = calls.call("Node.getLastBlockTime", node.map(Node::last_block_time)).await;
    let (mut pruned, mut prune_height) = (flag(info, "pruned"), field("pruneheight"));
    if info.is_null() {
        pruned = calls.call("Chain.havePruned", chain.map(Chain::have_pruned)).await.map(f64::from);
        let last = calls.call("Chain.getPruneHeight", chain.map(Chain::prune_height)).await.flatten();
        prune_height = last.map(|last| f64::from(last) + 1.0);
    }

    let metrics = &calls.metrics().chain;
    metrics.height.set(height);
    let headers = headers.map(f64::from).or(field("headers"));
    metrics.header_height.set(headers);
    metrics.ibd.set(ibd.map(u8::from));
    metrics.verification_progress.set(progress.or(field("verificationprogress")));
    metrics.tip_timestamp.set(tip_time.map(|time| time as f64).or(field("time")));
    metrics.tip_hash_suffix.set(hash.as_ref().map(BlockHash::suffix));
    metrics.difficulty.set(field("difficulty"));
    metrics.size_on_disk.set(field("size_on_disk"));
    metrics.pruned.set(pruned);
    metrics.prune_height.set(prune_height);
    metrics.prune_target.set(field("prune_target_size"));
    PolledTip { height, hash: hash.filter(|_| !info.is_null()).map(|hash| hash.to_string()), ibd }
}

/// Reads the estimates of the network's hashrate, once per tip.
pub async fn poll_hashrate(calls: &mut RateLimitedCalls) {
    let mut rates = Vec::new();
    for (label, blocks) in HASHRATE_SPANS {
        let rate = calls.rpc_once_per_tip("getnetworkhashps", json!([blocks])).await;
        rates.push(([label], rate.as_f64()));
    }
    calls.metrics().chain.hashrate.replace_if_any(rates);
}

/// Counts the tips of the node's block tree by status, only after initial block download. The call getchaintips is
/// costly, because the node iterates over its whole block index while it holds `cs_main`.
pub async fn poll_tips(calls: &mut RateLimitedCalls, ibd: Option<bool>) {
    if ibd != Some(false) {
        return;
    }
    let Some((tips, shown_for)) = calls.costly::<Value>("getchaintips", json!([])).await else {
        return;
    };
    let mut by_status: BTreeMap<&str, f64> = BTreeMap::new();
    for tip in tips.as_array().into_iter().flatten() {
        let status = TIP_STATUSES.iter().find(|known| Some(**known) == tip["status"].as_str());
        *by_status.entry(status.unwrap_or(&"other")).or_default() += 1.0;
    }
    let by_status = by_status.into_iter().map(|(status, tips)| ([status], tips));
    calls.metrics().chain.tips.replace_for(shown_for, by_status);
}

/// Reads the heights and cache sizes of the node's chainstates, and the state of its optional indexes, at each poll.
pub async fn poll_chainstates(calls: &mut RateLimitedCalls, chain_info: &Value) {
    let answer = calls.rpc("getchainstates", json!([])).await;
    let states = named_chainstates(&answer);
    let indexes = calls.rpc("getindexinfo", json!([])).await;

    let metrics = &calls.metrics().chain;
    let heights = states.iter().map(|(name, state)| ([*name], number(state, "blocks")));
    metrics.chainstate_height.replace_if_any(heights);
    let caches = [("db", "coins_db_cache_bytes"), ("tip", "coins_tip_cache_bytes")];
    metrics.chainstate_cache.replace_if_any(
        states
            .iter()
            .flat_map(|(name, state)| caches.map(|(cache, field)| ([*name, cache], number(state, field)))),
    );
    metrics.background_progress.set(number(&chain_info["backgroundvalidation"], "verificationprogress"));
    let present = entries(&indexes);
    let heights = present.iter().map(|(name, index)| ([*name], number(index, "best_block_height")));
    metrics.index_height.replace_if_any(heights);
    metrics.index_synced.replace_if_any(present.iter().map(|(name, index)| ([*name], flag(index, "synced"))));
}

/// Reads the deployment state of soft forks, once per tip.
pub async fn poll_deployments(calls: &mut RateLimitedCalls) {
    let info = calls.rpc_once_per_tip("getdeploymentinfo", json!([])).await;
    let present = entries(&info["deployments"]);
    let metrics = &calls.metrics().chain;
    let active = present.iter().map(|(name, fork)| ([*name], flag(fork, "active")));
    metrics.deployment_active.replace_if_any(active);
    let signalling =
        present.iter().map(|(name, fork)| ([*name], number(&fork["bip9"]["statistics"], "count")));
    metrics.deployment_signalling.replace_if_any(signalling);
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

/// Reads the difficulty of the next block, and for nodes without the Mining interface the last block template that the
/// node built for any client (getmininginfo).
pub async fn poll_mining_info(calls: &mut RateLimitedCalls) {
    // The last template is exported only for nodes without Mining. With Mining, the exporter requests templates itself
    // and exports their contents.
    let has_mining = calls.interfaces.mining.is_some();
    let info = match has_mining {
        true => calls.rpc_once_per_tip("getmininginfo", json!([])).await,
        false => calls.rpc("getmininginfo", json!([])).await,
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
