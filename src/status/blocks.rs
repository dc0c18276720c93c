//! The last blocks that became the tip, for the status page. The blocks are not exported as metrics, because one label
//! value per block would create an unlimited number of series.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard};

use serde::Serialize;

use crate::text;

/// Maximum number of blocks that are stored for the status page.
const MAX_BLOCKS: usize = 10;
/// Maximum stored length of a block hash, in bytes.
const MAX_HASH_BYTES: usize = 64;

/// A block that became the tip, with the values that the status page shows.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct TipBlock {
    /// Block hash as 64 hexadecimal digits, in the byte order of `bitcoin-cli`.
    pub hash: String,
    /// Height of the block.
    pub height: i32,
    /// Time at which the exporter saw the block become the tip, in Unix seconds; `None` for the block that was the tip
    /// when the exporter connected.
    pub seen: Option<f64>,
    /// Number of transactions, including the coinbase; `None` if the node has not reported it.
    pub transactions: Option<f64>,
    /// Total size of all transactions except the coinbase, in bytes; `None` if the node has not reported it.
    pub bytes: Option<f64>,
    /// Total fees of the transactions, in satoshis; `None` if the node has not reported them.
    pub fees: Option<f64>,
}

/// The last blocks that became the tip, newest first.
#[derive(Default)]
pub struct LastBlocks(Mutex<VecDeque<TipBlock>>);

impl LastBlocks {
    fn kept(&self) -> MutexGuard<'_, VecDeque<TipBlock>> {
        self.0.lock().expect("nobody panics holding it")
    }

    /// Records a new tip. The hash is truncated to 64 bytes, because it may come from a server that is not a node.
    pub fn tip(&self, hash: String, height: i32, seen: Option<f64>) {
        let hash = text::bounded(hash, MAX_HASH_BYTES);
        let mut kept = self.kept();
        if kept.front().is_some_and(|tip| tip.hash == hash) {
            return; // the exporter reconnected, and the tip has not changed
        }
        kept.push_front(TipBlock { hash, height, seen, ..Default::default() });
        kept.truncate(MAX_BLOCKS);
    }

    /// Sets the number of transactions, the size and the fees of a recorded block.
    pub fn describe(&self, hash: &str, transactions: Option<f64>, bytes: Option<f64>, fees: Option<f64>) {
        if let Some(block) = self.kept().iter_mut().find(|block| block.hash == hash) {
            (block.transactions, block.bytes, block.fees) = (transactions, bytes, fees);
        }
    }

    /// All recorded blocks, newest first.
    pub fn all(&self) -> Vec<TipBlock> {
        self.kept().iter().cloned().collect()
    }
}
