//! A poll: what the node offers is asked for, and shown.
//!
//! One failing call costs only its own metrics. A call without an answer ends the poll: the node hangs, and asking on
//! would only add to its queue.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tracing::debug;

use super::json::{count, flag, number, sat_per_vbyte, satoshis};
use super::memory::SharedMemory;
use super::peers::{self, Peers};
use crate::ipc::{CallError, Direction, Interfaces, Thread};
use crate::metrics::{Metrics, now};

/// Confirmation targets of the fee estimates.
const FEE_TARGETS: [(&str, u32); 5] = [("1", 1), ("3", 3), ("6", 6), ("12", 12), ("144", 144)];
/// Spans of the hashrate estimates: a day, and the two weeks of a difficulty period.
const HASHRATE_SPANS: [(&str, u32); 2] = [("144", 144), ("2016", 2016)];

/// What getchaintips says of a tip.
const TIP_STATUSES: [&str; 5] = ["active", "valid-fork", "valid-headers", "headers-only", "invalid"];

/// Calls a method of an interface if the node offers it; `None` also when it fails, which is counted, and when an
/// earlier call of this poll had no answer.
macro_rules! ask {
    ($poller:ident, $interface:ident.$method:ident($($argument:expr),*)) => {
        match ($poller.interfaces.clone().$interface.as_ref(), &$poller.hung) {
            (Some(interface), None) => {
                let answer = interface.$method(&$poller.thread $(, $argument)*).await;
                $poller.answer(concat!(stringify!($interface), ".", stringify!($method)), answer)
            }
            _ => None,
        }
    };
}

/// What the rest of the collector wants to know of a poll.
#[derive(Clone, Debug, Default)]
pub struct Polled {
    /// Whether the node is in initial block download.
    pub ibd: Option<bool>,
    /// `/Satoshi:31.99.0/`
    pub subversion: Option<String>,
}

/// When the chain tips are asked for. The node walks its whole block index for them and holds its main lock meanwhile.
#[derive(Default)]
struct ChainTips {
    /// The tip at which they were asked for.
    at: Option<String>,
    /// Not again before.
    not_before: Option<Instant>,
}

impl ChainTips {
    /// At least between two calls.
    const INTERVAL: Duration = Duration::from_secs(60);
    /// The interval is at least so many times as long as the call took.
    const SHARE: u32 = 1000;

    fn is_due(&self, tip: &str) -> bool {
        self.at.as_deref() != Some(tip) && self.not_before.is_none_or(|due| due <= Instant::now())
    }

    fn asked(&mut self, tip: &str, took: Duration) {
        self.at = Some(tip.to_string());
        self.not_before = Some(Instant::now() + Self::INTERVAL.max(took.saturating_mul(Self::SHARE)));
    }
}

/// Polls one connection.
pub struct Poller {
    interfaces: Rc<Interfaces>,
    thread: Rc<Thread>,
    metrics: Arc<Metrics>,
    memory: SharedMemory,
    /// The tip whose expensive facts are shown.
    seen_tip: Option<String>,
    chain_tips: ChainTips,
    /// The node did not answer a call of this poll.
    hung: Option<String>,
}

impl Poller {
    /// Calls run on `thread`.
    pub fn new(
        interfaces: Rc<Interfaces>,
        thread: Rc<Thread>,
        metrics: Arc<Metrics>,
        memory: SharedMemory,
    ) -> Self {
        Poller {
            interfaces,
            thread,
            metrics,
            memory,
            seen_tip: None,
            chain_tips: ChainTips::default(),
            hung: None,
        }
    }

    /// One poll. An error means that the node did not answer, or could not even tell its tip.
    pub async fn poll(&mut self) -> Result<Polled, String> {
        let started = Instant::now();
        self.hung = None;
        let mut polled = Polled::default();
        let chain_info = self.rpc("getblockchaininfo", json!([])).await.unwrap_or_default();
        let knows_tip = self.chain(&chain_info, &mut polled).await;
        self.mempool().await;
        if self.interfaces.json_rpc.is_some() {
            self.uptime().await; // before the peers: it tells whether theirs are the same
        }
        self.network(&chain_info, &mut polled).await;
        if self.interfaces.json_rpc.is_some() {
            self.node().await;
            self.once_per_tip(&chain_info, polled.ibd).await;
            self.chain_tips(&chain_info, polled.ibd).await;
        }
        let took = started.elapsed();
        let exporter = &self.metrics.exporter;
        exporter.poll_duration.observe(took.as_secs_f64());
        debug!(?took, ibd = polled.ibd, "polled");
        if let Some(why) = self.hung.take() {
            self.forget_tip();
            return Err(why);
        }
        if !knows_tip {
            self.forget_tip();
            return Err("the node did not tell its tip".into());
        }
        exporter.last_poll.set([], now().round());
        Ok(polled)
    }

    /// What was shown of the tip is cleared.
    fn forget_tip(&mut self) {
        self.seen_tip = None;
        self.chain_tips.at = None;
    }

