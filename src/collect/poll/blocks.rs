//! Metrics of the block at the node's tip, which are read once per tip with getblockstats, and counters of the contents
//! (transactions, fees and others) of all blocks that the node connects.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::RateLimitedCalls;
use crate::collect::connected_blocks::{BlockRange, ContentsToCount};
use crate::collect::json::{count, number};
use crate::collect::rate_limit::RateLimit;
use crate::ipc::{BlockHash, BlockRef};
use crate::json_rpc::CallError;
use crate::metrics::{BlockMetrics, Counter, Gauge};

/// The fields of getblockstats that contain a total of one block. For each field: its name, the gauge with the total of
/// the tip, and the counter over all connected blocks, if there is one. All fields that the exporter reads exist since
/// Bitcoin Core 0.18.
fn totals(metrics: &BlockMetrics) -> [(&'static str, &Gauge, Option<&Counter>); 10] {
    [
        ("txs", &metrics.last_transactions, Some(&metrics.connected_transactions)),
        ("ins", &metrics.last_inputs, Some(&metrics.connected_inputs)),
        ("outs", &metrics.last_outputs, Some(&metrics.connected_outputs)),
        ("total_weight", &metrics.last_weight, Some(&metrics.connected_weight)),
        ("total_size", &metrics.last_size, Some(&metrics.connected_bytes)),
        (FEES, &metrics.last_fees, Some(&metrics.connected_fees)),
        ("total_out", &metrics.last_output_value, Some(&metrics.connected_output_value)),
        ("subsidy", &metrics.last_subsidy, None),
        ("swtxs", &metrics.last_segwit_transactions, None),
        ("utxo_increase", &metrics.last_utxo_increase, None),
    ]
}

const FEES: &str = "totalfee";
const FEERATES: &str = "feerate_percentiles";

/// The percentiles of the fee rates in the array `feerate_percentiles`, in the order of the array, as label values.
const PERCENTILES: [&str; 5] = ["10", "25", "50", "75", "90"];

/// Whether the error of getblockstats or getblockheader is permanent for the requested block: the node has pruned the
/// block, has not downloaded it (assumeutxo) or does not know the hash of the block. Up to Bitcoin Core 0.20,
/// getblockstats also fails for blocks outside the active chain.
fn is_unavailable(error: &CallError) -> bool {
    /// `RPC_MISC_ERROR`, `RPC_INVALID_ADDRESS_OR_KEY` and `RPC_INVALID_PARAMETER` in Core's rpc/protocol.h.
    const UNAVAILABLE: [i64; 3] = [-1, -5, -8];
    matches!(error, CallError::JsonRpc { code, .. } if UNAVAILABLE.contains(code))
}

/// Reads the statistics of the tip, and counts the contents of the blocks that were connected since the last poll.
/// Neither is done during initial block download, because the node reads the block and its undo data from disk for
/// each call, and a syncing node has many new tips per second.
pub async fn poll(calls: &mut RateLimitedCalls, tip: Option<&str>, ibd: Option<bool>) {
    if let Some(tip) = tip {
        let mut stats = None;
        if ibd == Some(false) {
            stats = block_stats(calls, tip, Some(tip)).await.flatten();
        }
        show_last(calls, tip, &stats.unwrap_or_default());
    }
    if let Some(ibd) = ibd {
        calls.context.persistent_state.borrow_mut().connected_blocks.set_ibd(ibd);
    }
    if ibd == Some(false) {
        count_connected(calls, tip).await;
    }
}

/// Returns the response to getblockstats for a block; `None` if there is no response, and `Some(None)` if the node
/// does not have the block. The response for the tip is stored until the tip changes.
async fn block_stats(calls: &mut RateLimitedCalls, hash: &str, tip: Option<&str>) -> Option<Option<Value>> {
    let key = ("getblockstats", hash.to_string());
    if let Some(answer) = calls.answers_for_tip.get(&key) {
        return Some(Some(answer.clone()).filter(|answer| !answer.is_null()));
    }
    let mut fields = totals(&calls.metrics().blocks).map(|(field, ..)| field).to_vec();
    fields.push(FEERATES);
    let answer = calls.rpc_tolerating("getblockstats", json!([hash, fields]), is_unavailable).await?;
    let answer: Option<Value> = answer.ok().flatten();
    if tip == Some(hash) {
        calls.answers_for_tip.insert(key, answer.clone().unwrap_or_default());
    }
    Some(answer)
}

/// Exports the statistics `stats` of the block `tip`. If `stats` does not contain a value, the exported value is
/// removed, because it belongs to an earlier tip.
fn show_last(calls: &RateLimitedCalls, tip: &str, stats: &Value) {
    let metrics = &calls.metrics().blocks;
    for (field, gauge, _) in totals(metrics) {
        gauge.replace(number(stats, field));
    }
    // A block with only a coinbase transaction has no fee rates, and getblockstats returns zeros.
    let transactions = number(stats, "txs");
    let feerates = stats[FEERATES].as_array().filter(|_| transactions > Some(1.0));
    let feerates = PERCENTILES.iter().zip(feerates.into_iter().flatten());
    let feerates = feerates.filter_map(|(percentile, rate)| Some(([*percentile], rate.as_f64()?)));
    metrics.last_feerate.replace(feerates);
    let blocks = &calls.context.status.last_blocks;
    blocks.describe(tip, transactions, number(stats, "total_size"), number(stats, FEES));
}

/// Counts the contents of connected blocks with a batch of getblockstats calls. The batches take at most 1 % of the
/// node's time; blocks that remain in the queue are counted by the next polls. The tip needs no call, because its
/// statistics are already stored.
async fn count_connected(calls: &mut RateLimitedCalls, tip: Option<&str>) {
    /// Name of the rate limit of the getblockstats calls for connected blocks.
    const BLOCKS: &str = "connected blocks";
    /// Minimum time between the starts of two batches of calls, as a multiple of the duration of the first batch.
    const SHARE: u32 = 100;
    /// Time after the start of a batch after which no call is added to the batch.
    const BATCH: Duration = Duration::from_millis(150);
    let is_due = calls.is_due(BLOCKS);
    let started = Instant::now();
    while started.elapsed() < BATCH {
        let next = calls.context.persistent_state.borrow().connected_blocks.next();
        let Some(range) = next else { break };
        let is_known = range.blocks == 1 && tip.is_some_and(|tip| tip == range.last.hash.to_string());
        if !is_due && !is_known {
            return;
        }
        let Some((stats, parent)) = read_last(calls, range, tip).await else { break };
        let queue = &mut calls.context.persistent_state.borrow_mut().connected_blocks;
        // During the calls, the full queue may have dropped this range. The blocks of a dropped range are then already
        // counted in the counter of uncounted blocks.
        if queue.next() != Some(range) {
            continue;
        }
        if let Some(stats) = &stats {
            count_contents(&calls.context.metrics.blocks, stats, range.contents);
        }
        let uncounted = u64::from(stats.is_none()) + queue.done(parent);
        calls.metrics().blocks.uncounted_blocks.inc_by(uncounted);
    }
    if is_due {
        let limit = || RateLimit::new(Duration::ZERO, SHARE);
        calls.limits.entry(BLOCKS).or_insert_with(limit).succeeded(started, Instant::now());
    }
}

/// Reads the statistics of the last block of a range, and the parent of this block if the range has more blocks.
/// Returns `None` if the node does not respond.
///
/// The statistics are `None` if the node responded with an error. The parent is read despite this error, because the
/// error code does not show whether only this block cannot be read, or also its ancestors. The parent is `None` if the
/// range has no more blocks, or if the node does not know the last block.
async fn read_last(
    calls: &mut RateLimitedCalls,
    range: BlockRange,
    tip: Option<&str>,
) -> Option<(Option<Value>, Option<BlockRef>)> {
    let hash = range.last.hash.to_string();
    let stats = block_stats(calls, &hash, tip).await?;
    if range.blocks == 1 {
        return Some((stats, None));
    }
    let header = calls.rpc_tolerating("getblockheader", json!([hash]), is_unavailable).await?;
    let header: Value = header.ok().flatten().unwrap_or_default();
    let parent = header["previousblockhash"].as_str().and_then(|hash| hash.parse::<BlockHash>().ok());
    Some((stats, parent.map(|hash| BlockRef { hash, height: range.last.height - 1 })))
}

/// Adds the contents of a connected block to the counters.
fn count_contents(metrics: &BlockMetrics, stats: &Value, contents: ContentsToCount) {
    for (field, _, counter) in totals(metrics) {
        if let Some(counter) = counter
            && (field == FEES || contents == ContentsToCount::All)
        {
            counter.inc_by(count(stats, field).unwrap_or(0));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pruned_and_unknown_blocks_are_no_failures() {
        let of_node = |code| CallError::JsonRpc { code, message: "Block not available (pruned data)".into() };
        assert!([-1, -5, -8].into_iter().all(|code| is_unavailable(&of_node(code))));
        for error in [of_node(-32601), of_node(-28), CallError::Malformed("null".into())] {
            assert!(!is_unavailable(&error), "{error}");
        }
    }
}
