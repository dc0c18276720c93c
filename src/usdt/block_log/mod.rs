//! The block log: a row for each connected block, in a SQLite file.
//!
//! - `file` opens and migrates the file, adds rows, and deletes the oldest.
//! - `writer` writes rows on a thread of its own, from a bounded queue.
//! - [`read`] finds rows, even while the exporter writes. [`show`] prints them.

mod file;
pub mod read;
pub mod show;
#[cfg(test)]
mod tests;
mod writer;

pub use writer::BlockLogThread;
pub(super) use writer::ReportQueue;

/// Default path of the block log: that of the shipped systemd units.
pub const DEFAULT_PATH: &str = "/var/lib/bitcoind-usdt-exporter/blocks.sqlite";
/// Default number of blocks to keep: about two years, 20 MB.
pub const DEFAULT_KEEP: u32 = 100_000;
