//! Blocks: what the last one holds, and those that were connected and disconnected.

use super::declare::Declare;
use super::families::{EventCounter, NodeGauge, OwnGauge};

/// Blocks. Units are in the names; see `METRICS.md` for each metric's source.
#[allow(missing_docs, reason = "each field's documentation is its metric's help text")]
pub struct Blocks {
    pub last_transactions: NodeGauge,
    pub last_weight: NodeGauge,
    pub last_size: NodeGauge,
    pub last_fees: NodeGauge,
    pub last_inputs: NodeGauge,
    pub last_outputs: NodeGauge,
    pub height: OwnGauge,
    pub connected: EventCounter,
    pub disconnected: EventCounter,
    pub historical: EventCounter,
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

impl Blocks {
    pub(super) fn declare(d: &mut Declare) -> Self {
        const BLOCK: &str = "the block that ChainNotifications.blockConnected carries";
        const STATS: &str = "JSON-RPC getblockstats of the tip, once per tip, out of initial block download";
        Blocks {
            last_transactions: d.gauge(
                "bitcoin_last_block_transactions",
                "Transactions of the tip, coinbase included",
                STATS,
            ),
            last_weight: d.gauge("bitcoin_last_block_weight", "Weight of the tip's transactions, without coinbase", STATS),
            last_size: d.gauge("bitcoin_last_block_size_bytes", "Size of the tip's transactions, without coinbase", STATS),
            last_fees: d.gauge("bitcoin_last_block_fees_satoshis", "Fees of the tip", STATS),
            last_inputs: d.gauge("bitcoin_last_block_inputs", "Inputs of the tip, without coinbase", STATS),
            last_outputs: d.gauge("bitcoin_last_block_outputs", "Outputs of the tip, coinbase included", STATS),
            height: d.own_gauge(
                "bitcoin_block_height",
                "Height of the last block that was counted as connected",
                "ChainNotifications.blockConnected; else the tip changes that Mining.waitTipChanged tells",
            ),
            connected: d.events(
                "bitcoin_blocks_connected_total",
                "Blocks connected to the active chain; without the historical ones of an assumeutxo node",
                "ChainNotifications.blockConnected; else derived from tip changes by walking headers (JSON-RPC)",
            ),
            disconnected: d.events(
                "bitcoin_blocks_disconnected_total",
                "Blocks disconnected from the active chain, by reorganizations",
                "ChainNotifications.blockDisconnected; else derived from tip changes by walking headers (JSON-RPC)",
            ),
            historical: d.events(
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
