//! The block log: a row for each connected block, in a SQLite file.
//!
//! - `report` has the report of a connected block, for the log, the block log and the page.
//! - `file` opens and migrates the file, adds rows, and deletes the oldest.
//! - `writer` writes rows on a thread of its own, from a bounded queue.
//! - [`outbox`] is the table of the rows that the block store does not have yet.
//! - [`read`] finds rows, even while the exporter writes. [`show`] prints them.

mod file;
pub mod outbox;
pub mod read;
mod report;
pub mod show;
#[cfg(test)]
mod tests;
mod writer;

pub use report::BlockReport;
pub use writer::{BlockLogThread, Forwarding, OutboxBatch, ReportQueue};

/// Default path of the block log: that of the shipped systemd units.
pub const DEFAULT_PATH: &str = "/var/lib/bitcoind-usdt-exporter/blocks.sqlite";
/// Default number of blocks to keep: about two years, 20 MB.
pub const DEFAULT_KEEP: u32 = 100_000;
