//! The block chain.

use super::{By, Declare, EventCounter, EventGauge, NodeGauge, Value};

/// Tip, headers and blocks. Units are in the names; see `METRICS.md` for each metric's source.
#[allow(missing_docs, reason = "each field's documentation is its metric's help text")]
pub struct Chain {
    pub height: NodeGauge,
    pub header_height: NodeGauge,
    pub ibd: NodeGauge,
    pub verification_progress: NodeGauge,
    pub tip_timestamp: NodeGauge,
    pub difficulty: NodeGauge,
    pub size_on_disk: NodeGauge,
    pub pruned: NodeGauge,
    pub prune_height: NodeGauge,
    pub tips: By<1, Value>,
    pub hashrate: By<1, Value>,
    pub node_info: By<4, Value>,
    pub uptime: NodeGauge,
    pub memory_locked: By<1, Value>,
    pub warnings: NodeGauge,
    pub last_block_transactions: NodeGauge,
    pub last_block_weight: NodeGauge,
    pub last_block_size: NodeGauge,
    pub last_block_fees: NodeGauge,
    pub last_block_inputs: NodeGauge,
    pub last_block_outputs: NodeGauge,
    pub block_height: EventGauge,
    pub blocks_connected: EventCounter,
    pub blocks_disconnected: EventCounter,
    pub historical_blocks: EventCounter,
    pub uncounted_tip_changes: EventCounter,
    pub tip_updates: EventCounter,
    pub flushes: EventCounter,
    pub connected_transactions: EventCounter,
    pub connected_inputs: EventCounter,
    pub connected_outputs: EventCounter,
    pub connected_output_value: EventCounter,
    pub connected_weight: EventCounter,
    pub connected_bytes: EventCounter,
}

impl Chain {
    pub(super) fn declare(d: &mut Declare) -> Self {
        const BLOCK: &str = "the block that ChainNotifications.blockConnected carries";
        const STATS: &str = "JSON-RPC getblockstats of the tip, once per tip, out of initial block download";
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
                "JSON-RPC getchaintips, within minutes after a new tip, out of initial block download",
            ),
            hashrate: d.gauge_by(
                "bitcoin_hashrate_estimate",
                ["blocks"],
                "Estimated hashes per second of the network over the last blocks",
                "JSON-RPC getnetworkhashps, once per tip",
            ),
            node_info: d.gauge_by(
                "bitcoin_node_info",
                ["version", "subversion", "protocol_version", "chain"],
                "1, with the node's versions and chain as labels",
                "JSON-RPC getnetworkinfo, getblockchaininfo",
            ),
            uptime: d.gauge("bitcoin_node_uptime_seconds", "Seconds since the node started", "JSON-RPC uptime"),
            memory_locked: d.gauge_by(
                "bitcoin_memory_locked_bytes",
                ["state"],
                "Memory of the node's locked pool, for keys",
                "JSON-RPC getmemoryinfo",
            ),
            warnings: d.gauge(
                "bitcoin_warnings",
                "Warnings that the node currently gives",
                "JSON-RPC getnetworkinfo `warnings`",
            ),
            last_block_transactions: d.gauge(
                "bitcoin_last_block_transactions",
                "Transactions of the tip, coinbase included",
                STATS,
            ),
            last_block_weight: d.gauge("bitcoin_last_block_weight", "Weight of the tip's transactions, without coinbase", STATS),
            last_block_size: d.gauge("bitcoin_last_block_size_bytes", "Size of the tip's transactions, without coinbase", STATS),
            last_block_fees: d.gauge("bitcoin_last_block_fees_satoshis", "Fees of the tip", STATS),
            last_block_inputs: d.gauge("bitcoin_last_block_inputs", "Inputs of the tip, without coinbase", STATS),
            last_block_outputs: d.gauge("bitcoin_last_block_outputs", "Outputs of the tip, coinbase included", STATS),
            block_height: d.event_gauge(
                "bitcoin_block_height",
                "Height of the last block that was counted as connected",
                "ChainNotifications.blockConnected; else the tip changes that Mining.waitTipChanged tells",
            ),
            blocks_connected: d.events(
                "bitcoin_blocks_connected_total",
                "Blocks connected to the active chain; without the historical ones of an assumeutxo node",
                "ChainNotifications.blockConnected; else derived from tip changes by walking headers (JSON-RPC)",
            ),
            blocks_disconnected: d.events(
                "bitcoin_blocks_disconnected_total",
                "Blocks disconnected from the active chain, by reorganizations",
                "ChainNotifications.blockDisconnected; else derived from tip changes by walking headers (JSON-RPC)",
            ),
            historical_blocks: d.events(
                "bitcoin_historical_blocks_connected_total",
                "Blocks below an assumeutxo snapshot, connected in the background to validate it; no other metric counts them or what they hold",
                "ChainNotifications.blockConnected with `role.historical`",
            ),
            uncounted_tip_changes: d.events(
                "bitcoin_exporter_uncounted_tip_changes_total",
                "Changes of the tip whose blocks could not be counted, because the node does not know the earlier tip: another chain, or a block index that was built anew",
                "Mining.waitTipChanged; walking headers (JSON-RPC)",
            ),
            tip_updates: d.events(
                "bitcoin_tip_updates_total",
                "Changes of the tip",
                "ChainNotifications.updatedBlockTip; else Mining.waitTipChanged",
            ),
            flushes: d.events(
                "bitcoin_chain_state_flushes_total",
                "Flushes of the chain state to disk",
                "ChainNotifications.chainStateFlushed",
            ),
            connected_transactions: d.events(
                "bitcoin_connected_transactions_total",
                "Transactions of connected blocks, coinbase included",
                BLOCK,
            ),
            connected_inputs: d.events(
                "bitcoin_connected_inputs_total",
                "Inputs of connected blocks, without coinbase",
                BLOCK,
            ),
            connected_outputs: d.events(
                "bitcoin_connected_outputs_total",
                "Outputs of connected blocks, coinbase included",
                BLOCK,
            ),
            connected_output_value: d.events(
                "bitcoin_connected_output_value_satoshis_total",
                "Value of the outputs of connected blocks, coinbase included",
                BLOCK,
            ),
            connected_weight: d.events("bitcoin_connected_weight_total", "Weight units of connected blocks", BLOCK),
            connected_bytes: d.events("bitcoin_connected_bytes_total", "Serialized size of connected blocks", BLOCK),
        }
    }
}
