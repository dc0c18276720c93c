//! Reads the rows of the block log that match a filter, also while the exporter writes.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use rusqlite::params_from_iter;
pub use rusqlite::types::Value;

use super::file;
use crate::metrics::now;

/// Filter for blocks of the block log. A block matches if it meets all conditions that are set.
#[derive(Default)]
pub struct BlockFilter {
    /// Minimum time from the first announcement of the block to its connection. For a block that no peer announced, the
    /// minimum duration of its connection.
    pub slow: Option<Duration>,
    /// Maximum time since the block was connected.
    pub since: Option<Duration>,
    /// Height of the block.
    pub height: Option<u32>,
}

/// Rows that were read from the block log or the block store, with all columns.
pub struct Rows {
    /// The names of the columns.
    pub names: Vec<&'static str>,
    /// The rows: those of the block log oldest first, those of the block store by block and time of connection. Each
    /// row has one value for each element of `names`.
    pub rows: Vec<Vec<Value>>,
}

/// Reads the blocks that match the filter. Reads all rows into memory, because a lock on the file that is held while
/// the output is written would block the exporter.
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
        // A file of an earlier version lacks the columns that were added later.
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
