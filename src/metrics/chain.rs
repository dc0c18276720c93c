//! The active chain: tip, headers, difficulty.

use super::declare::Declare;
use super::families::{Labeled, NodeGauge};
use super::samples::Value;

/// The active chain. Units are in the names; see `METRICS.md` for each metric's source.
#[allow(missing_docs, reason = "each field's documentation is its metric's help text")]
pub struct Chain {
    pub height: NodeGauge,
    pub header_height: NodeGauge,
    pub ibd: NodeGauge,
    pub verification_progress: NodeGauge,
    pub tip_timestamp: NodeGauge,
    pub tip_hash_suffix: NodeGauge,
    pub difficulty: NodeGauge,
    pub size_on_disk: NodeGauge,
    pub pruned: NodeGauge,
    pub prune_height: NodeGauge,
    pub tips: Labeled<1, Value>,
    pub hashrate: Labeled<1, Value>,
}

impl Chain {
    pub(super) fn declare(d: &mut Declare) -> Self {
        Chain {
            height: d.gauge(
                "bitcoin_chain_height",
                "Height of the tip of the active chain",
                "Chain.getHeight; getblockchaininfo `blocks`; Mining.getTip",
            ),
            header_height: d.gauge(
                "bitcoin_header_height",
                "Height of the best known header",
                "Node.getHeaderTip; getblockchaininfo `headers`",
            ),
            ibd: d.gauge(
                "bitcoin_ibd",
                "1 while the node is in initial block download, else 0",
                "Node, else Chain: isInitialBlockDownload; getblockchaininfo; Mining.isInitialBlockDownload",
            ),
            verification_progress: d.gauge(
                "bitcoin_verification_progress",
                "Estimated share of the chain's transactions that are verified, 0 to 1",
                "Node.getVerificationProgress; getblockchaininfo",
            ),
            tip_timestamp: d.gauge(
                "bitcoin_tip_timestamp_seconds",
                "Time in the header of the tip, Unix seconds; set by its miner",
                "Node.getLastBlockTime; getblockchaininfo `time`",
            ),
            tip_hash_suffix: d.gauge(
                "bitcoin_tip_hash_suffix",
                "The last 13 hexadecimal digits of the tip's hash, as a number: equal on nodes with the same tip",
                "getblockchaininfo `bestblockhash`; Mining.getTip; Node.getBestBlockHash",
            ),
            difficulty: d.gauge("bitcoin_difficulty", "Proof-of-work difficulty of the tip", "JSON-RPC getblockchaininfo"),
            size_on_disk: d.gauge(
                "bitcoin_chain_size_bytes",
                "Size of the block and undo files on disk",
                "JSON-RPC getblockchaininfo `size_on_disk`",
            ),
            pruned: d.gauge(
                "bitcoin_pruned",
                "1 if the node prunes old blocks, else 0",
                "JSON-RPC getblockchaininfo; without it Chain.havePruned (blocks were pruned already)",
            ),
            prune_height: d.gauge(
                "bitcoin_prune_height",
                "Height of the first block that is stored whole, on a node that prunes",
                "JSON-RPC getblockchaininfo `pruneheight`; without it Chain.getPruneHeight (the last pruned block) plus one",
            ),
            tips: d.gauge_by(
                "bitcoin_chain_tips",
                ["status"],
                "Tips of the block tree by status",
                "JSON-RPC getchaintips, within minutes after a new tip or best header, else every five minutes; out of initial \
                 block download",
            ),
            hashrate: d.gauge_by(
                "bitcoin_hashrate_estimate",
                ["blocks"],
                "Estimated hashes per second of the network over the last blocks",
                "JSON-RPC getnetworkhashps, once per tip",
            ),
        }
    }
}
