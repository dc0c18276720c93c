//! The last blocks. They are no metrics: a label for each block would be endless.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard};

use serde::Serialize;

use crate::text;

/// How many are kept.
const MAX_BLOCKS: usize = 10;
/// Limit on a block's hash.
const MAX_HASH_BYTES: usize = 64;

/// A block that was the tip.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct TipBlock {
    /// Its hash, as users know it.
    pub hash: String,
    /// Its height.
    pub height: i32,
    /// When it became the tip, Unix seconds; unknown for the one that was the tip when the exporter connected.
    pub seen: Option<f64>,
    /// Transactions, coinbase included.
    pub transactions: Option<f64>,
    /// Size of its transactions, without the coinbase.
    pub bytes: Option<f64>,
    /// Fees of its transactions, satoshis.
    pub fees: Option<f64>,
}

/// The last tips, newest first.
#[derive(Default)]
pub struct LastBlocks(Mutex<VecDeque<TipBlock>>);

impl LastBlocks {
    fn kept(&self) -> MutexGuard<'_, VecDeque<TipBlock>> {
        self.0.lock().expect("nobody panics holding it")
    }

    /// This block is the tip. Its hash is 64 digits, or whatever a node sends in its place.
    pub fn tip(&self, hash: String, height: i32, seen: Option<f64>) {
        let hash = text::bounded(hash, MAX_HASH_BYTES);
        let mut kept = self.kept();
        if kept.front().is_some_and(|tip| tip.hash == hash) {
            return; // we connected again
        }
        kept.push_front(TipBlock { hash, height, seen, ..Default::default() });
        kept.truncate(MAX_BLOCKS);
    }

    /// Sets the contents of a block.
    pub fn describe(&self, hash: &str, transactions: Option<f64>, bytes: Option<f64>, fees: Option<f64>) {
        if let Some(block) = self.kept().iter_mut().find(|block| block.hash == hash) {
            (block.transactions, block.bytes, block.fees) = (transactions, bytes, fees);
        }
    }

    /// All of them.
    pub fn all(&self) -> Vec<TipBlock> {
        self.kept().iter().cloned().collect()
    }
}
