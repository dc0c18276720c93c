//! The chain's notifications, counted.

use tracing::debug;

use super::block;
use crate::ipc::ChainEvent;
use crate::metrics::Metrics;

/// From here on the notifications are seen.
pub fn start(metrics: &Metrics) {
    let blocks = &metrics.blocks;
    for counter in [
        &blocks.connected,
        &blocks.disconnected,
        &blocks.historical,
        &blocks.tip_updates,
        &blocks.flushes,
        &blocks.connected_transactions,
        &blocks.connected_inputs,
        &blocks.connected_outputs,
        &blocks.connected_output_value,
        &blocks.connected_weight,
        &blocks.connected_bytes,
    ] {
        counter.start();
    }
    metrics.mempool.start();
    for event in ["callback", "block_contents"] {
        metrics.exporter.events_dropped.inc_by([event], 0);
    }
}

/// Counts a notification; what takes long is left to `blocks`. Returns its name.
pub fn count(event: ChainEvent, metrics: &Metrics, blocks: &block::Counter) -> &'static str {
    let shown = &metrics.blocks;
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
                shown.historical.inc();
                return "blockConnected";
            }
            shown.connected.inc();
            shown.height.set(Some(height));
            match data {
                Some(data) => blocks.count(data.to_vec()),
                None => metrics.exporter.events_dropped.inc_by(["block_contents"], 1),
            }
            "blockConnected"
        }
        ChainEvent::BlockDisconnected { height } => {
            shown.disconnected.inc();
            debug!(block_height = height, "block disconnected");
            "blockDisconnected"
        }
        ChainEvent::UpdatedTip => {
            shown.tip_updates.inc();
            "updatedBlockTip"
        }
        ChainEvent::Flushed => {
            shown.flushes.inc();
            debug!("chain state flushed");
            "chainStateFlushed"
        }
    }
}
