//! The chain's notifications, counted.

use std::sync::Arc;
use std::time::Instant;

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

/// Counts each notification; what takes long is left to `blocks`. `next_block` is told of each block.
pub fn sink(
    metrics: Arc<Metrics>,
    blocks: block::Counter,
    next_block: impl Fn() + 'static,
) -> impl Fn(ChainEvent) {
    move |event| {
        let started = Instant::now();
        let chain = &metrics.chain;
        let callback = match event {
            ChainEvent::AddedToMempool => {
                metrics.mempool.added.inc();
                "transactionAddedToMempool"
            }
            ChainEvent::RemovedFromMempool(reason) => {
                metrics.mempool.removed(reason);
                "transactionRemovedFromMempool"
            }
            ChainEvent::BlockConnected { height, historical, data } => {
                chain.blocks_connected.inc();
                next_block();
                if !historical {
                    chain.block_height.set(Some(height));
                }
                debug!(height, historical, bytes = data.len(), "block connected");
                blocks.count(data);
                "blockConnected"
            }
            ChainEvent::BlockDisconnected { height } => {
                chain.blocks_disconnected.inc();
                debug!(height, "block disconnected");
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
        };
        metrics.exporter.callbacks.inc_by([callback], 1);
        metrics.exporter.callback_duration.observe(started.elapsed().as_secs_f64());
    }
}
