//! A real node with P2P peers of the test, which send blocks to the node, and an exporter that traces the node.

use bitcoin::bip152::BlockTransactions;
use bitcoin::block::{Block, Header};
use bitcoin::consensus::encode::{deserialize_hex, serialize_hex};
use bitcoin::p2p::message::NetworkMessage;
use bitcoin::p2p::message_blockdata::Inventory;
use bitcoin::p2p::message_compact_blocks::{BlockTxn, GetBlockTxn, SendCmpct};
use bitcoin::{Amount, Transaction};

use crate::core_tracepoints::sum;
use crate::harness::eventually;
use crate::harness::exporter::Exporter;
use crate::harness::node::Node;
use crate::harness::peer::{Peer, block_on, unix_time};

/// Amount that the coinbase of each block pays, which is less than the subsidy at any height in these tests.
pub const REWARD: Amount = Amount::from_sat(1000);

/// A node that logs compact blocks (`-debug=cmpctblock`), and an exporter that traces the node.
pub struct Scene {
    pub node: Node,
    pub exporter: Exporter,
    /// Hashes of blocks whose coinbase is mature and was not spent.
    mature: Vec<String>,
    pub tip: Header,
    pub height: i64,
}

impl Scene {
    /// Starts the node, the exporter, and `N` peers. Each peer has sent a compact block to the node, and is therefore a
    /// high-bandwidth compact block peer.
    pub fn new<const N: usize>() -> (Self, [Peer; N]) {
        Self::with("net,validation", &[])
    }

    /// Like [`Self::new`], but the exporter has these groups of tracepoints and these additional arguments.
    pub fn with<const N: usize>(tracepoints: &str, arguments: &[&str]) -> (Self, [Peer; N]) {
        // The timestamps of the first blocks are an hour old, because later blocks of the peers must have newer
        // timestamps.
        let an_hour_ago = unix_time() - 3600;
        let node = Node::start(&["-debug=cmpctblock", &format!("-mocktime={an_hour_ago}")]);
        let mut mature = node.mine(160);
        mature.truncate(50);
        node.cli(&["setmocktime", "0"]);
        let tip = node.cli(&["getblockheader", &node.cli(&["getbestblockhash"]), "false"]);
        let (mut tip, mut height) = (deserialize_hex(&tip).unwrap(), 160);
        let mut peers = [(); N].map(|()| Peer::connect(node.p2p_port));
        for peer in &mut peers {
            height += 1;
            let block = block_on(&tip, height, unix_time() - 5, REWARD, &[]);
            tip = block.header;
            peer.send(NetworkMessage::Headers(vec![tip]));
            fetched(peer, Inventory::CompactBlock(tip.block_hash()));
            peer.send_compact_block(&block, &[]);
            let high_bandwidth = SendCmpct { send_compact: true, version: 2 };
            peer.receive("sendcmpct", |message| {
                (message == NetworkMessage::SendCmpct(high_bandwidth)).then_some(())
            });
        }
        let exporter = crate::exporter(node.pid(), &[&["--tracepoints", tracepoints], arguments].concat());
        (Scene { node, exporter, mature, tip, height }, peers)
    }

    pub fn transactions(&mut self, number: usize) -> Vec<Transaction> {
        self.mature.drain(..number).map(|block| self.node.spending_coinbase_of(&block, 1000)).collect()
    }

    pub fn send(&self, transaction: &Transaction) {
        self.node.cli(&["sendrawtransaction", &serialize_hex(transaction), "0"]);
    }

    /// Builds a valid block on the tip, but does not send the block to the node.
    pub fn block(&self, transactions: &[Transaction]) -> Block {
        block_on(&self.tip, self.height + 1, unix_time() - 5, REWARD, transactions)
    }

    /// Waits until this block is the node's tip and the exporter has logged the block.
    pub fn connected(&mut self, block: &Block) {
        let hash = block.block_hash().to_string();
        eventually("the node connects the block", || {
            (self.node.cli(&["getbestblockhash"]) == hash).then_some(())
        });
        (self.tip, self.height) = (block.header, self.height + 1);
        self.entry(block);
    }

    /// The exporter's log line about a connected block.
    fn entry(&self, block: &Block) -> String {
        let hash = format!("block_hash=\"{}\"", block.block_hash());
        eventually("the exporter logs the block", || {
            let log = self.exporter.log();
            log.lines()
                .find(|line| line.contains("block connected") && line.contains(&hash))
                .map(String::from)
        })
    }

    /// The value of a field in the exporter's log line about a connected block. `None` if the line lacks the field.
    pub fn field(&self, block: &Block, name: &str) -> Option<String> {
        let entry = self.entry(block);
        let value = entry.split_once(&format!(" {name}="))?.1;
        Some(value.split(' ').next().unwrap().trim_matches('"').to_string())
    }

    pub fn sum(&self, metric: &str, labels: &str) -> f64 {
        sum(&self.exporter, metric, labels)
    }

    /// The numbers in the node's debug.log about each of these blocks that the node reconstructed from a compact block:
    /// prefilled transactions, requested transactions, and requested bytes.
    pub fn reconstructed(&self, blocks: &[&Block]) -> Vec<[u64; 3]> {
        let log = std::fs::read(self.node.dir().join("regtest/debug.log")).unwrap();
        let log = String::from_utf8_lossy(&log).into_owned();
        let of = |block: &&Block| {
            let line = format!("Successfully reconstructed block {} with ", block.block_hash());
            let rest = log.lines().find_map(|it| it.split_once(&line))?.1;
            // The rest of the line is: P txn prefilled, M txn from mempool (incl at least E from extra pool) and R txn
            // (B bytes) requested
            let numbers = rest.split(|it: char| !it.is_ascii_digit()).filter_map(|it| it.parse().ok());
            match numbers.collect::<Vec<_>>()[..] {
                [prefilled, _, _, requested, bytes] => Some([prefilled, requested, bytes]),
                _ => panic!("another form: {rest}"),
            }
        };
        blocks.iter().filter_map(of).collect()
    }
}

pub fn requested(peer: &mut Peer) -> GetBlockTxn {
    peer.receive("getblocktxn", |message| match message {
        NetworkMessage::GetBlockTxn(request) => Some(request),
        _ => None,
    })
}

pub fn give(peer: &mut Peer, request: &GetBlockTxn, block: &Block) {
    let transactions = BlockTransactions::from_request(&request.txs_request, block).unwrap();
    peer.send(NetworkMessage::BlockTxn(BlockTxn { transactions }));
}

/// Waits for a getdata message from the node that contains only this inventory entry.
pub fn fetched(peer: &mut Peer, wanted: Inventory) {
    peer.receive("getdata", |message| (message == NetworkMessage::GetData(vec![wanted])).then_some(()));
}
