//! Counts the transactions, inputs and outputs of a serialized block. The block is parsed in the buffer of the received
//! message, without a copy and without an allocation.

use std::ops::ControlFlow;

use bitcoin_slices::bsl::{Block, Transaction, TxOut};
use bitcoin_slices::{Visit, Visitor};
use serde::{Deserialize, Serialize};

/// Totals of the transactions of a block, with the definitions of Bitcoin Core's `getblockstats`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct BlockContents {
    /// Number of transactions, including the coinbase.
    pub transactions: u64,
    /// Number of inputs, excluding the coinbase's input.
    pub inputs: u64,
    /// Number of outputs, including the coinbase's outputs.
    pub outputs: u64,
    /// Total value of the outputs, excluding the coinbase's outputs, in satoshis.
    pub output_value: u64,
    /// Weight of the transactions, excluding the coinbase, in weight units.
    pub weight: u64,
    /// Serialized size of the transactions, excluding the coinbase, in bytes.
    pub bytes: u64,
}

/// Visitor that counts the transactions, inputs and outputs of a block while the block is parsed.
#[derive(Default)]
struct BlockVisitor {
    contents: BlockContents,
    /// Number of the block's transactions that have been parsed completely.
    parsed: u64,
}

impl Visitor for BlockVisitor {
    fn visit_block_begin(&mut self, total_transactions: usize) {
        self.contents.transactions = total_transactions as u64;
    }
    fn visit_transaction(&mut self, transaction: &Transaction) -> ControlFlow<()> {
        if self.parsed > 0 {
            self.contents.weight += transaction.weight();
            self.contents.bytes += transaction.as_ref().len() as u64;
        }
        self.parsed += 1;
        ControlFlow::Continue(())
    }
    fn visit_tx_ins(&mut self, total_inputs: usize) {
        // A serialized transaction contains the number of its inputs before the inputs. The parser calls this method
        // before it has checked that the block contains this number of inputs, so the sum over the transactions could
        // overflow.
        self.contents.inputs = self.contents.inputs.saturating_add(total_inputs as u64);
    }
    fn visit_tx_outs(&mut self, total_outputs: usize) {
        self.contents.outputs = self.contents.outputs.saturating_add(total_outputs as u64);
    }
    fn visit_tx_out(&mut self, _: usize, output: &TxOut) -> ControlFlow<()> {
        // The outputs of the coinbase are visited while `parsed` is 0, and are not counted.
        if self.parsed > 0 {
            self.contents.output_value = self.contents.output_value.saturating_add(output.value());
        }
        ControlFlow::Continue(())
    }
}

impl BlockContents {
    /// Counts the contents of a serialized block. Returns `None` if the bytes are not a block.
    pub fn count(block: &[u8]) -> Option<Self> {
        let mut visitor = BlockVisitor::default();
        let parsed = Block::visit(block, &mut visitor).ok()?;
        let mut contents = visitor.contents;
        if !parsed.remaining().is_empty() || contents.transactions == 0 {
            return None;
        }
        contents.inputs = contents.inputs.saturating_sub(1); // the coinbase's input
        Some(contents)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitcoin::consensus::serialize;
    use bitcoin::{Network, blockdata::constants::genesis_block};

    #[test]
    fn coinbase_counts_only_as_a_transaction_with_outputs() {
        let genesis = genesis_block(Network::Bitcoin);
        let contents = BlockContents::count(&serialize(&genesis)).unwrap();
        let expected = BlockContents { transactions: 1, outputs: 1, ..BlockContents::default() };
        assert_eq!(contents, expected);
    }

    #[test]
    fn transactions_are_counted_to_the_satoshi() {
        let mut block = genesis_block(Network::Regtest);
        let mut transaction = block.txdata[0].clone();
        transaction.input[0].witness.push([7; 33]);
        for copies in [2, 400] {
            block.txdata.truncate(1);
            block.txdata.extend(vec![transaction.clone(); copies]);
            let contents = BlockContents::count(&serialize(&block)).unwrap();
            let copies = copies as u64;
            let expected = BlockContents {
                transactions: copies + 1,
                inputs: copies,
                outputs: copies + 1,
                output_value: copies * 5_000_000_000,
                weight: copies * transaction.weight().to_wu(),
                bytes: copies * transaction.total_size() as u64,
            };
            assert_eq!(contents, expected);
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
