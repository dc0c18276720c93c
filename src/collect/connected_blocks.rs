//! The connected blocks whose contents are still to be counted with getblockstats.

use std::collections::VecDeque;

use crate::ipc::BlockRef;

/// Maximum number of ranges. Each tip change adds one, and a poll counts the blocks of several.
const MAX_RANGES: usize = 1024;

/// The totals of a connected block that still have to be added to the counters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum CountedContents {
    /// All totals.
    All,
    /// Only the fees. The other totals were counted from a notification with the block, which does not contain the
    /// values of the spent coins.
    Fees,
}

/// Connected blocks in a row, of which the last one is known. The others are its ancestors.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BlockRange {
    /// The last block that is not counted yet.
    pub last: BlockRef,
    /// Number of blocks.
    pub blocks: u64,
    /// What is to be counted.
    pub contents: CountedContents,
}

/// The queue of connected blocks whose contents are not counted yet. Blocks of initial block download are not queued.
#[derive(Default)]
pub struct ConnectedBlocks {
    ranges: VecDeque<BlockRange>,
    in_ibd: bool,
}

impl ConnectedBlocks {
    /// Adds connected blocks, unless the node is in initial block download. Returns the number of blocks for which there is no room.
    pub fn push(&mut self, range: BlockRange) -> u64 {
        if self.in_ibd || range.blocks == 0 {
            return 0;
        }
        let dropped = if self.ranges.len() == MAX_RANGES { self.ranges.pop_front() } else { None };
        self.ranges.push_back(range);
        dropped.map_or(0, |range| range.blocks)
    }

    /// Records whether the node is in initial block download. If it is, its blocks are removed.
    pub fn set_ibd(&mut self, in_ibd: bool) {
        self.in_ibd = in_ibd;
        if in_ibd {
            self.ranges.clear();
        }
    }

    /// The blocks to be counted next.
    pub fn next(&self) -> Option<BlockRange> {
        self.ranges.front().copied()
    }

    /// Removes the last block of the next range. `parent` is the block before it. Without a parent removes the whole range, and returns the
    /// number of the other blocks, which are not counted.
    pub fn done(&mut self, parent: Option<BlockRef>) -> u64 {
        match (self.ranges.front_mut(), parent) {
            (Some(range), Some(parent)) if range.blocks > 1 => {
                *range = BlockRange { last: parent, blocks: range.blocks - 1, ..*range };
                0
            }
            _ => self.ranges.pop_front().map_or(0, |range| range.blocks.saturating_sub(1)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ipc::BlockHash;

    fn block(height: i32) -> BlockRef {
        BlockRef { hash: BlockHash([height as u8; 32]), height }
    }

    fn range(height: i32, blocks: u64) -> BlockRange {
        BlockRange { last: block(height), blocks, contents: CountedContents::All }
    }

    #[test]
    fn each_block_of_a_range_is_counted_once() {
        let mut queue = ConnectedBlocks::default();
        assert_eq!(queue.push(range(7, 0)), 0);
        assert_eq!(queue.next(), None, "a rollback connects nothing");
        queue.push(range(9, 2));
        queue.push(range(10, 1));
        assert_eq!(queue.done(Some(block(8))), 0);
        assert_eq!(queue.next(), Some(range(8, 1)));
        assert_eq!(queue.done(None), 0);
        assert_eq!(queue.next(), Some(range(10, 1)));
        assert_eq!(queue.done(None), 0);
        assert_eq!((queue.next(), queue.done(None)), (None, 0));
        queue.push(range(20, 5));
        assert_eq!((queue.done(None), queue.next()), (4, None), "the parent is not known");
    }

    #[test]
    fn blocks_of_initial_download_are_not_queued() {
        let mut queue = ConnectedBlocks::default();
        queue.push(range(1, 1));
        queue.set_ibd(true);
        queue.push(range(2, 1));
        assert_eq!(queue.next(), None);
        queue.set_ibd(false);
        queue.push(range(3, 1));
        assert_eq!(queue.next(), Some(range(3, 1)));
    }

    #[test]
    fn oldest_range_gives_way_and_its_blocks_are_reported() {
        let mut queue = ConnectedBlocks::default();
        let dropped: u64 = (0..MAX_RANGES as i32 + 2).map(|height| queue.push(range(height, 3))).sum();
        assert_eq!((dropped, queue.next()), (6, Some(range(2, 3))));
    }
}
