//! Reads the rows of the block log that match a filter. The exporter may write to the file at the same time.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use rusqlite::params_from_iter;
pub use rusqlite::types::Value;

use super::file;
use crate::cli;
use crate::metrics::now;

/// Filter of the subcommand `blocks`, which selects rows of the block log. A row matches if its block meets all
/// conditions that are set.
#[derive(Args, Debug, Default)]
pub struct BlockFilter {
    /// Print only blocks with at least this time (for example 100ms or 2s) from their first announcement to their
    /// connection. For blocks that no peer announced, the time to connect the block is compared
    #[arg(long, value_name = "TIME", value_parser = cli::duration)]
    pub slow: Option<Duration>,

    /// Print only blocks that were connected at most this long ago, for example 24h or 7d
    #[arg(long, value_name = "TIME", value_parser = cli::duration)]
    pub since: Option<Duration>,

    /// Print only blocks of this height
    #[arg(long, value_name = "N")]
    pub height: Option<u32>,
}

/// The result of a query of the block log or the block store: the matching rows, with all columns.
pub struct Rows {
    /// The names of the rows' columns.
    pub names: Vec<&'static str>,
    /// The rows. Rows of the block log are sorted from the oldest to the newest. Rows of the block store are sorted by
    /// block, and for each block by the time at which the node connected the block; nodes without a comparable time
    /// come last. Each row has one value for each element of `names`.
    pub rows: Vec<Vec<Value>>,
}

/// Reads the rows that match the filter, all into memory before the first row is printed. If rows were read while
/// earlier rows are printed, SQLite would hold a lock on the file until the end of the output, and the exporter could
/// not write to the file during this time.
///
/// # Errors
/// The file cannot be read.
pub fn find(path: &Path, filter: &BlockFilter) -> Result<Rows> {
    let mut names = file::columns();
    let Some(connection) = file::open_to_read(path)? else { return Ok(Rows { names, rows: Vec::new() }) };
    let conditions = [
        ("coalesce(connected_us, duration_us) >= ?", filter.slow.map(|slow| slow.as_micros() as f64)),
        ("time >= ?", filter.since.map(|since| now() - since.as_secs_f64())),
        ("block_height = ?", filter.height.map(f64::from)),
    ];
    let (conditions, values): (Vec<_>, Vec<_>) =
        conditions.into_iter().filter_map(|(condition, value)| Some((condition, value?))).unzip();
    let conditions = if conditions.is_empty() { "true".to_string() } else { conditions.join(" AND ") };
    let read = || -> rusqlite::Result<Vec<Vec<Value>>> {
        // A file that an earlier version of the exporter has written lacks the columns that were added later.
        names.retain(|name| connection.column_exists(None, "blocks", name).unwrap_or(true));
        let query = format!("SELECT {} FROM blocks WHERE {conditions} ORDER BY id", names.join(", "));
        let mut statement = connection.prepare(&query)?;
        let rows = statement.query_map(params_from_iter(values), |row| {
            (0..names.len()).map(|column| row.get(column)).collect()
        })?;
        rows.collect()
    };
    let rows = read().map_err(|error| file::explain(error, path))?;
    Ok(Rows { names, rows })
}
