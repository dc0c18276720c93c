//! The P2P network of a drill (a fault injection test of the alerts). The peer of the monitored nodes is the hub: a
//! node without exporters, which mines blocks and sends transactions.

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

/// Node arguments that disable the consistency checks that Bitcoin Core runs on regtest by default.
pub const WITHOUT_CHECKS: [&str; 2] = ["-checkmempool=0", "-checkblockindex=0"];

/// The rate at which the hub (the mining peer of the monitored nodes) mines blocks and sends transactions.
pub struct Pace {
    pub transactions: AtomicBool,
    /// Milliseconds of real time between two blocks. With 0, the hub mines no blocks.
    pub blocks: AtomicU32,
}

/// A running hub, with the test's thread that makes the hub mine blocks and send transactions.
pub struct Network {
    pub hub: Arc<Node>,
    pub pace: Arc<Pace>,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Network {
    /// Starts a hub with 160 blocks, which mines a block every ten simulated minutes and sends transactions.
    pub fn start(factor: u32) -> Self {
        Self::start_with(factor, Duration::ZERO, &[])
    }

    /// Like [`Self::start`], but with additional arguments for the hub, whose clock is `age` behind the machine's
    /// clock.
    pub fn start_with(factor: u32, age: Duration, arguments: &[&str]) -> Self {
        Self::start_from(factor, age, arguments, |_| ())
    }

    /// Like [`Self::start`], but with additional arguments for the hub, and with a function that runs before the hub
    /// mines its first block.
    pub fn start_prepared(factor: u32, arguments: &[&str], prepare: impl FnOnce(&Node)) -> Self {
        Self::start_from(factor, Duration::ZERO, arguments, prepare)
    }

    fn start_from(factor: u32, age: Duration, arguments: &[&str], prepare: impl FnOnce(&Node)) -> Self {
        // The permission noban makes the hub announce transactions to its peers without delay.
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

/// Makes the hub mine blocks and send transactions until `ended` is true. Errors are ignored, because some drills stop
/// the hub.
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

/// A transaction that spends the first output of the transaction `previous` and has two outputs.
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
