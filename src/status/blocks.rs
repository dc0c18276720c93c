//! The last blocks, for the status page. They are not metrics, because a label per block would create an unlimited number of series.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard};

use serde::Serialize;

use crate::text;

/// Number of blocks that are kept.
const MAX_BLOCKS: usize = 10;
/// Maximum length of a block hash in bytes.
const MAX_HASH_BYTES: usize = 64;

/// A block that became the tip, as the status page shows it.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct TipBlock {
    /// Block hash as 64 hexadecimal digits, in the byte order of `bitcoin-cli`.
    pub hash: String,
    /// Block height.
    pub height: i32,
    /// Unix time at which it became the tip; `None` for the block that was the tip when the exporter connected.
    pub seen: Option<f64>,
    /// Number of transactions, including the coinbase.
    pub transactions: Option<f64>,
    /// Size of the transactions in bytes, without the coinbase.
    pub bytes: Option<f64>,
    /// Fees of the transactions in satoshis.
    pub fees: Option<f64>,
}

/// The last blocks that became the tip, newest first.
#[derive(Default)]
pub struct LastBlocks(Mutex<VecDeque<TipBlock>>);

impl LastBlocks {
    fn kept(&self) -> MutexGuard<'_, VecDeque<TipBlock>> {
        self.0.lock().expect("nobody panics holding it")
    }

    /// Records a new tip. A node sends 64 hexadecimal digits as the hash; other text is truncated.
    pub fn tip(&self, hash: String, height: i32, seen: Option<f64>) {
        let hash = text::bounded(hash, MAX_HASH_BYTES);
        let mut kept = self.kept();
        if kept.front().is_some_and(|tip| tip.hash == hash) {
            return; // the exporter reconnected
        }
        kept.push_front(TipBlock { hash, height, seen, ..Default::default() });
        kept.truncate(MAX_BLOCKS);
    }

    /// Sets the number of transactions, size and fees of a block.
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
