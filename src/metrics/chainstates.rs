//! What the node keeps of the chain: chainstates and indexes; and the rules that its blocks have to follow.

use super::declare::Declare;
use super::families::{Labeled, NodeGauge};
use super::samples::Value;

/// Chainstates, indexes, deployments. Units are in the names; see `METRICS.md` for each metric's source.
#[allow(missing_docs, reason = "each field's documentation is its metric's help text")]
pub struct Chainstates {
    pub height: Labeled<1, Value>,
    pub cache: Labeled<2, Value>,
    pub background_progress: NodeGauge,
    pub index_height: Labeled<1, Value>,
    pub index_synced: Labeled<1, Value>,
    pub deployment_active: Labeled<1, Value>,
    pub deployment_signalling: Labeled<1, Value>,
}

impl Chainstates {
    pub(super) fn declare(d: &mut Declare) -> Self {
        Chainstates {
            height: d.gauge_by(
                "bitcoin_chainstate_height",
                ["chainstate"],
                "Height of each chainstate: `normal`; with assumeutxo `snapshot`, and `background` until that is validated",
                "JSON-RPC getchainstates `blocks`",
            ),
            cache: d.gauge_by(
                "bitcoin_chainstate_cache_bytes",
                ["chainstate", "cache"],
                "Size that the node allows each cache of coins: `db` the database's, `tip` the one in memory",
                "JSON-RPC getchainstates",
            ),
            background_progress: d.gauge(
                "bitcoin_background_validation_progress",
                "Share of the transactions up to the assumeutxo snapshot that are verified in the background, 0 to 1",
                "JSON-RPC getblockchaininfo `backgroundvalidation` (Bitcoin Core 32)",
            ),
            index_height: d.gauge_by(
                "bitcoin_index_height",
                ["index"],
                "Height up to which each optional index is built",
                "JSON-RPC getindexinfo `best_block_height`",
            ),
            index_synced: d.gauge_by(
                "bitcoin_index_synced",
                ["index"],
                "1 if the index has caught up with the chain, else 0",
                "JSON-RPC getindexinfo `synced`",
            ),
            deployment_active: d.gauge_by(
                "bitcoin_deployment_active",
                ["deployment"],
                "1 if the next block has to follow the rules of this soft fork, else 0",
                "JSON-RPC getdeploymentinfo, once per tip",
            ),
            deployment_signalling: d.gauge_by(
                "bitcoin_deployment_signalling_blocks",
                ["deployment"],
                "Blocks of this period that signal for a soft fork that is not locked in yet",
                "JSON-RPC getdeploymentinfo `bip9.statistics.count`, once per tip",
            ),
        }
    }
}
