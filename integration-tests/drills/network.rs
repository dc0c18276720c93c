//! A P2P network for the monitored nodes: a hub, which is a node without an exporter that mines blocks and sends
//! transactions.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bitcoin::absolute::LockTime;
use bitcoin::consensus::encode::serialize_hex;
use bitcoin::script::ScriptBuf;
use bitcoin::transaction::Version;
use bitcoin::{Amount, OutPoint, Sequence, Transaction, TxIn, TxOut, Witness};
use serde_json::json;

use crate::harness::node::Node;
use crate::harness::peer::unix_time;

const MINED: u32 = 160;

/// Arguments that disable the additional consistency checks of regtest after each transaction and block.
pub const WITHOUT_CHECKS: [&str; 2] = ["-checkmempool=0", "-checkblockindex=0"];

/// The rate at which the hub mines blocks and sends transactions.
pub struct Pace {
    pub transactions: AtomicBool,
    /// Milliseconds of real time between blocks; 0 for no blocks.
    pub blocks: AtomicU32,
}

/// A running hub, with the thread that mines its blocks and sends its transactions.
pub struct Network {
    pub hub: Arc<Node>,
    pub pace: Arc<Pace>,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Network {
    /// Starts a network with a block every ten simulated minutes, and transactions in shorter intervals.
    pub fn start(factor: u32) -> Self {
        Self::start_with(factor, Duration::ZERO, &[])
    }

    /// Like [`Self::start`], but the timestamps of the first blocks are `age` in the past.
    pub fn start_with(factor: u32, age: Duration, arguments: &[&str]) -> Self {
        Self::start_from(factor, age, arguments, |_| ())
    }

    /// Like [`Self::start`], but `prepare` can first create blocks on the hub, or submit blocks to the hub.
    pub fn start_prepared(factor: u32, arguments: &[&str], prepare: impl FnOnce(&Node)) -> Self {
        Self::start_from(factor, Duration::ZERO, arguments, prepare)
    }

    fn start_from(factor: u32, age: Duration, arguments: &[&str], prepare: impl FnOnce(&Node)) -> Self {
        // With this permission for loopback, the hub announces transactions to its peers without delay.
        let hub =
            Node::start(&[&["-whitelist=noban,in,out@127.0.0.1"], &WITHOUT_CHECKS[..], arguments].concat());
        prepare(&hub);
        if !age.is_zero() {
            let then = unix_time() - u32::try_from(age.as_secs()).unwrap();
            hub.cli(&["setmocktime", &then.to_string()]);
        }
        let hub = Arc::new(hub);
        let mined = hub.mine(MINED);
        let coins: VecDeque<_> =
            mined[..60].iter().map(|block| hub.spending_coinbase_of(block, 10_000)).collect();
        let pace = Arc::new(Pace { transactions: true.into(), blocks: (600_000 / factor).into() });
        let ended = Arc::new(AtomicBool::new(false));
        let (node, its, end) = (hub.clone(), pace.clone(), ended.clone());
        let thread = std::thread::spawn(move || live(&node, &its, &end, coins, factor));
        Network { hub, pace, ended, thread: Some(thread) }
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.hub.p2p_port)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.ended.store(true, Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Mines blocks and sends transactions until `ended` is true. Errors are ignored, because in some drills the hub fails.
fn live(node: &Node, pace: &Pace, ended: &AtomicBool, mut coins: VecDeque<Transaction>, factor: u32) {
    let between = Duration::from_millis(u64::from(30_000 / factor));
    let mut last_block = Instant::now();
    while !ended.load(Relaxed) {
        if pace.transactions.load(Relaxed) {
            let transaction = coins.pop_front().unwrap();
            let _ = node.try_batch(&[("sendrawtransaction", json!([serialize_hex(&transaction), 0]))]);
            coins.push_back(spending(&transaction));
        }
        let blocks = u64::from(pace.blocks.load(Relaxed));
        if blocks > 0 && last_block.elapsed() > Duration::from_millis(blocks) {
            let _ = node.try_batch(&[("generatetodescriptor", json!([1, "raw(51)"]))]);
            last_block = Instant::now();
        }
        std::thread::sleep(between.clamp(Duration::from_millis(50), Duration::from_secs(1)));
    }
}

/// A transaction that spends the first output of the transaction `previous`. The first output of the new transaction
/// has the value of the spent output minus the fee.
fn spending(previous: &Transaction) -> Transaction {
    const FEE: Amount = Amount::from_sat(1_000);
    const SMALL: Amount = Amount::from_sat(10_000);
    let output = |value| TxOut { value, script_pubkey: ScriptBuf::from_hex("51").unwrap() };
    Transaction {
        version: Version::TWO,
        lock_time: LockTime::ZERO,
        input: vec![TxIn {
            previous_output: OutPoint::new(previous.compute_txid(), 0),
            script_sig: ScriptBuf::new(),
            sequence: Sequence::ENABLE_RBF_NO_LOCKTIME,
            witness: Witness::new(),
        }],
        output: vec![output(previous.output[0].value - FEE - SMALL), output(SMALL)],
    }
}
