//! The active chain: tip, headers, initial block download; tips of the block tree and the hashrate.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Calls, CostlyCall};
use crate::collect::json::{flag, number};
use crate::ipc::{Chain, Hash, Mining, Node};

/// Spans of the hashrate estimates: a day, and the two weeks of a difficulty period.
const HASHRATE_SPANS: [(&str, u32); 2] = [("144", 144), ("2016", 2016)];

/// What getchaintips says of a tip.
const TIP_STATUSES: [&str; 5] = ["active", "valid-fork", "valid-headers", "headers-only", "invalid"];

/// What the other areas want to know of the tip.
pub struct Tip {
    pub height: Option<f64>,
    /// Known only with JSON-RPC.
    pub hash: Option<String>,
    /// Whether the node is in initial block download.
    pub ibd: Option<bool>,
    /// Height of the best known header.
    pub headers: Option<f64>,
}

pub async fn poll(calls: &mut Calls, info: &Value) -> Tip {
    let interfaces = calls.interfaces.clone();
    let (chain, node, mining) =
        (interfaces.chain.as_ref(), interfaces.node.as_ref(), interfaces.mining.as_ref());
    let field = |name| number(info, name);

    let hash = info["bestblockhash"].as_str().and_then(|hash| hash.parse::<Hash>().ok());
    let mut tip = None;
    if hash.is_none() {
        tip = calls.ask("Mining.getTip", mining.map(Mining::tip)).await.flatten();
    }
    let mut hash = hash.or(tip.map(|tip| tip.hash));
    if hash.is_none() {
        hash = calls.ask("Node.getBestBlockHash", node.map(Node::best_block_hash)).await;
    }
    let mut height = calls.ask("Chain.getHeight", chain.map(Chain::height)).await.flatten().map(f64::from);
    height = height.or(field("blocks"));
    height = height.or(tip.map(|tip| tip.height.into()));
    let headers = calls.ask("Node.getHeaderTip", node.map(Node::header_height)).await.flatten();
    let mut ibd = calls.ask("Node.isInitialBlockDownload", node.map(Node::is_initial_block_download)).await;
    if ibd.is_none() {
        ibd = calls.ask("Chain.isInitialBlockDownload", chain.map(Chain::is_initial_block_download)).await;
    }
    ibd = ibd.or(info["initialblockdownload"].as_bool());
    if ibd.is_none() {
        let asked = mining.map(Mining::is_initial_block_download);
        ibd = calls.ask("Mining.isInitialBlockDownload", asked).await;
    }
    let progress = calls.ask("Node.getVerificationProgress", node.map(Node::verification_progress)).await;
    let tip_time = calls.ask("Node.getLastBlockTime", node.map(Node::last_block_time)).await;
    let (mut pruned, mut prune_height) = (flag(info, "pruned"), field("pruneheight"));
    if info.is_null() {
        pruned = calls.ask("Chain.havePruned", chain.map(Chain::have_pruned)).await.map(u8::from);
        let last = calls.ask("Chain.getPruneHeight", chain.map(Chain::prune_height)).await.flatten();
        prune_height = last.map(|last| f64::from(last) + 1.0);
    }

    let metrics = &calls.metrics().chain;
    metrics.height.set(height);
    let headers = headers.map(f64::from).or(field("headers"));
    metrics.header_height.set(headers);
    metrics.ibd.set(ibd.map(u8::from));
    metrics.verification_progress.set(progress.or(field("verificationprogress")));
    metrics.tip_timestamp.set(tip_time.map(|time| time as f64).or(field("time")));
    metrics.tip_hash_suffix.set(hash.as_ref().map(Hash::suffix));
    metrics.difficulty.set(field("difficulty"));
    metrics.size_on_disk.set(field("size_on_disk"));
    metrics.pruned.set(pruned);
    metrics.prune_height.set(prune_height);
    Tip { height, hash: hash.filter(|_| !info.is_null()).map(|hash| hash.to_string()), ibd, headers }
}

/// Once per tip.
pub async fn poll_hashrate(calls: &mut Calls) {
    let mut rates = Vec::new();
    for (label, blocks) in HASHRATE_SPANS {
        let rate = calls.rpc("getnetworkhashps", json!([blocks])).await;
        rates.extend(rate.as_f64().map(|rate| ([label], rate)));
    }
    calls.metrics().chain.hashrate.replace(rates);
}

/// When the chain tips are asked for. The node walks its whole block index for them and holds its main lock meanwhile.
#[derive(Default)]
pub struct TipsSchedule {
    /// The tip, the height of the best header, and when they were asked for: a branch that the node rejects changes the second alone,
    /// or neither.
    at: Option<(String, Option<f64>, Instant)>,
    costly: CostlyCall,
}

impl TipsSchedule {
    /// What was shown at the tip is no longer shown, or was not complete.
    pub fn forget_tip(&mut self) {
        self.at = None;
    }

    /// They are not shown any more.
    pub fn was_cleared(&mut self) {
        self.at = None;
        self.costly.was_cleared();
    }

    fn is_due(&self, tip: &str, headers: Option<f64>) -> bool {
        const MAX_INTERVAL: Duration = Duration::from_secs(300);
        let is_recent = self.at.as_ref().is_some_and(|(at, height, asked)| {
            at == tip && *height == headers && asked.elapsed() < MAX_INTERVAL
        });
        !is_recent && self.costly.is_due()
    }

    fn asked(&mut self, tip: &str, headers: Option<f64>, took: Duration, has_answer: bool) {
        self.at = Some((tip.to_string(), headers, Instant::now()));
        self.costly.took(took, has_answer);
    }
}

/// The tips of the block tree: a while after each change of the tip or the best header, and every five minutes.
pub async fn poll_tips(calls: &mut Calls, schedule: &mut TipsSchedule, tip: &Tip) {
    let headers = tip.headers;
    let (Some(tip), Some(false), true) = (tip.hash.as_deref(), tip.ibd, calls.has_rpc()) else {
        schedule.was_cleared();
        return calls.metrics().chain.tips.clear();
    };
    if !schedule.is_due(tip, headers) {
        return;
    }
    let asked = Instant::now();
    let tips = calls.rpc("getchaintips", json!([])).await;
    schedule.asked(tip, headers, asked.elapsed(), !tips.is_null());
    let mut by_status: BTreeMap<&str, f64> = BTreeMap::new();
    for tip in tips.as_array().into_iter().flatten() {
        let status = TIP_STATUSES.iter().find(|known| Some(**known) == tip["status"].as_str());
        *by_status.entry(status.unwrap_or(&"other")).or_default() += 1.0;
    }
    calls.metrics().chain.tips.replace(by_status.into_iter().map(|(status, tips)| ([status], tips)));
}

#[cfg(test)]
#[test]
fn chain_tips_are_read_again_when_the_best_header_changes() {
    let mut schedule = TipsSchedule::default();
    assert!(schedule.is_due("a", Some(7.0)));
    schedule.at = Some(("a".into(), Some(7.0), Instant::now()));
    assert!(!schedule.is_due("a", Some(7.0)));
    assert!(schedule.is_due("a", Some(8.0)), "headers of a branch whose blocks are rejected");
    assert!(schedule.is_due("b", Some(7.0)));
}
