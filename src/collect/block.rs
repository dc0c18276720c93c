//! Counting the contents of blocks, on a thread of its own.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{Sender, channel};

use bitcoin_slices::bsl::{Block, Transaction, TxOut};
use bitcoin_slices::{Visit, Visitor};
use tracing::warn;

use crate::metrics::Metrics;

/// Limit on the bytes of blocks that wait to be counted: a syncing node sends them faster.
const MAX_QUEUED_BYTES: usize = 64 << 20;
/// Memory that a queued block takes besides its own bytes, at least.
const OVERHEAD: usize = 64;

/// What a block holds, by the field's usual counting: inputs without the coinbase's, outputs with.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Contents {
    transactions: u64,
    inputs: u64,
    outputs: u64,
    output_value: u64,
    weight: u64,
    bytes: u64,
}

impl Visitor for Contents {
    fn visit_block_begin(&mut self, total_transactions: usize) {
        self.transactions = total_transactions as u64;
    }
    fn visit_transaction(&mut self, transaction: &Transaction) -> ControlFlow<()> {
        self.weight += transaction.weight();
        ControlFlow::Continue(())
    }
    fn visit_tx_ins(&mut self, total_inputs: usize) {
        self.inputs += total_inputs as u64;
    }
    fn visit_tx_outs(&mut self, total_outputs: usize) {
        self.outputs += total_outputs as u64;
    }
    fn visit_tx_out(&mut self, _: usize, output: &TxOut) -> ControlFlow<()> {
        self.output_value = self.output_value.saturating_add(output.value());
        ControlFlow::Continue(())
    }
}

impl Contents {
    /// `None` if this is no block.
    fn of(block: &[u8]) -> Option<Self> {
        let mut contents = Contents::default();
        let parsed = Block::visit(block, &mut contents).ok()?;
        if !parsed.remaining().is_empty() || contents.transactions == 0 {
            return None;
        }
        // The header and the count of transactions weigh four units a byte, as all that is no witness does.
        let count_bytes = match contents.transactions {
            0..=0xfc => 1,
            0xfd..=0xffff => 3,
            _ => 5,
        };
        contents.weight += 4 * (80 + count_bytes);
        contents.inputs = contents.inputs.saturating_sub(1); // the coinbase's
        contents.bytes = block.len() as u64;
        Some(contents)
    }
}

/// Hands blocks over to the counting thread.
#[derive(Clone)]
pub struct Counter {
    queue: Sender<Vec<u8>>,
    /// Bytes that are waiting.
    waiting: Arc<AtomicUsize>,
    metrics: Arc<Metrics>,
}

impl Counter {
    /// Starts the thread; it ends with the last handle.
    pub fn start(metrics: Arc<Metrics>) -> Self {
        let (queue, blocks) = channel::<Vec<u8>>();
        let counter = Counter { queue, waiting: Arc::default(), metrics: metrics.clone() };
        let waiting = counter.waiting.clone();
        std::thread::Builder::new()
            .name("count-blocks".into())
            .spawn(move || {
                for block in blocks {
                    add(&metrics, &block);
                    waiting.fetch_sub(block.len() + OVERHEAD, Relaxed);
                }
            })
            .expect("a thread can be started");
        counter
    }

    /// Counts the block soon. Never waits: a block too many is dropped and counted as such.
    pub fn count(&self, block: Vec<u8>) {
        let size = block.len() + OVERHEAD;
        if self.waiting.load(Relaxed) + size > MAX_QUEUED_BYTES {
            return self.metrics.exporter.events_dropped.inc_by(["block_contents"], 1);
        }
        self.waiting.fetch_add(size, Relaxed);
        let _ = self.queue.send(block); // fails when the thread has panicked, which ends the process
    }
}

fn add(metrics: &Metrics, block: &[u8]) {
    if block.is_empty() {
        return; // the node left it out
    }
    let Some(contents) = Contents::of(block) else {
        warn!(bytes = block.len(), "a block that the node sent cannot be parsed");
        return metrics.exporter.events_dropped.inc_by(["block_contents"], 1);
    };
    let blocks = &metrics.blocks;
    blocks.connected_transactions.inc_by(contents.transactions);
    blocks.connected_inputs.inc_by(contents.inputs);
    blocks.connected_outputs.inc_by(contents.outputs);
    blocks.connected_output_value.inc_by(contents.output_value);
    blocks.connected_weight.inc_by(contents.weight);
    blocks.connected_bytes.inc_by(contents.bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitcoin::consensus::serialize;
    use bitcoin::{Network, blockdata::constants::genesis_block};

    #[test]
    fn the_genesis_block_is_counted_to_the_satoshi() {
        let genesis = genesis_block(Network::Bitcoin);
        let contents = Contents::of(&serialize(&genesis)).unwrap();
        let expected = Contents {
            transactions: 1,
            inputs: 0,
            outputs: 1,
            output_value: 5_000_000_000,
            weight: 1140,
            bytes: 285,
        };
        assert_eq!(contents, expected);
        assert_eq!(genesis.weight().to_wu(), 1140);
    }

    #[test]
    fn what_is_no_block_is_none() {
        let mut bytes = serialize(&genesis_block(Network::Bitcoin));
        assert_eq!(Contents::of(&bytes[..100]), None);
        bytes.push(0);
        assert_eq!(Contents::of(&bytes), None);
        assert_eq!(Contents::of(&[0xff; 200]), None);
        assert_eq!(Contents::of(&[]), None);
    }
}
