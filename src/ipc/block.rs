//! Counts the contents of a block in the buffer in which it was received, without a copy and without an allocation.

use std::ops::ControlFlow;

use bitcoin_slices::bsl::{Block, Transaction, TxOut};
use bitcoin_slices::{Visit, Visitor};
use serde::{Deserialize, Serialize};

/// Weight of one byte of non-witness data, in weight units.
const WEIGHT_PER_BYTE: u64 = 4;

/// Totals of a block: the numbers of transactions, inputs and outputs, the value of the outputs, and the weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct BlockContents {
    /// Number of transactions, including the coinbase.
    pub transactions: u64,
    /// Number of inputs, excluding the coinbase's input.
    pub inputs: u64,
    /// Number of outputs, including the coinbase's outputs.
    pub outputs: u64,
    /// Total value of the outputs, in satoshis.
    pub output_value: u64,
    /// Weight of the block, in weight units.
    pub weight: u64,
    /// Weight of the coinbase, in weight units.
    pub coinbase_weight: u64,
    /// Weight of the 80-byte header and of the transaction count after it, in weight units.
    pub header_weight: u64,
}

impl Visitor for BlockContents {
    fn visit_block_begin(&mut self, total_transactions: usize) {
        self.transactions = total_transactions as u64;
    }
    fn visit_transaction(&mut self, transaction: &Transaction) -> ControlFlow<()> {
        let weight = transaction.weight();
        if self.weight == 0 {
            self.coinbase_weight = weight;
        }
        self.weight += weight;
        ControlFlow::Continue(())
    }
    fn visit_tx_ins(&mut self, total_inputs: usize) {
        self.inputs = self.inputs.saturating_add(total_inputs as u64); // the count field is not validated yet, so the sum could overflow
    }
    fn visit_tx_outs(&mut self, total_outputs: usize) {
        self.outputs = self.outputs.saturating_add(total_outputs as u64);
    }
    fn visit_tx_out(&mut self, _: usize, output: &TxOut) -> ControlFlow<()> {
        self.output_value = self.output_value.saturating_add(output.value());
        ControlFlow::Continue(())
    }
}

impl BlockContents {
    /// Counts the contents of a serialized block. Returns `None` if the bytes are not a block.
    pub fn count(block: &[u8]) -> Option<Self> {
        let mut contents = BlockContents::default();
        let parsed = Block::visit(block, &mut contents).ok()?;
        if !parsed.remaining().is_empty() || contents.transactions == 0 {
            return None;
        }
        let count_bytes = match contents.transactions {
            0..=0xfc => 1,
            0xfd..=0xffff => 3,
            _ => 5,
        };
        contents.header_weight = WEIGHT_PER_BYTE * (80 + count_bytes);
        contents.weight += contents.header_weight;
        contents.inputs = contents.inputs.saturating_sub(1); // the coinbase's input
        Some(contents)
    }

    /// Weight of all transactions except the coinbase, in weight units.
    pub fn payload_weight(&self) -> u64 {
        self.weight - self.header_weight - self.coinbase_weight
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitcoin::consensus::serialize;
    use bitcoin::{Network, blockdata::constants::genesis_block};

    #[test]
    fn genesis_block_is_counted_to_the_satoshi() {
        let genesis = genesis_block(Network::Bitcoin);
        let contents = BlockContents::count(&serialize(&genesis)).unwrap();
        let expected = BlockContents {
            transactions: 1,
            inputs: 0,
            outputs: 1,
            output_value: 5_000_000_000,
            weight: 1140,
            coinbase_weight: 816,
            header_weight: 324,
        };
        assert_eq!(contents, expected);
        assert_eq!((genesis.weight().to_wu(), contents.payload_weight()), (1140, 0));
    }

    #[test]
    fn payload_weight_is_that_of_transactions_without_the_coinbase() {
        let mut block = genesis_block(Network::Regtest);
        let mut transaction = block.txdata[0].clone();
        transaction.input[0].witness.push([7; 33]);
        for copies in [2, 400] {
            block.txdata.truncate(1);
            block.txdata.extend(vec![transaction.clone(); copies]);
            let contents = BlockContents::count(&serialize(&block)).unwrap();
            assert_eq!(contents.payload_weight(), copies as u64 * transaction.weight().to_wu());
            assert_eq!(contents.weight, block.weight().to_wu());
        }
    }

    #[test]
    fn bytes_that_are_no_block_are_not_counted() {
        let mut bytes = serialize(&genesis_block(Network::Bitcoin));
        assert_eq!(BlockContents::count(&bytes[..100]), None);
        bytes.push(0);
        assert_eq!(BlockContents::count(&bytes), None);
        assert_eq!(BlockContents::count(&[0xff; 200]), None);
        assert_eq!(BlockContents::count(&[]), None);
    }
}
