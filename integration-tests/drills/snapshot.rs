//! Writes an assumeutxo snapshot, and loads the snapshot into nodes. On regtest, Bitcoin Core accepts the snapshot of
//! one chain of 200 blocks (`m_assumeutxo_data` of regtest in kernel/chainparams.cpp).

use std::path::{Path, PathBuf};

use bitcoin::absolute::LockTime;
use bitcoin::block::{Block, Header, Version};
use bitcoin::consensus::encode::serialize_hex;
use bitcoin::constants::genesis_block;
use bitcoin::hashes::Hash;
use bitcoin::opcodes::all::OP_PUSHBYTES_0;
use bitcoin::script::{Builder, ScriptBuf};
use bitcoin::{
    Amount, Network, OutPoint, Sequence, Transaction, TxIn, TxMerkleNode, TxOut, Witness, transaction,
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::node::Node;

const TIP: &str = "385901ccbd69dff6bbd00065d01fb8a9e464dede7cfe0372443884f9b1dcf6b9";
const HEIGHT: u32 = 200;

fn coinbase(height: u32) -> Transaction {
    const HALVING: u32 = 150;
    let reward = if height < HALVING { 50 } else { 25 };
    let anyone = ScriptBuf::from_hex("51").unwrap();
    Transaction {
        version: transaction::Version::TWO,
        lock_time: LockTime::from_consensus(height - 1),
        input: vec![TxIn {
            previous_output: OutPoint::null(),
            script_sig: Builder::new().push_int(height.into()).push_opcode(OP_PUSHBYTES_0).into_script(),
            sequence: Sequence::ENABLE_LOCKTIME_NO_RBF,
            witness: Witness::new(),
        }],
        output: vec![TxOut { value: Amount::from_int_btc(reward), script_pubkey: anyone.to_p2wsh() }],
    }
}

fn block(previous: &Header, height: u32) -> Block {
    let mut block = Block {
        header: Header {
            version: Version::from_consensus(4),
            prev_blockhash: previous.block_hash(),
            merkle_root: TxMerkleNode::all_zeros(),
            time: previous.time + 1,
            bits: previous.bits,
            nonce: 0,
        },
        txdata: vec![coinbase(height)],
    };
    block.header.merkle_root = block.compute_merkle_root().unwrap();
    while block.header.validate_pow(block.header.target()).is_err() {
        block.header.nonce += 1;
    }
    block
}

/// An assumeutxo snapshot at height 200, and the blocks of the chain up to the snapshot.
pub struct Snapshot {
    blocks: Vec<Block>,
    dir: TempDir,
}

impl Snapshot {
    /// Submits the blocks to a node that has no blocks, and makes the node write the snapshot with `dumptxoutset`.
    pub fn write(node: &Node) -> Self {
        let mut tip = genesis_block(Network::Regtest).header;
        let blocks: Vec<_> = (1..=HEIGHT)
            .map(|height| {
                let block = block(&tip, height);
                tip = block.header;
                block
            })
            .collect();
        assert_eq!(tip.block_hash().to_string(), TIP, "another chain than Bitcoin Core has a snapshot of");
        let calls: Vec<_> = blocks.iter().map(|it| ("submitblock", json!([serialize_hex(it)]))).collect();
        node.batch(&calls);
        let snapshot = Snapshot { blocks, dir: TempDir::new().unwrap() };
        node.cli(&["dumptxoutset", &snapshot.file().display().to_string(), "latest"]);
        snapshot
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("snapshot")
    }

    /// Loads the snapshot into a node that has no blocks. The node's background validation then waits for the blocks up
    /// to the snapshot.
    pub fn load(&self, node: &Node) {
        let headers: Vec<_> =
            self.blocks.iter().map(|it| ("submitheader", json!([serialize_hex(&it.header)]))).collect();
        node.batch(&headers);
        node.cli(&["loadtxoutset", &Path::display(&self.file()).to_string()]);
    }

    /// Submits the block at this height to a node whose background validation waits for the blocks below the snapshot.
    /// The first height is 1.
    pub fn give(&self, node: &Node, height: u32) {
        node.batch(&[("submitblock", json!([serialize_hex(&self.blocks[height as usize - 1])]))]);
    }

    /// Reads the blocks above the snapshot from one node, and submits them to another node.
    pub fn submit_blocks_above(from: &Node, to: &Node) {
        let tip: u32 = from.cli(&["getblockcount"]).parse().unwrap();
        let results = |calls: Vec<(&str, Value)>| -> Vec<Value> {
            from.try_batch(&calls).unwrap().into_iter().map(|mut it| it["result"].take()).collect()
        };
        let hashes = results((HEIGHT + 1..=tip).map(|height| ("getblockhash", json!([height]))).collect());
        let blocks = results(hashes.iter().map(|hash| ("getblock", json!([hash, 0]))).collect());
        let calls: Vec<_> = blocks.iter().map(|block| ("submitblock", json!([block]))).collect();
        to.batch(&calls);
    }

    /// Number of blocks below the snapshot's block. A node that has received only these blocks has not completed its
    /// background validation, which also needs the snapshot's block.
    pub fn below() -> u32 {
        HEIGHT - 1
    }
}
