//! Metrics about the node's chainstates and indexes, and about soft fork deployments.

use super::model::gauge;
use super::pushed::{Gauge, GaugeVec, area};

area! {
    /// Metrics about chainstates, indexes and soft fork deployments.
    pub struct ChainstateMetrics {
        height: GaugeVec<1> = gauge("bitcoin_chainstate_height",
            "Height of each chainstate: `normal`, or, on a node that was started from an assumeutxo snapshot, \
             `snapshot` and (until the snapshot is validated) `background`",
            &["JSON-RPC getchainstates `blocks`"]).by(&["chainstate"]).of_node();
        cache: GaugeVec<2> = gauge("bitcoin_chainstate_cache_bytes",
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
