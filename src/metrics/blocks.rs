//! Blocks: what the last one holds, and those that were connected and disconnected.

use super::model::{counter, gauge};
use super::pushed::{Counter, Gauge, area};

const BLOCK: &[&str] = &["the block that ChainNotifications.blockConnected carries"];
const STATS: &[&str] = &["JSON-RPC getblockstats of the tip, once per tip, out of initial block download"];

area! {
    /// Blocks.
    pub struct BlockMetrics {
        last_transactions: Gauge = gauge("bitcoin_last_block_transactions",
            "Transactions of the tip, coinbase included", STATS).of_node();
        last_weight: Gauge = gauge("bitcoin_last_block_weight",
            "Weight of the tip's transactions, without coinbase", STATS).of_node();
        last_size: Gauge = gauge("bitcoin_last_block_size_bytes",
            "Size of the tip's transactions, without coinbase", STATS).of_node();
        last_fees: Gauge = gauge("bitcoin_last_block_fees_satoshis", "Fees of the tip", STATS).of_node();
        last_inputs: Gauge = gauge("bitcoin_last_block_inputs", "Inputs of the tip, without coinbase", STATS).of_node();
        last_outputs: Gauge = gauge("bitcoin_last_block_outputs", "Outputs of the tip, coinbase included", STATS).of_node();
        height: Gauge = gauge("bitcoin_block_height",
            "Height of the last block that was counted as connected",
            &["ChainNotifications.blockConnected; else the tip changes that Mining.waitTipChanged tells"]);
        connected: Counter = counter("bitcoin_blocks_connected_total",
            "Blocks connected to the active chain; without the historical ones of an assumeutxo node",
            &["ChainNotifications.blockConnected; else derived from tip changes by walking headers (JSON-RPC)"]);
        disconnected: Counter = counter("bitcoin_blocks_disconnected_total",
            "Blocks disconnected from the active chain, by reorganizations",
            &["ChainNotifications.blockDisconnected; else derived from tip changes by walking headers (JSON-RPC)"]);
        historical: Counter = counter("bitcoin_historical_blocks_connected_total",
            "Blocks below an assumeutxo snapshot, connected in the background to validate it; no other metric counts them or what \
             they hold",
            &["ChainNotifications.blockConnected with `role.historical`"]);
        uncounted_tip_changes: Counter = counter("bitcoin_exporter_uncounted_tip_changes_total",
            "Changes of the tip whose blocks could not be counted, because the node does not know the earlier tip: another chain, \
             or a block index that was built anew",
            &["Mining.waitTipChanged; walking headers (JSON-RPC)"]);
        tip_updates: Counter = counter("bitcoin_tip_updates_total",
            "Changes of the tip", &["ChainNotifications.updatedBlockTip; else Mining.waitTipChanged"]);
        flushes: Counter = counter("bitcoin_chain_state_flushes_total",
            "Flushes of the chain state to disk", &["ChainNotifications.chainStateFlushed"]);
        connected_transactions: Counter = counter("bitcoin_connected_transactions_total",
            "Transactions of connected blocks, coinbase included", BLOCK);
        connected_inputs: Counter = counter("bitcoin_connected_inputs_total",
            "Inputs of connected blocks, without coinbase", BLOCK);
        connected_outputs: Counter = counter("bitcoin_connected_outputs_total",
            "Outputs of connected blocks, coinbase included", BLOCK);
        connected_output_value: Counter = counter("bitcoin_connected_output_value_satoshis_total",
            "Value of the outputs of connected blocks, coinbase included", BLOCK);
        connected_weight: Counter = counter("bitcoin_connected_weight_total", "Weight units of connected blocks", BLOCK);
        connected_bytes: Counter = counter("bitcoin_connected_bytes_total", "Serialized size of connected blocks", BLOCK);
    }
}
