//! The outbox: a table in the file of the block log, which keeps rows until the block store has confirmed them. The
//! block store (`--block-store`) is a PostgreSQL database that collects the rows of many exporters.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rusqlite::Connection;
use serde_json::{Value, json};

use super::report::BlockReport;

/// Resolution of the times in a row of the USDT exporter, which measures them with tracepoints of the node, in
/// microseconds.
const TRACEPOINT_RESOLUTION_US: i64 = 1;

/// The identity of the node and of its exporter, which each row in the block store contains, to tell the rows of many
/// nodes apart.
#[derive(Clone, Debug)]
pub struct RowOrigin {
    /// Chain of the node, for example `main`.
    pub chain: String,
    /// Name of the node (`--node-name`), unique in the block store.
    pub node: String,
    /// The kind of exporter: `usdt` or `ipc`.
    pub source: &'static str,
}

/// A batch of rows to send to the block store, oldest first.
#[derive(Debug, PartialEq)]
pub struct Batch {
    /// ID that the batch's last row has in the outbox.
    pub up_to: i64,
    /// Height of the block of each row.
    pub heights: Vec<i32>,
    /// The rows, each a JSON object with a field for each column of the block store's table.
    pub rows: Vec<String>,
}

/// SQL statement that deletes the rows of the outbox with IDs up to its parameter.
pub(super) const DELETE: &str = "DELETE FROM outbox WHERE id <= ?";

/// Adds the row of a block to the outbox.
///
/// # Errors
/// SQLite cannot write the row.
pub fn push(connection: &Connection, report: &BlockReport, origin: &RowOrigin) -> rusqlite::Result<()> {
    let row = (report.block_height, store_row(report, origin).to_string());
    connection.prepare("INSERT INTO outbox (block_height, row) VALUES (?, ?)")?.execute(row).map(drop)
}

/// Deletes the oldest rows of the outbox if it has more than `keep` rows. Returns the number of rows that were deleted
/// before they were sent: the deleted rows with IDs above `under_way`. Rows with IDs up to `under_way` are not lost,
/// because the block store has them, or because they are in memory and are being sent to the block store.
///
/// # Errors
/// SQLite cannot delete the rows.
pub fn limit(connection: &Connection, keep: u32, under_way: i64) -> rusqlite::Result<u64> {
    let last: Option<i64> = connection.query_row("SELECT max(id) FROM outbox", [], |row| row.get(0))?;
    let Some(up_to) = last.map(|last| last - i64::from(keep)) else { return Ok(0) };
    let dropped = "SELECT count(*) FROM outbox WHERE id > ? AND id <= ?";
    let dropped: i64 = connection.query_row(dropped, (under_way, up_to), |row| row.get(0))?;
    connection.execute(DELETE, [up_to])?;
    Ok(dropped as u64)
}

/// A block's row in the block store, as a JSON object. Its fields are the columns of the table `propagation.blocks` in
/// `contrib/postgresql/propagation.sql`.
pub fn store_row(report: &BlockReport, origin: &RowOrigin) -> Value {
    let first = report.connected_us.map(|connected_us| report.time - seconds(connected_us));
    let after_first = |micros: Option<i64>| Some(timestamp(first? + seconds(micros?)));
    json!({
        "chain": origin.chain,
        "block_height": report.block_height,
        "block_hash": format!("\\x{}", report.block_hash),
        "node": origin.node,
        "source": origin.source,
        "resolution_us": report.resolution_us.unwrap_or(TRACEPOINT_RESOLUTION_US),
        "announced_at": first.map(timestamp),
        "header_at": after_first(report.header_us),
        "compact_at": after_first(report.compact_us),
        "fibre_at": report.fibre_us.map(|before| timestamp(report.time - seconds(before))),
        "complete_at": complete(report).map(timestamp),
        "connected_at": timestamp(report.time),
        "announced_by": report.announced_by,
        "announced_connection": report.announced_connection,
        "announcements": report.announcements,
        "arrival": report.arrival,
        "race_winner": report.race_winner,
        "race_udp_ns": report.race_udp_ns,
        "race_compact_ns": report.race_compact_ns,
        "transactions": report.transactions,
        "inputs": report.inputs,
        "requested": report.requested,
        "requested_bytes": report.requested_bytes,
        "duration_us": report.duration_us,
        "clock_synchronized": report.clock_synchronized,
        "clock_max_error_us": report.clock_max_error_us,
        "clock_estimated_error_us": report.clock_estimated_error_us,
    })
}

/// The time at which the node had the whole block, in Unix seconds; `None` if the time is unknown. If the report does
/// not contain this time, for example because no peer announced the block, the time is estimated: for a block that
/// arrived over FIBRE (a relay of blocks over UDP), as the time at which FIBRE delivered the block; for other blocks,
/// as the time at which the node began to connect the block.
fn complete(report: &BlockReport) -> Option<f64> {
    let before_connection = match (report.complete_us, report.connected_us) {
        (Some(complete), Some(connected)) => Some(connected - complete),
        _ if report.arrival == Some("fibre") => report.fibre_us,
        _ => report.duration_us,
    };
    before_connection.map(|before| report.time - seconds(before))
}

fn seconds(micros: i64) -> f64 {
    micros as f64 / 1e6
}

/// Formats a Unix time for PostgreSQL, with microseconds.
fn timestamp(unix: f64) -> String {
    let time = Duration::try_from_secs_f64(unix + 5e-7).ok().and_then(|time| UNIX_EPOCH.checked_add(time));
    humantime::format_rfc3339_micros(time.unwrap_or(SystemTime::UNIX_EPOCH)).to_string()
}
