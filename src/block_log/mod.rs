//! The block log (`--block-log`): a SQLite file to which the exporter adds a row for each block that the node connects
//! to its active chain. The IPC exporter, which sees only changes of the tip, adds a row for each new tip.
//!
//! - `report` defines the report of a connected block, which is the content of a row. The USDT exporter also logs the
//!   report and shows it on its status page.
//! - `file` opens the SQLite file, migrates it to the current schema, adds rows, and deletes the oldest rows.
//! - `writer` writes rows from a bounded queue on a dedicated thread.
//! - [`outbox`] writes to the outbox, a table of the same file that keeps rows until the block store has them. The
//!   block store (`--block-store`) is a PostgreSQL database that collects the rows of many exporters.
//! - [`read`] reads the rows that match a filter, also while the exporter writes. [`show`] prints the rows for the
//!   subcommand `blocks`.

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

/// Default path of the block log's file, which the shipped systemd unit also uses.
pub const DEFAULT_PATH: &str = "/var/lib/bitcoind-usdt-exporter/blocks.sqlite";
/// Default number of blocks whose rows the block log keeps: the blocks of about two years, whose rows take 20 MB.
pub const DEFAULT_KEEP: u32 = 100_000;
