//! Metrics about the active chain (tip, headers, difficulty), the node's chainstates and indexes, and soft fork
//! deployments.

use super::model::gauge;
use super::pushed::{Gauge, GaugeVec, area};

area! {
    /// Metrics about the active chain, chainstates, indexes and soft fork deployments.
    pub struct ChainMetrics {
        height: Gauge = gauge("bitcoin_chain_height",
            "Height of the tip of the active chain", &["Chain.getHeight; getblockchaininfo `blocks`; Mining.getTip"]).of_node();
        header_height: Gauge = gauge("bitcoin_header_height",
            "Height of the best known header", &["Node.getHeaderTip; getblockchaininfo `headers`"]).of_node();
        ibd: Gauge = gauge("bitcoin_ibd",
            "1 while the node is in initial block download, otherwise 0",
            &["Node.isInitialBlockDownload; Chain.isInitialBlockDownload; getblockchaininfo; Mining.isInitialBlockDownload"]).of_node();
        verification_progress: Gauge = gauge("bitcoin_verification_progress",
            "Verified share of all transactions in the chain, as estimated by the node, 0 to 1",
            &["Node.getVerificationProgress; getblockchaininfo"]).of_node();
        tip_timestamp: Gauge = gauge("bitcoin_tip_timestamp_seconds",
            "Timestamp in the tip's header, as chosen by the miner of the block, in Unix seconds",
            &["Node.getLastBlockTime; getblockchaininfo `time`"]).of_node();
        tip_hash_suffix: Gauge = gauge("bitcoin_tip_hash_suffix",
            "Last 13 hexadecimal digits of the tip's hash, as a number; equal on nodes with the same tip",
            &["getblockchaininfo `bestblockhash`; Mining.getTip; Node.getBestBlockHash"]).of_node();
        difficulty: Gauge = gauge("bitcoin_difficulty",
            "Proof-of-work difficulty of the tip", &["JSON-RPC getblockchaininfo"]).of_node();
        size_on_disk: Gauge = gauge("bitcoin_chain_size_bytes",
            "Size of the block and undo files on disk", &["JSON-RPC getblockchaininfo `size_on_disk`"]).of_node();
        pruned: Gauge = gauge("bitcoin_pruned",
            "1 if the node prunes old blocks, otherwise 0",
            &["JSON-RPC getblockchaininfo; without JSON-RPC, Chain.havePruned, which is 1 only after blocks were pruned"]).of_node();
        prune_height: Gauge = gauge("bitcoin_prune_height",
            "Height of the first complete block on disk, on a pruned node",
            &["JSON-RPC getblockchaininfo `pruneheight`; without JSON-RPC, Chain.getPruneHeight (the last pruned block) plus one"]).of_node();
        prune_target: Gauge = gauge("bitcoin_prune_target_bytes",
            "Size of the block and undo files above which the node prunes old blocks; absent without automatic pruning",
            &["JSON-RPC getblockchaininfo `prune_target_size`"]).of_node();
        next_difficulty: Gauge = gauge("bitcoin_next_difficulty",
            "Proof-of-work difficulty of the next block",
            &["JSON-RPC getmininginfo `next.difficulty` (Bitcoin Core 29 and later)"]).of_node();
        tips: GaugeVec<1> = gauge("bitcoin_chain_tips",
            "Branches of the block tree that the node has seen, including the active chain, by status",
            &["JSON-RPC getchaintips, at most once a minute, not during initial block download"]).by(&["status"]).of_node();
        hashrate: GaugeVec<1> = gauge("bitcoin_hashrate_estimate",
            "Estimated hash rate of the network over the last `blocks` blocks, hashes per second",
            &["JSON-RPC getnetworkhashps, once per tip"]).by(&["blocks"]).of_node();
        chainstate_height: GaugeVec<1> = gauge("bitcoin_chainstate_height",
            "Height of each chainstate: `normal`, or, on a node that was started from an assumeutxo snapshot, \
             `snapshot` and (until the snapshot is validated) `background`",
            &["JSON-RPC getchainstates `blocks`"]).by(&["chainstate"]).of_node();
        chainstate_cache: GaugeVec<2> = gauge("bitcoin_chainstate_cache_bytes",
            "Size limit of each coin cache: `db` is the cache of the coin database, `tip` is the cache of coins in memory",
            &["JSON-RPC getchainstates"]).by(&["chainstate", "cache"]).of_node();
        background_progress: Gauge = gauge("bitcoin_background_validation_progress",
            "Share of the transactions up to the assumeutxo snapshot that are verified in the background, 0 to 1",
            &["JSON-RPC getblockchaininfo `backgroundvalidation` (Bitcoin Core 32)"]).of_node();
        index_height: GaugeVec<1> = gauge("bitcoin_index_height",
            "Height up to which each optional index, for example txindex, is built",
            &["JSON-RPC getindexinfo `best_block_height`"]).by(&["index"]).of_node();
        index_synced: GaugeVec<1> = gauge("bitcoin_index_synced",
            "1 if the index has caught up with the chain, otherwise 0", &["JSON-RPC getindexinfo `synced`"]).by(&["index"]).of_node();
        deployment_active: GaugeVec<1> = gauge("bitcoin_deployment_active",
            "1 if the next block must follow the rules of this soft fork, otherwise 0",
            &["JSON-RPC getdeploymentinfo, once per tip"]).by(&["deployment"]).of_node();
        deployment_signalling: GaugeVec<1> = gauge("bitcoin_deployment_signalling_blocks",
            "Blocks of the current period that signal for a soft fork that is not locked in yet",
            &["JSON-RPC getdeploymentinfo `bip9.statistics.count`, once per tip"]).by(&["deployment"]).of_node();
    }
}
