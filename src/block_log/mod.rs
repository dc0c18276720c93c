//! The block log: a row for each connected block, in a SQLite file.
//!
//! - `report` defines the report of a connected block, for the log, the block log and the status page.
//! - `file` opens and migrates the file, adds rows, and deletes the oldest rows.
//! - `writer` writes rows from a bounded queue on a dedicated thread.
//! - [`outbox`] is the table of the rows that the block store does not have yet.
//! - [`read`] reads the rows that match a filter, also while the exporter writes. [`show`] prints the rows.

mod file;
pub mod outbox;
pub mod read;
mod report;
pub mod show;
#[cfg(test)]
mod tests;
mod writer;

pub(crate) use file::DatabaseError;
pub use report::BlockReport;
pub use writer::{BlockLogThread, Forwarding, OutboxBatch, ReportQueue};

/// Default path of the block log, which the shipped systemd unit also uses.
pub const DEFAULT_PATH: &str = "/var/lib/bitcoind-usdt-exporter/blocks.sqlite";
/// Default number of blocks to keep: blocks of about two years, which take 20 MB.
pub const DEFAULT_KEEP: u32 = 100_000;
