//! Records a block's arrival at the node: which peer announced the block, which transactions the node requested, and
//! when the block was complete.
//!
//! The BPF programs copy the first bytes of the messages about blocks. This module collects the messages about each
//! block by the block's hash, and evaluates the messages when the node has connected the block. A block that was never
//! connected is not counted.
//!
//! - `event` has the events of a block, which come from messages and tracepoints.
//! - `trace` has the timeline of one block, which is the history of the block from its first announcement, and decides
//!   by which method the block arrived.
//! - `active_chain` decides which of the connected blocks belong to the node's active chain. Only blocks of the active
//!   chain are counted.
//! - `tracker` applies the events to the timelines of a bounded number of blocks.
//! - `block_report` makes the report of a connected block, for the log, the block log (a SQLite file) and the HTML
//!   page.
//! - `families` has the metrics about blocks. In the histograms, the exemplar of each bucket is the last block that was
//!   counted in the bucket.

mod active_chain;
mod block_report;
mod event;
mod families;
#[cfg(test)]
mod tests;
mod trace;
mod tracker;

pub(super) use event::{
    Announcement, BlockEvent, BlockEventKind, ConnectedBlock, ConnectingThread, ConnectionType, RawBlockHash,
    Reconstruction,
};
pub(super) use families::{ARRIVAL_SOURCES, BlockCounts, REPORT_SOURCES, REQUIRED_ARRIVAL_SOURCES, families};
pub(super) use tracker::BlockTracker;
