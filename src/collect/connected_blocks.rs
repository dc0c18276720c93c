//! The queue of connected blocks whose contents (transactions, fees and others) are still to be counted with the
//! JSON-RPC method getblockstats.

use std::collections::VecDeque;

use crate::ipc::BlockRef;

/// Maximum number of block ranges that wait in the queue. Each tip change adds one range, and each poll counts the
/// blocks of several ranges.
const MAX_RANGES: usize = 1024;

/// Which totals of a connected block are still to be counted with getblockstats.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ContentsToCount {
    /// All totals.
    All,
    /// Only the fees. The block's other totals were already counted from the `blockConnected` notification. The fees
    /// cannot be computed from the block in the notification, because the block does not contain the values of the
    /// coins that it spends.
    Fees,
}

/// Consecutive connected blocks that are still to be counted: the block `last` and its nearest ancestors, `blocks`
/// blocks in total.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BlockRange {
    /// Hash and height of the highest block in the range that is not counted yet.
    pub last: BlockRef,
    /// Number of blocks in the range that are not counted yet.
    pub blocks: u64,
    /// The totals that are to be counted for each block in the range.
    pub contents: ContentsToCount,
}

/// The queue of connected blocks whose contents are not counted yet. Blocks of initial block download are not queued.
#[derive(Default)]
pub struct ConnectedBlocks {
    ranges: VecDeque<BlockRange>,
    in_ibd: bool,
}

impl ConnectedBlocks {
    /// Adds a range of connected blocks to the queue, unless the node is in initial block download. Returns the number
    /// of dropped blocks: if the queue is full, the blocks of its oldest range are dropped.
    pub fn push(&mut self, range: BlockRange) -> u64 {
        if self.in_ibd || range.blocks == 0 {
            return 0;
        }
        let dropped = if self.ranges.len() == MAX_RANGES { self.ranges.pop_front() } else { None };
        self.ranges.push_back(range);
        dropped.map_or(0, |range| range.blocks)
    }

    /// Records whether the node is in initial block download, and if so empties the queue.
    pub fn set_ibd(&mut self, in_ibd: bool) {
        self.in_ibd = in_ibd;
        if in_ibd {
            self.ranges.clear();
        }
    }

    /// The oldest range in the queue, whose blocks are to be counted next.
    pub fn next(&self) -> Option<BlockRange> {
        self.ranges.front().copied()
    }

    /// Removes the last block of the oldest range from the queue. If the range has more blocks, `parent`, the parent of
    /// the removed block, becomes the last block of the range. If `parent` is `None`, removes the whole range, and
    /// returns the number of its other blocks, which are then never counted.
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
        BlockRange { last: block(height), blocks, contents: ContentsToCount::All }
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
