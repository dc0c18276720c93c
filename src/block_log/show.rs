//! Prints rows of the block log or the block store, for the subcommand `blocks`. The block store is the PostgreSQL
//! database with the rows of many nodes' block logs.

use std::io::{self, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Map, json};

use super::read::{Rows, Value};

/// The output format of the subcommand `blocks`.
#[derive(Clone, Copy, Debug, PartialEq, clap::ValueEnum)]
pub enum OutputFormat {
    /// The most important columns, aligned.
    Table,
    /// One JSON object per line and block, with all columns that have a value.
    Json,
    /// All columns as comma-separated values with a header line. Unknown values are empty.
    Csv,
}

/// Prints rows in this format. `columns` are the columns that the format [`OutputFormat::Table`] prints; the other
/// formats print all columns.
///
/// # Errors
/// The output cannot be written.
pub fn print(rows: &Rows, format: OutputFormat, columns: &[Column], to: &mut impl Write) -> io::Result<()> {
    let printed = match format {
        OutputFormat::Table => table(rows, columns, to),
        OutputFormat::Json => json(rows, to),
        OutputFormat::Csv => csv(rows, to),
    };
    printed.and_then(|()| to.flush())
}

fn json(rows: &Rows, to: &mut impl Write) -> io::Result<()> {
    for row in &rows.rows {
        let fields = rows.names.iter().zip(row).filter_map(|(name, value)| {
            let value = match value {
                Value::Integer(number) => json!(number),
                Value::Real(number) => json!(number),
                Value::Text(text) => json!(text),
                Value::Null | Value::Blob(_) => return None,
            };
            Some((name.to_string(), value))
        });
        writeln!(to, "{}", serde_json::Value::Object(fields.collect::<Map<_, _>>()))?;
    }
    Ok(())
}

fn csv(rows: &Rows, to: &mut impl Write) -> io::Result<()> {
    writeln!(to, "{}", rows.names.join(","))?;
    for row in &rows.rows {
        let fields: Vec<_> = row.iter().map(|value| quoted(text(value))).collect();
        writeln!(to, "{}", fields.join(","))?;
    }
    Ok(())
}

/// Quotes a field of CSV if it contains a comma, a quote or a line break. For example, the names of nodes in the block
/// store can contain any character.
fn quoted(text: String) -> String {
    if text.contains([',', '"', '\n', '\r']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text }
}

#[cfg(test)]
#[test]
fn fields_with_commas_or_quotes_are_quoted() {
    assert_eq!(["a b", "a,b", "a\"b"].map(|text| quoted(text.into())), ["a b", "\"a,b\"", "\"a\"\"b\""]);
}

/// Formats a value of a column as text; NULL becomes an empty text.
fn text(value: &Value) -> String {
    match value {
        Value::Integer(number) => number.to_string(),
        Value::Real(number) => number.to_string(),
        Value::Text(text) => text.clone(),
        Value::Null | Value::Blob(_) => String::new(),
    }
}

/// A column of the printed table: its title, the name of the column in the queried rows, and the function that formats
/// a value of the column.
pub type Column = (&'static str, &'static str, fn(&Value) -> String);

/// The columns of the printed table for rows of the block log.
pub const BLOCK_LOG: &[Column] = &[
    ("height", "block_height", text),
    ("connected (UTC)", "time", date),
    ("arrival", "arrival", text),
    ("announced by", "announced_by", text),
    ("peer", "announced_peer", text),
    ("compact ms", "compact_us", milliseconds),
    ("requested", "requested", text),
    ("complete ms", "complete_us", milliseconds),
    ("connected ms", "connected_us", milliseconds),
    ("connect ms", "duration_us", milliseconds),
    ("hash", "block_hash", text),
];

/// The columns of the printed table for the rows of one block height in the block store. `rank` is the position of the
/// node among the nodes of the block store, in the order in which they connected the block.
pub const PROPAGATION: &[Column] = &[
    ("rank", "rank", text),
    ("node", "node", text),
    ("connected ms", "connected_offset_us", milliseconds),
    ("± ms", "connected_error_us", milliseconds),
    ("complete ms", "complete_offset_us", milliseconds),
    ("± ms", "complete_error_us", milliseconds),
    ("arrival", "arrival", text),
    ("announced by", "announced_by", text),
    ("connection", "announced_connection", text),
    ("exporter", "source", text),
    ("hash", "block_hash", text),
];

fn milliseconds(value: &Value) -> String {
    match value {
        Value::Integer(micros) => format!("{:.1}", *micros as f64 / 1000.0),
        other => text(other),
    }
}

fn date(value: &Value) -> String {
    let Value::Real(seconds) = value else { return text(value) };
    let time: Option<SystemTime> =
        Duration::try_from_secs_f64(*seconds).ok().and_then(|time| UNIX_EPOCH.checked_add(time));
    time.map_or_else(String::new, |time| humantime::format_rfc3339_seconds(time).to_string())
}

fn table(rows: &Rows, columns: &[Column], to: &mut impl Write) -> io::Result<()> {
    let place = |column: &str| rows.names.iter().position(|name| *name == column);
    let columns = columns.iter().filter_map(|(title, column, show)| Some((title, place(column)?, show)));
    let columns: Vec<Vec<String>> = columns
        .map(|(title, place, show)| {
            let cells = rows.rows.iter().map(|row| show(&row[place]));
            let cells = cells.map(|cell| if cell.is_empty() { "-".into() } else { cell });
            std::iter::once(title.to_string()).chain(cells).collect()
        })
        .collect();
    let width = |cells: &Vec<String>| cells.iter().map(|cell| cell.chars().count()).max().unwrap_or_default();
    let widths: Vec<_> = columns.iter().map(width).collect();
    for line in 0..=rows.rows.len() {
        let cells = columns.iter().zip(&widths).map(|(cells, width)| format!("{:<width$}", cells[line]));
        writeln!(to, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
    }
    Ok(())
}
