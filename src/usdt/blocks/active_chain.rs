//! Decides which of the blocks that the node connects belong to the node's active chain.
//!
//! `validation:block_connected` also fires in two cases for blocks that the node does not add to its active chain. A
//! check of the database (`verifychain`, `-checklevel=4`) connects the last blocks once more, in a temporary cache.
//! After a UTXO snapshot was loaded, the node connects the blocks below the snapshot in a second chainstate to validate
//! them. No argument of the tracepoint shows whether the block is added to the active chain. The following properties
//! of a connected block show whether it is added:
//!
//! - The thread. A check of the database at startup runs on the main thread, which connects no blocks of the active
//!   chain. The threads that handle P2P messages and import files never check the database.
//! - The height and the hash. A block above the tip is new. A block whose hash differs from the known hash at its
//!   height is part of a reorg. A block with the known hash is part of a check of the database, unless a thread that
//!   never checks the database has connected it.
//!
//! If the exporter was started after the active chain's block at a height was connected, the exporter has no hash for
//! this height. A block that is connected at this height is undecided until later blocks show whether it belongs to the
//! active chain. During a check of the database, the node holds a lock and connects no other block. The blocks of a
//! check are therefore not mixed with blocks of the active chain.

use std::collections::VecDeque;

use super::event::{ConnectingThread, RawBlockHash};

/// Maximum number of last blocks of the active chain whose hashes are kept. A reorg that replaces only blocks whose
/// hash is kept is recognized at its first block.
const MAX_REMEMBERED: usize = 1024;
/// Maximum number of undecided blocks, which are blocks that may or may not belong to the active chain. A longer
/// sequence of connected blocks below the lowest known height is assumed to be no reorg, but for example a check of the
/// database.
const MAX_UNDECIDED: usize = 144;

/// The last blocks of the node's active chain, and the undecided blocks, which may belong to the active chain.
pub struct ActiveChain<T> {
    /// Height of the last block in `hashes`.
    tip: i32,
    /// Hashes of the last blocks, at consecutive heights without a gap; empty before the first block.
    hashes: VecDeque<RawBlockHash>,
    /// Undecided blocks below the heights of `hashes`, at consecutive heights up to `next` - 1.
    undecided: VecDeque<(RawBlockHash, T)>,
    /// Height that the next block must have to continue the sequence of undecided blocks.
    next: i32,
    /// Whether the sequence of undecided blocks exceeded [`MAX_UNDECIDED`], in which case `undecided` is empty.
    is_long: bool,
}

impl<T> Default for ActiveChain<T> {
    fn default() -> Self {
        ActiveChain { tip: 0, hashes: VecDeque::new(), undecided: VecDeque::new(), next: 0, is_long: false }
    }
}

impl<T> ActiveChain<T> {
    /// Adds a block that the node connected, in its active chain or elsewhere. Returns the blocks that are now certain
    /// to belong to the active chain, in the order of their heights: no block, this block, or the undecided blocks and
    /// this block.
    pub fn connected(
        &mut self,
        height: i32,
        hash: RawBlockHash,
        thread: ConnectingThread,
        block: T,
    ) -> Vec<T> {
        if thread == ConnectingThread::Main {
            return Vec::new();
        }
        if self.hashes.is_empty() || height > self.tip {
            // If the height is not one above the tip, the known blocks belonged to another chainstate, or a UTXO
            // snapshot was loaded.
            if height != self.tip.wrapping_add(1) {
                self.hashes.clear();
            }
            self.forget_undecided();
            return self.extend(height, hash, block);
        }
        let depth = (self.tip - height) as usize;
        let Some(kept) = self.hashes.len().checked_sub(depth + 1) else {
            self.wait(height, hash, block);
            return Vec::new();
        };
        if self.hashes[kept] == hash && thread == ConnectingThread::Other {
            self.forget_undecided();
            return Vec::new();
        }
        // The block is part of a reorg. If the reorg began below the lowest known height, the undecided blocks are the
        // first blocks of the new branch.
        let mut blocks = Vec::new();
        if self.next == height && (self.is_long || !self.undecided.is_empty()) {
            self.hashes.clear();
            for (hash, block) in self.undecided.drain(..) {
                self.hashes.push_back(hash);
                blocks.push(block);
            }
        } else {
            self.hashes.truncate(kept);
        }
        self.forget_undecided();
        blocks.extend(self.extend(height, hash, block));
        blocks
    }

    /// Appends a block to the active chain, and returns it.
    fn extend(&mut self, height: i32, hash: RawBlockHash, block: T) -> Vec<T> {
        if self.hashes.len() == MAX_REMEMBERED {
            self.hashes.pop_front();
        }
        self.hashes.push_back(hash);
        self.tip = height;
        vec![block]
    }

    /// Appends a block to the undecided blocks.
    fn wait(&mut self, height: i32, hash: RawBlockHash, block: T) {
        if height != self.next {
            self.forget_undecided();
        }
        self.next = height.wrapping_add(1);
        if self.undecided.len() == MAX_UNDECIDED {
            self.is_long = true;
            self.undecided.clear();
        }
        if !self.is_long {
            self.undecided.push_back((hash, block));
        }
    }