    /// The answer, or `None` with the failure counted under the call's name.
    fn answer<T>(&mut self, call: &str, answer: Result<T, CallError>) -> Option<T> {
        answer
            .inspect_err(|error| {
                debug!("{call}: {error}");
                self.metrics.exporter.poll_failures.inc_by([call], 1);
                if matches!(error, CallError::TimedOut(_) | CallError::Disconnected(_)) {
                    self.hung.get_or_insert_with(|| format!("{call}: {error}"));
                }
            })
            .ok()
    }

    async fn rpc(&mut self, method: &str, params: Value) -> Option<Value> {
        if self.hung.is_some() {
            return None;
        }
        let json_rpc = self.interfaces.json_rpc.clone()?;
        let answer = json_rpc.call(&self.thread, method, params).await;
        self.answer(method, answer)
    }

    /// Tip, headers and initial block download. Whether the node told its tip.
    async fn chain(&mut self, info: &Value, polled: &mut Polled) -> bool {
        let field = |name| number(info, name);
        let height = ask!(self, chain.height()).flatten().map(f64::from).or(field("blocks"));
        let height = match height {
            None => ask!(self, mining.tip()).flatten().map(|tip| tip.height.into()),
            height => height,
        };
        let headers = ask!(self, node.header_height()).flatten().map(f64::from).or(field("headers"));
        let mut ibd = ask!(self, node.is_initial_block_download());
        if ibd.is_none() {
            ibd = ask!(self, chain.is_initial_block_download());
        }
        ibd = ibd.or(info["initialblockdownload"].as_bool());
        if ibd.is_none() {
            ibd = ask!(self, mining.is_initial_block_download());
        }
        let progress = ask!(self, node.verification_progress()).or(field("verificationprogress"));
        let tip_time = ask!(self, node.last_block_time()).map(|time| time as f64).or(field("time"));
        let (mut pruned, mut prune_height) = (flag(info, "pruned"), field("pruneheight"));
        if info.is_null() {
            pruned = ask!(self, chain.have_pruned()).map(u8::from);
            prune_height = ask!(self, chain.prune_height()).flatten().map(|last| f64::from(last) + 1.0);
        }
        let chain = &self.metrics.chain;
        chain.height.set(height);
        chain.header_height.set(headers);
        chain.ibd.set(ibd.map(u8::from));
        chain.verification_progress.set(progress);
        chain.tip_timestamp.set(tip_time);
        chain.difficulty.set(field("difficulty"));
        chain.size_on_disk.set(field("size_on_disk"));
        chain.pruned.set(pruned);
        chain.prune_height.set(prune_height);
        polled.ibd = ibd;
        height.is_some()
    }

    async fn mempool(&mut self) {
        let info = self.rpc("getmempoolinfo", json!([])).await.unwrap_or_default();
        let size = ask!(self, node.mempool_size()).map(|size| size as f64).or(number(&info, "size"));
        let usage = ask!(self, node.mempool_usage()).map(|usage| usage as f64).or(number(&info, "usage"));
        let max = ask!(self, node.mempool_max_usage()).map(|max| max as f64).or(number(&info, "maxmempool"));
        let mempool = &self.metrics.mempool;
        mempool.size.set(size);
        mempool.usage.set(usage);
        mempool.max_usage.set(max);
        mempool.vbytes.set(number(&info, "bytes"));
        mempool.fees.set(satoshis(&info, "total_fee"));
        mempool.min_feerate.set(sat_per_vbyte(&info, "mempoolminfee"));
        mempool.unbroadcast.set(number(&info, "unbroadcastcount"));
    }

    async fn network(&mut self, chain_info: &Value, polled: &mut Polled) {
        let info = self.rpc("getnetworkinfo", json!([])).await.unwrap_or_default();
        let mut connections =
            [number(&info, "connections"), number(&info, "connections_in"), number(&info, "connections_out")];
        let [all, inbound, outbound] = &mut connections;
        for (shown, direction) in
            [(all, Direction::Both), (inbound, Direction::In), (outbound, Direction::Out)]
        {
            *shown = ask!(self, node.peers(direction)).map(|peers| peers as f64).or(*shown);
        }
        let (mut received, mut sent) = (
            ask!(self, node.total_bytes_received()).and_then(|total| u64::try_from(total).ok()),
            ask!(self, node.total_bytes_sent()).and_then(|total| u64::try_from(total).ok()),
        );
        if received.is_none() || sent.is_none() {
            let totals = self.rpc("getnettotals", json!([])).await.unwrap_or_default();
            received = received.or(count(&totals, "totalbytesrecv"));
            sent = sent.or(count(&totals, "totalbytessent"));
        }
        let peers = match ask!(self, node.peer_stats()) {
            Some(peers) => Some(peers),
            None => self.rpc("getpeerinfo", json!([])).await.and_then(|peers| peers::from_json(&peers)),
        };

        let network = &self.metrics.network;
        let [all, inbound, outbound] = connections;
        network.peers.set(all);
        let by_direction = [("in", inbound), ("out", outbound)];
        let known = by_direction.into_iter().filter_map(|(direction, peers)| Some(([direction], peers?)));
        network.connections.replace(known);
        network.bytes_received.set(received);
        network.bytes_sent.set(sent);
        match peers {
            Some(peers) => self.memory.borrow_mut().peers.show(&peers, network),
            None => Peers::hide(network),
        }

        polled.subversion = info["subversion"].as_str().map(str::to_string);
        let chain = &self.metrics.chain;
        chain.warnings.set(info["warnings"].as_array().map(|warnings| warnings.len() as f64));
        let labels = (
            number(&info, "version"),
            polled.subversion.as_deref(),
            number(&info, "protocolversion"),
            chain_info["chain"].as_str(),
        );
        match labels {
            (Some(version), Some(subversion), Some(protocol), Some(name)) => {
                let (version, protocol) = (version.to_string(), protocol.to_string());
                chain.node_info.replace([([version.as_str(), subversion, protocol.as_str(), name], 1.0)]);
            }
            _ => chain.node_info.clear(),
        }
    }

