//! A block's way to the node: who announced it, what was asked for, when it was complete.
//!
//! The programs copy the beginnings of the messages that tell of a block; they are put together here by the block's hash,
//! when the node has connected the block. What was never connected is not counted.
//!
//! - `event` is what can happen to a block, as the messages and tracepoints tell it.
//! - `timeline` is what is known of one block, and how it came.
//! - `correlation` follows the blocks, a bounded number of them, from what happened to them.
//! - `families` are the metrics.

mod correlation;
mod event;
mod families;
#[cfg(test)]
mod tests;
mod timeline;

pub(super) use correlation::Blocks;
pub(super) use event::{Announcement, Compact, Connected, Event, Hash, What};
pub(super) use families::{families, fed_by, rows};