    fn forget_undecided(&mut self) {
        self.undecided.clear();
        self.is_long = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An [`ActiveChain`] whose blocks are named by their height and a letter for the branch, for example `5a`.
    #[derive(Default)]
    struct Chain(ActiveChain<String>);

    impl Chain {
        /// Connects the blocks of a branch at these heights. Returns the names of the blocks that belong to the active
        /// chain.
        fn connect(
            &mut self,
            thread: ConnectingThread,
            branch: char,
            heights: impl IntoIterator<Item = i32>,
        ) -> String {
            let mut counted = Vec::new();
            for height in heights {
                let mut hash = [branch as u8; 32];
                hash[..4].copy_from_slice(&height.to_le_bytes());
                counted.extend(self.0.connected(height, hash, thread, format!("{height}{branch}")));
            }
            counted.join(" ")
        }
    }

    use ConnectingThread::{Main, Other, Validation};

    #[test]
    fn check_of_the_database_connects_nothing() {
        let mut chain = Chain::default();
        assert_eq!(chain.connect(Main, 'a', 1..=3), "", "at startup");
        assert_eq!(chain.connect(Other, 'a', 4..=6), "4a 5a 6a");
        assert_eq!(chain.connect(Other, 'a', 5..=6), "");
        assert_eq!(chain.connect(Other, 'a', 1..=6), "", "of blocks that are older than the exporter");
        assert_eq!(chain.connect(Other, 'a', [7]), "7a");
        // The check of the database is interrupted after block 2.
        assert_eq!(chain.connect(Other, 'a', 1..=2), "");
        assert_eq!(chain.connect(Other, 'a', [8]), "8a");
        assert_eq!(chain.connect(Other, 'a', 1..=8), "");
    }

    #[test]
    fn reorg_is_counted_on_every_thread() {
        for thread in [Other, Validation] {
            let mut chain = Chain::default();
            chain.connect(thread, 'a', 1..=6);
            assert_eq!(chain.connect(thread, 'b', 5..=7), "5b 6b 7b");
            assert_eq!(chain.connect(thread, 'a', 5..=8), "5a 6a 7a 8a", "and back");
            // After a reorg to a shorter branch, the hashes above the tip of that branch are no longer known. A reorg
            // back to the longer branch is still counted.
            assert_eq!(chain.connect(thread, 'c', [5]), "5c");
            assert_eq!(chain.connect(thread, 'a', 5..=8), "5a 6a 7a 8a");
        }
    }

    #[test]
    fn block_connected_again_for_a_peer_is_counted() {
        let mut chain = Chain::default();
        chain.connect(Validation, 'a', 1..=6);
        // The node connects blocks 5a and 6a again, after a reorg to a branch whose first block was invalid.
        assert_eq!(chain.connect(Validation, 'a', 5..=6), "5a 6a");
        assert_eq!(chain.connect(Other, 'a', 5..=6), "");
    }

    #[test]
    fn reorg_below_the_first_known_block_is_counted_later() {
        let mut chain = Chain::default();
        chain.connect(Validation, 'a', [100]);
        assert_eq!(chain.connect(Validation, 'b', 98..=99), "");
        assert_eq!(chain.connect(Validation, 'b', 100..=101), "98b 99b 100b 101b");
        assert_eq!(chain.connect(Other, 'b', 98..=101), "", "all of them are known now");
        assert_eq!(chain.connect(Other, 'a', 99..=102), "99a 100a 101a 102a");
    }

    #[test]
    fn background_validation_connects_nothing() {
        let mut chain = Chain::default();
        chain.connect(Validation, 'a', 1..=10);
        assert_eq!(chain.connect(Validation, 'a', [301]), "301a", "the first above a snapshot");
        assert_eq!(chain.connect(Validation, 'a', 11..=200), "");
        assert_eq!(chain.connect(Validation, 'a', [302]), "302a");
        assert_eq!(chain.connect(Validation, 'a', 201..=300), "");
        assert_eq!(chain.connect(Validation, 'b', 302..=303), "302b 303b");
        // The exporter was started during the background validation, and recognizes the validation at the next block of
        // the active chain.
        let mut chain = Chain::default();
        assert_eq!(chain.connect(Validation, 'a', 20..=21), "20a 21a");
        assert_eq!(chain.connect(Validation, 'a', [301]), "301a");
        assert_eq!(chain.connect(Validation, 'a', 22..=299), "");
    }

    #[test]
    fn memory_is_bounded() {
        let mut chain = Chain::default();
        chain.connect(Other, 'a', 1..=5000);
        assert_eq!(chain.0.hashes.len(), MAX_REMEMBERED);
        assert_eq!(chain.connect(Other, 'a', 1..=5000), "");
        assert!(chain.0.undecided.is_empty());
        chain.connect(Other, 'b', 1..=3000);
        assert!(chain.0.undecided.is_empty() && chain.0.is_long);
        // The sequence exceeded the limit on undecided blocks, and therefore only blocks at heights with a known hash
        // are counted.
        let from = 5001 - MAX_REMEMBERED as i32;
        assert_eq!(chain.connect(Other, 'b', 3001..from), "");
        assert_eq!(chain.connect(Other, 'b', [from]), format!("{from}b"));
        assert_eq!(chain.0.hashes.len(), 1);
    }
}
