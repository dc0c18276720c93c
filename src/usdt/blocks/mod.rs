//! A block's way to the node: who announced it, what was asked for, when it was complete.
//!
//! The programs copy the beginnings of the messages that tell of a block; they are put together here by the block's hash,
//! when the node has connected the block. What was never connected is not counted.
//!
//! - `event` is what can happen to a block, as the messages and tracepoints tell it.
//! - `trace` is what is known of one block, and how it came.
//! - `active_chain` decides which of the blocks that the node connected count.
//! - `tracker` follows the blocks, a bounded number of them, from what happened to them.
//! - `block_report` is what is told of a block when it was connected: in the log, in the block log, on the page.
//! - `families` are the metrics, with the last block of each bucket as exemplar.

mod active_chain;
mod block_report;
mod event;
mod families;
#[cfg(test)]
mod tests;
mod trace;
mod tracker;

pub(super) use block_report::BlockReport;
pub(super) use event::{
    Announcement, BlockEvent, BlockEventKind, CompactBlock, ConnectedBlock, ConnectingThread, ConnectionType,
    RawBlockHash, Reconstruction,
};
pub(super) use families::{BlockCounts, families, is_fed};
pub(super) use tracker::BlockTracker;
