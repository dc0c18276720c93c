//! Counts the notifications that the node sends through its IPC interface Chain, for example of a connected block or of
//! a transaction that was added to the mempool.

use tracing::{debug, warn};

use super::connected_blocks::{BlockRange, ContentsToCount};
use super::context::Context;
use crate::bitcoin_core::REMOVAL_REASONS;
use crate::ipc::{BlockHash, BlockRef, ChainEvent};
use crate::metrics::Metrics;

/// Creates the series of the counters that count notifications, with value 0.
pub fn start(metrics: &Metrics) {
    let blocks = &metrics.blocks;
    for counter in
        [&blocks.connected, &blocks.disconnected, &blocks.historical, &blocks.tip_updates, &blocks.flushes]
    {
        counter.start();
    }
    blocks.start_contents();
    metrics.mempool.added.start();
    REMOVAL_REASONS.iter().for_each(|reason| metrics.mempool.removed.inc_by([reason], 0));
    for event in ["callback", "block_contents"] {
        metrics.exporter.events_dropped.inc_by([event], 0);
    }
}

/// Counts a notification. Returns the name of the callback method by which the node sent the notification.
pub fn count(event: ChainEvent, context: &Context) -> &'static str {
    let metrics = &context.metrics;
    let blocks = &metrics.blocks;
    match event {
        ChainEvent::AddedToMempool => {
            metrics.mempool.added.inc();
            "transactionAddedToMempool"
        }
        ChainEvent::RemovedFromMempool(reason) => {
            let reason = usize::try_from(reason).ok().and_then(|reason| REMOVAL_REASONS.get(reason));
            metrics.mempool.removed.inc_by([reason.unwrap_or(&"other")], 1);
            "transactionRemovedFromMempool"
        }
        ChainEvent::BlockConnected { hash, height, historical, bytes, contents } => {
            debug!(block_height = height, historical, bytes, "block connected");
            if historical {
                blocks.historical.inc();
                return "blockConnected";
            }
            blocks.connected.inc();
            blocks.height.set(Some(height));
            if let Some(hash) = hash {
                let last = BlockRef { hash: BlockHash(hash), height };
                context.queue_connected(BlockRange { last, blocks: 1, contents: ContentsToCount::Fees });
            }
            match contents {
                Some(contents) => {
                    blocks.connected_transactions.inc_by(contents.transactions);
                    blocks.connected_inputs.inc_by(contents.inputs);
                    blocks.connected_outputs.inc_by(contents.outputs);
                    blocks.connected_output_value.inc_by(contents.output_value);
                    blocks.connected_weight.inc_by(contents.weight);
                    blocks.connected_bytes.inc_by(contents.bytes);
                }
                None if bytes == 0 => {} // the node omitted the block data
                None => {
                    warn!(bytes, "cannot parse a block from the node; its contents are not counted");
                    metrics.exporter.events_dropped.inc_by(["block_contents"], 1);
                }
            }
            "blockConnected"
        }
        ChainEvent::BlockDisconnected { height } => {
            blocks.disconnected.inc();
            debug!(block_height = height, "block disconnected");
            "blockDisconnected"
        }
        ChainEvent::UpdatedTip => {
            blocks.tip_updates.inc();
            "updatedBlockTip"
        }
        ChainEvent::Flushed => {
            blocks.flushes.inc();
            debug!("chain state flushed");
            "chainStateFlushed"
        }
    }
}
