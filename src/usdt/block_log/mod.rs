//! The block log: a row for each connected block, in a SQLite file.
//!
//! - `file` is the file: its identification, its table, adding rows and deleting the oldest.
//! - `writer` writes it, on a thread that takes from a bounded queue.
//! - [`read`] finds rows, also while the exporter writes; [`show`] prints them.

mod file;
pub mod read;
pub mod show;
#[cfg(test)]
mod tests;
mod writer;

pub use writer::BlockLogThread;
pub(super) use writer::ReportQueue;

/// Its path in the shipped units.
pub const DEFAULT_PATH: &str = "/var/lib/bitcoind-usdt-exporter/blocks.sqlite";
/// About two years of blocks, 20 MB.
pub const DEFAULT_KEEP: u32 = 100_000;
