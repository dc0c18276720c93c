//! A block's arrival at the node: which peer announced it, which transactions were requested, when it was complete.
//!
//! The programs copy the beginnings of the messages about blocks; they are combined here by the block's hash, when the node has
//! connected the block. A block that was never connected is not counted.
//!
//! - `event` are the events of a block, from messages and tracepoints.
//! - `trace` is the timeline of one block, and how it arrived.
//! - `active_chain` decides which of the blocks that the node connected count.
//! - `tracker` follows a bounded number of blocks by their events.
//! - `block_report` is the report of a connected block: in the log, in the block log, on the page.
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
