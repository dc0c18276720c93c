//! Metrics about blocks: the contents of the tip block, and the blocks that the node connected to and disconnected from
//! its active chain.

use super::model::{counter, gauge};
use super::pushed::{Counter, Gauge, GaugeVec, area};

const BLOCK: &[&str] = &[
    "the block in ChainNotifications.blockConnected; without notifications, JSON-RPC getblockstats of each block that is connected after initial block download",
];
const STATS: &[&str] =
    &["JSON-RPC getblockstats of the tip, once per tip, not during initial block download"];

area! {
    /// Metrics about the tip's contents and about connected and disconnected blocks.
    pub struct BlockMetrics {
        last_transactions: Gauge = gauge("bitcoin_last_block_transactions",
            "Transactions in the tip block, including the coinbase", STATS).of_node();
        last_weight: Gauge = gauge("bitcoin_last_block_weight",
            "Weight of the transactions in the tip block, without the coinbase", STATS).of_node();
        last_size: Gauge = gauge("bitcoin_last_block_size_bytes",
            "Serialized size of the transactions in the tip block, without the coinbase", STATS).of_node();
        last_fees: Gauge = gauge("bitcoin_last_block_fees_satoshis",
            "Total fees of the transactions in the tip block, in satoshis", STATS).of_node();
        last_inputs: Gauge = gauge("bitcoin_last_block_inputs",
            "Transaction inputs in the tip block, without the coinbase", STATS).of_node();
        last_outputs: Gauge = gauge("bitcoin_last_block_outputs",
            "Transaction outputs in the tip block, including the coinbase", STATS).of_node();
        last_output_value: Gauge = gauge("bitcoin_last_block_output_value_satoshis",
            "Total value of the transaction outputs in the tip block, without the coinbase, in satoshis", STATS).of_node();
        last_subsidy: Gauge = gauge("bitcoin_last_block_subsidy_satoshis", "Block subsidy of the tip block, in satoshis", STATS).of_node();
        last_segwit_transactions: Gauge = gauge("bitcoin_last_block_segwit_transactions",
            "Transactions with witness data in the tip block, without the coinbase", STATS).of_node();
        last_utxo_increase: Gauge = gauge("bitcoin_last_block_utxo_increase",
            "Outputs of the tip block minus its inputs, including outputs that can never be spent; it can be negative", STATS).of_node();
        last_feerate: GaugeVec<1> = gauge("bitcoin_last_block_feerate_sat_per_vbyte",
            "Percentiles 10, 25, 50, 75 and 90 of the fee rates in the tip block, by weight, rounded down by the node; absent if the \
             block has only a coinbase", STATS).by(&["percentile"]).of_node();
        height: Gauge = gauge("bitcoin_block_height",
            "Height of the last block counted as connected",
            &["ChainNotifications.blockConnected; without ChainNotifications, tip changes from Mining.waitTipChanged"]);
        connected: Counter = counter("bitcoin_blocks_connected_total",
            "Blocks connected to the active chain, without the historical blocks of an assumeutxo node",
            &["ChainNotifications.blockConnected; without ChainNotifications, the block headers that the exporter \
                 reads after a tip change (JSON-RPC)"]);
        disconnected: Counter = counter("bitcoin_blocks_disconnected_total",
            "Blocks disconnected from the active chain by reorganizations",
            &["ChainNotifications.blockDisconnected; without ChainNotifications, the block headers that the exporter \
                 reads after a tip change (JSON-RPC)"]);
        historical: Counter = counter("bitcoin_historical_blocks_connected_total",
            "Blocks below an assumeutxo snapshot that the node connected in the background to validate the snapshot. \
             No other metric counts these blocks or their contents",
            &["ChainNotifications.blockConnected with `role.historical`"]);
        uncounted_tip_changes: Counter = counter("bitcoin_exporter_uncounted_tip_changes_total",
            "Tip changes whose blocks could not be counted, because the node does not have the block of the earlier \
             tip (the node has another chain, or has rebuilt its block index)",
            &["Mining.waitTipChanged; block headers that the exporter reads after a tip change (JSON-RPC)"]);
        tip_updates: Counter = counter("bitcoin_tip_updates_total",
            "Changes of the tip of the active chain", &["ChainNotifications.updatedBlockTip; without ChainNotifications, Mining.waitTipChanged"]);
        flushes: Counter = counter("bitcoin_chain_state_flushes_total",
            "Flushes of the chainstate to disk", &["ChainNotifications.chainStateFlushed"]);
        connected_transactions: Counter = counter("bitcoin_connected_transactions_total",
            "Transactions in connected blocks, including the coinbase", BLOCK);
        connected_inputs: Counter = counter("bitcoin_connected_inputs_total",
            "Transaction inputs in connected blocks, without the coinbase", BLOCK);
        connected_outputs: Counter = counter("bitcoin_connected_outputs_total",
            "Transaction outputs in connected blocks, including the coinbase", BLOCK);
        connected_output_value: Counter = counter("bitcoin_connected_output_value_satoshis_total",
            "Total value of the transaction outputs in connected blocks, without the coinbase, in satoshis", BLOCK);
        connected_weight: Counter = counter("bitcoin_connected_weight_total",
            "Weight of the transactions in connected blocks, without the coinbase, in weight units", BLOCK);
        connected_bytes: Counter = counter("bitcoin_connected_bytes_total",
            "Serialized size of the transactions in connected blocks, without the coinbase", BLOCK);
        connected_fees: Counter = counter("bitcoin_connected_fees_satoshis_total",
            "Total fees of the transactions in connected blocks, in satoshis",
            &["JSON-RPC getblockstats of each block that is connected after initial block download"]);
        uncounted_blocks: Counter = counter("bitcoin_exporter_uncounted_blocks_total",
            "Connected blocks whose contents or fees were not counted, because the node had already pruned them, or \
             because too many blocks were waiting to be counted. Blocks of initial block download are not included",
            &["JSON-RPC getblockstats"]);
    }
}

impl BlockMetrics {
    /// Starts to export the counters about the contents of connected blocks, at 0 if they have no value yet. The
    /// counter of the fees is omitted, because the node's notifications of connected blocks do not contain the fees.
    pub fn start_contents(&self) {
        for counter in [
            &self.connected_transactions,
            &self.connected_inputs,
            &self.connected_outputs,
            &self.connected_output_value,
            &self.connected_weight,
            &self.connected_bytes,
        ] {
            counter.start();
        }
    }
}