    async fn uptime(&mut self) {
        let asked = Instant::now();
        let uptime = self.rpc("uptime", json!([])).await.and_then(|uptime| uptime.as_f64());
        self.metrics.chain.uptime.set(uptime);
        if let Some(uptime) = uptime {
            self.memory.borrow_mut().peers.node_is_up_for(uptime, asked, Instant::now());
        }
    }

    /// The node itself.
    async fn node(&mut self) {
        let memory = self.rpc("getmemoryinfo", json!([])).await.unwrap_or_default();
        let banned = self.rpc("listbanned", json!([])).await.unwrap_or_default();
        let chain = &self.metrics.chain;
        let locked = ["used", "free", "locked"].into_iter();
        chain
            .memory_locked
            .replace(locked.filter_map(|state| Some(([state], number(&memory["locked"], state)?))));
        self.metrics.network.banned.set(banned.as_array().map(|banned| banned.len() as f64));
    }

    /// What is expensive, or changes only with the tip.
    async fn once_per_tip(&mut self, chain_info: &Value, ibd: Option<bool>) {
        let tip = chain_info["bestblockhash"].as_str();
        if tip.is_some() && tip == self.seen_tip.as_deref() {
            return;
        }
        self.seen_tip = tip.map(str::to_string);
        let mut estimates = Vec::new();
        for (label, target) in FEE_TARGETS {
            let estimate = self.rpc("estimatesmartfee", json!([target])).await.unwrap_or_default();
            estimates.extend(sat_per_vbyte(&estimate, "feerate").map(|rate| ([label], rate)));
        }
        let mut hashrates = Vec::new();
        for (label, blocks) in HASHRATE_SPANS {
            let rate = self.rpc("getnetworkhashps", json!([blocks])).await.unwrap_or_default();
            hashrates.extend(rate.as_f64().map(|rate| ([label], rate)));
        }
        // It reads the block and its undo data, and a syncing node has a new tip every moment.
        let mut stats = Value::Null;
        if let (Some(tip), Some(false)) = (tip, ibd) {
            let wanted = ["txs", "total_weight", "total_size", "totalfee", "ins", "outs"];
            stats = self.rpc("getblockstats", json!([tip, wanted])).await.unwrap_or_default();
        }
        self.metrics.mempool.fee_estimate.replace(estimates);
        let chain = &self.metrics.chain;
        chain.hashrate.replace(hashrates);
        for (gauge, field) in [
            (&chain.last_block_transactions, "txs"),
            (&chain.last_block_weight, "total_weight"),
            (&chain.last_block_size, "total_size"),
            (&chain.last_block_fees, "totalfee"),
            (&chain.last_block_inputs, "ins"),
            (&chain.last_block_outputs, "outs"),
        ] {
            gauge.set(number(&stats, field));
        }
        if let Some(tip) = tip {
            let [transactions, bytes, fees] =
                ["txs", "total_size", "totalfee"].map(|field| number(&stats, field));
            self.metrics.last_blocks.describe(tip, transactions, bytes, fees);
        }
    }

    /// The tips of the block tree: a while after each change of the tip.
    async fn chain_tips(&mut self, chain_info: &Value, ibd: Option<bool>) {
        let tip = match (chain_info["bestblockhash"].as_str(), ibd) {
            (Some(tip), Some(false)) => tip,
            _ => return self.metrics.chain.tips.clear(),
        };
        if !self.chain_tips.is_due(tip) {
            return;
        }
        let asked = Instant::now();
        let tips = self.rpc("getchaintips", json!([])).await.unwrap_or_default();
        self.chain_tips.asked(tip, asked.elapsed());
        let mut by_status: BTreeMap<&str, f64> = BTreeMap::new();
        for status in tips.as_array().into_iter().flatten() {
            let status = TIP_STATUSES.iter().find(|known| Some(**known) == status["status"].as_str());
            *by_status.entry(status.unwrap_or(&"other")).or_default() += 1.0;
        }
        self.metrics.chain.tips.replace(by_status.into_iter().map(|(status, tips)| ([status], tips)));
    }
}
