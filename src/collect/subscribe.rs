//! The chain's notifications, counted.

use tracing::debug;

use super::block;
use crate::ipc::ChainEvent;
use crate::metrics::Metrics;

/// From here on the notifications are seen.
pub fn start(metrics: &Metrics) {
    let chain = &metrics.chain;
    for counter in [
        &chain.blocks_connected,
        &chain.blocks_disconnected,
        &chain.historical_blocks,
        &chain.tip_updates,
        &chain.flushes,
        &chain.connected_transactions,
        &chain.connected_inputs,
        &chain.connected_outputs,
        &chain.connected_output_value,
        &chain.connected_weight,
        &chain.connected_bytes,
    ] {
        counter.start();
    }
    metrics.mempool.start();
}

/// Counts a notification; what takes long is left to `blocks`. Returns its name.
pub fn count(event: ChainEvent, metrics: &Metrics, blocks: &block::Counter) -> &'static str {
    let chain = &metrics.chain;
    match event {
        ChainEvent::AddedToMempool => {
            metrics.mempool.added.inc();
            "transactionAddedToMempool"
        }
        ChainEvent::RemovedFromMempool(reason) => {
            metrics.mempool.removed(reason);
            "transactionRemovedFromMempool"
        }
        ChainEvent::BlockConnected { height, historical, data } => {
            debug!(block_height = height, historical, bytes = data.map(<[u8]>::len), "block connected");
            if historical {
                chain.historical_blocks.inc();
                return "blockConnected";
            }
            chain.blocks_connected.inc();
            chain.block_height.set(height);
            match data {
                Some(data) => blocks.count(data.to_vec()),
                None => metrics.exporter.events_dropped.inc_by(["block_contents"], 1),
            }
            "blockConnected"
        }
        ChainEvent::BlockDisconnected { height } => {
            chain.blocks_disconnected.inc();
            debug!(block_height = height, "block disconnected");
            "blockDisconnected"
        }
        ChainEvent::UpdatedTip => {
            chain.tip_updates.inc();
            "updatedBlockTip"
        }
        ChainEvent::Flushed => {
            chain.flushes.inc();
            debug!("chain state flushed");
            "chainStateFlushed"
        }
    }
}
