//! Tests of the block log: filters, output formats, and files that are locked, are corrupt, have another schema version
//! or belong to another program.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use rusqlite::Connection;
use rusqlite::types::Value;
use tempfile::TempDir;

use super::BlockLogThread;
use super::file::{self, BlockLogFile};
use super::outbox::{self, RowOrigin};
use super::read::{self, BlockFilter};
use super::report::BlockReport;
use super::show::{self, OutputFormat};
use super::writer::{Forwarding, LogEntry};
use crate::block_store::StoreState;
use crate::metrics::now;

fn report(block_height: i64) -> BlockReport {
    BlockReport {
        time: now(),
        block_height,
        block_hash: "00".repeat(32),
        arrival: Some("compact_complete"),
        announced_by: Some("cmpctblock"),
        announced_peer: Some(3),
        connected_us: Some(block_height * 1000),
        ..BlockReport::default()
    }
}

fn heights(path: &Path, filter: &BlockFilter) -> Vec<i64> {
    let rows = read::find(path, filter).unwrap();
    let column = rows.names.iter().position(|name| *name == "block_height").unwrap();
    let height = |row: Vec<Value>| match row[column] {
        Value::Integer(height) => height,
        ref other => panic!("{other:?}"),
    };
    rows.rows.into_iter().map(height).collect()
}

#[test]
fn oldest_rows_are_deleted_and_the_file_stays_small() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("blocks");
    let mut file = BlockLogFile::open(&path, 100).unwrap();
    file.add_reports(&(0..1000).map(report).collect::<Vec<_>>()).unwrap();
    assert_eq!(heights(&path, &BlockFilter::default()), (900..1000).collect::<Vec<_>>());
    let size = path.metadata().unwrap().len();
    for height in 1000..1200 {
        file.add_reports([&report(height)]).unwrap();
    }
    assert_eq!(heights(&path, &BlockFilter::default()), (1100..1200).collect::<Vec<_>>());
    assert_eq!(path.metadata().unwrap().len(), size);
    drop(file);
    // Open the file again with a limit of 10 blocks instead of 100.
    BlockLogFile::open(&path, 10).unwrap().add_reports([&report(1200)]).unwrap();
    assert_eq!(heights(&path, &BlockFilter::default()), (1191..=1200).collect::<Vec<_>>());
}

#[test]
fn one_exporter_at_a_time_writes_a_file() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("blocks");
    let mut file = BlockLogFile::open(&path, 10).unwrap();
    let error = BlockLogFile::open_within(Duration::ZERO, &path, 10).err().unwrap().to_string();
    assert!(error.contains("is written by another exporter: choose another file"), "{error}");
    file.add_reports([&report(1)]).unwrap();
    assert_eq!(heights(&path, &BlockFilter::default()), [1], "readers are not kept out");
    drop(file);
    BlockLogFile::open_within(Duration::ZERO, &path, 10).unwrap().add_reports([&report(2)]).unwrap();
    assert_eq!(heights(&path, &BlockFilter::default()), [1, 2]);
}

#[test]
fn blocks_of_a_stopped_exporter_are_all_kept() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("blocks");
    let (recorder, queue) = BlockLogThread::start(&path, 10_000, None).unwrap();
    let reader = Connection::open(&path).unwrap();
    reader.execute_batch("BEGIN EXCLUSIVE").unwrap();
    // While the file is locked, 8000 blocks are queued: about as many as the ring buffer in the kernel keeps for a
    // stopped exporter.
    (0..8000).for_each(|height| queue.push(report(height)));
    reader.execute_batch("COMMIT").unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    let rows = || heights(&path, &BlockFilter::default()).len();
    while rows() < 8000 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(rows(), 8000);
    recorder.finish();
}

#[test]
fn rows_are_found_by_filter() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("blocks");
    let old = BlockReport { time: now() - 7200.0, ..report(1) };
    let unannounced = BlockReport { connected_us: None, duration_us: Some(150_000), ..report(2) };
    BlockLogFile::open(&path, 100)
        .unwrap()
        .add_reports(&[old, unannounced, report(100), report(99)])
        .unwrap();
    let slow = Some(Duration::from_millis(100));
    assert_eq!(heights(&path, &BlockFilter { slow, ..Default::default() }), [2, 100]);
    let since = Some(Duration::from_secs(3600));
    assert_eq!(heights(&path, &BlockFilter { since, ..Default::default() }), [2, 100, 99]);
    assert_eq!(heights(&path, &BlockFilter { slow, since, height: Some(100) }), [100]);
    assert!(heights(&path, &BlockFilter { height: Some(7), ..Default::default() }).is_empty());
}

#[test]
fn each_format_has_what_is_known() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("blocks");
    BlockLogFile::open(&path, 100).unwrap().add_reports(&[BlockReport { time: 1e9, ..report(7) }]).unwrap();
    let rows = read::find(&path, &BlockFilter::default()).unwrap();
    let printed = |format| {
        let mut text = Vec::new();
        show::print(&rows, format, show::BLOCK_LOG, &mut text).unwrap();
        String::from_utf8(text).unwrap()
    };
    let table = printed(OutputFormat::Table);
    let line = table.lines().nth(1).unwrap();
    assert!(
        line.starts_with("7       2001-09-09T01:46:40Z  compact_complete  cmpctblock    3     -  "),
        "{table}"
    );
    assert!(line.contains("  7.0  "), "{table}");
    let object: serde_json::Value = serde_json::from_str(&printed(OutputFormat::Json)).unwrap();
    assert_eq!((object["connected_us"].as_i64(), object.get("compact_us")), (Some(7000), None));
    let csv = printed(OutputFormat::Csv);
    let (names, values) = csv.trim_end().split_once('\n').unwrap();
    assert_eq!(names.split(',').count(), values.split(',').count());
    assert!(names.starts_with("time,block_height,") && values.starts_with("1000000000,7,"), "{csv}");
}

#[test]
fn foreign_or_newer_file_is_left_alone() {
    let dir = TempDir::new().unwrap();
    let refusal = |path: &Path| {
        let before = std::fs::read(path).unwrap();
        let written = BlockLogFile::open(path, 10).err().unwrap().to_string();
        assert_eq!(read::find(path, &BlockFilter::default()).err().unwrap().to_string(), written);
        assert_eq!(std::fs::read(path).unwrap(), before);
        written
    };
    let foreign = dir.path().join("wallet");
    Connection::open(&foreign).unwrap().execute_batch("CREATE TABLE main (key, value)").unwrap();
    assert!(refusal(&foreign).ends_with("wallet is a database of another program; choose another file"));
    let text = dir.path().join("notes");
    std::fs::write(&text, "not a database, but long enough to be looked at. ".repeat(100)).unwrap();
    assert!(refusal(&text).contains("notes: file is not a database; if it was a block log"));
    let newer = dir.path().join("newer");
    BlockLogFile::open(&newer, 10).unwrap();
    Connection::open(&newer).unwrap().pragma_update(None, "user_version", 4).unwrap();
    assert!(
        refusal(&newer).contains("newer is a block log of version 4, but this exporter supports version 3")
    );
}

#[test]
fn reader_rolls_back_a_killed_exporters_write() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("blocks");
    let mut file = BlockLogFile::open(&path, 10).unwrap();
    file.add_reports(&[report(1)]).unwrap();
    // Copy the file and its journal during a transaction, after SQLite has written a part of the transaction to the
    // file. A crash of the exporter at this moment would leave two such files.
    let connection = Connection::open(&path).unwrap();
    connection.execute_batch("PRAGMA cache_size = 1; PRAGMA cache_spill = 1; BEGIN IMMEDIATE;").unwrap();
    let rows = "WITH RECURSIVE numbers (value) AS (SELECT 1 UNION ALL SELECT value + 1 FROM numbers WHERE value < 500)
                INSERT INTO blocks (time, block_height, block_hash, transactions, inputs, sigops, duration_us, arrival)
                SELECT 1, value, hex(zeroblob(32)), 1, 1, 1, 1, 'other' FROM numbers";
    connection.execute_batch(rows).unwrap();
    let left = dir.path().join("left");
    std::fs::copy(&path, &left).unwrap();
    std::fs::copy(dir.path().join("blocks-journal"), dir.path().join("left-journal")).unwrap();
    assert_eq!(read::find(&left, &BlockFilter::default()).unwrap().rows.len(), 1);
}

#[test]
fn missing_block_log_is_reported() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("blocks");
    let error = read::find(&path, &BlockFilter::default()).err().unwrap().to_string();
    assert!(error.contains("there is no block log at"), "{error}");
    let error = BlockLogFile::open(&dir.path().join("no/folder"), 1).err().unwrap().to_string();
    assert!(error.contains("no/folder: unable to open database file"), "{error}");
}

#[test]
fn irregular_block_log_file_is_rejected() {
    let dir = TempDir::new().unwrap();
    let fifo = dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    for path in [fifo.as_path(), dir.path()] {
        let Err(error) = BlockLogThread::start(path, 10, None) else { panic!("{}", path.display()) };
        assert!(format!("{error:#}").contains("not a regular file; choose another path"), "{error:#}");
        let error = read::find(path, &BlockFilter::default()).err().unwrap().to_string();
        assert!(error.contains("not a regular file"), "{error}");
    }
}

#[test]
fn locked_file_is_reported_with_advice() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("blocks");
    BlockLogFile::open(&path, 10).unwrap().add_reports([&report(1)]).unwrap();
    let other = Connection::open(&path).unwrap();
    other.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let error = read::find(&path, &BlockFilter::default()).err().unwrap().to_string();
    assert!(error.contains("locked") && error.contains("fuser"), "{error}");
    other.execute_batch("COMMIT").unwrap();
    assert_eq!(heights(&path, &BlockFilter::default()), [1]);
}

#[test]
fn columns_of_a_new_file_are_the_fields_of_a_report() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("blocks");
    BlockLogFile::open(&path, 10).unwrap();
    let connection = Connection::open(&path).unwrap();
    let mut statement = connection.prepare("SELECT name FROM pragma_table_info('blocks')").unwrap();
    let columns: Vec<String> =
        statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
    // The order of the columns may differ, because an upgrade of a file adds new columns at the end.
    let sorted =
        |columns: &[&str]| std::collections::BTreeSet::from_iter(columns.iter().map(|it| it.to_string()));
    let columns: Vec<_> = columns.iter().map(String::as_str).collect();
    assert_eq!(columns[0], "id");
    assert_eq!(sorted(&columns[1..]), sorted(&file::columns()));
}

#[test]
fn older_file_keeps_its_rows_and_gets_the_new_column() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("blocks");
    BlockLogFile::open(&path, 10).unwrap().add_reports([&report(1)]).unwrap();
    let connection = Connection::open(&path).unwrap();
    let newer =
        [(3, "CREATE TABLE blocks (id INTEGER);"), (4, "ALTER TABLE blocks ADD COLUMN weight INTEGER;")];
    file::upgrade(&connection, 3, &newer).unwrap();
    let row = |column: &str| {
        let query = format!("SELECT {column} FROM blocks");
        connection.query_row(&query, [], |row| row.get::<_, Option<i64>>(0)).unwrap()
    };
    assert_eq!((row("block_height"), row("weight")), (Some(1), None));
    let version: i32 = connection.query_row("PRAGMA user_version", [], |row| row.get(0)).unwrap();
    assert_eq!(version, 4);
}

#[test]
fn file_of_version_2_keeps_its_rows() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("blocks");
    let connection = Connection::open(&path).unwrap();
    file::upgrade(&connection, 0, &file::VERSIONS[..1]).unwrap();
    let old = "INSERT INTO blocks (id, time, block_height, block_hash, transactions, inputs, sigops, duration_us, arrival, race_winner)
               VALUES (7, 1.5, 70, 'ab', 1, 2, 3, 4, 'other', 'fibre_udp')";
    connection.execute(old, []).unwrap();
    drop(connection);
    BlockLogFile::open(&path, 10).unwrap().add_reports([&report(71)]).unwrap();
    assert_eq!(heights(&path, &BlockFilter::default()), [70, 71]);
    let connection = Connection::open(&path).unwrap();
    let read = "SELECT max(id), (SELECT race_winner FROM blocks WHERE id = 7) FROM blocks";
    let row = connection.query_row(read, [], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?)));
    assert_eq!(row.unwrap(), (8, "fibre_udp".to_string()));
}

fn origin() -> RowOrigin {
    RowOrigin { chain: "regtest".into(), node: "a".into(), source: "usdt" }
}

#[test]
fn late_race_is_added_to_the_row_of_its_block() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("blocks");
    let mut file = BlockLogFile::open(&path, 10).unwrap();
    file.add_reports([&report(7)]).unwrap();
    let (winner, times) = (Some("fibre_udp"), (Some(5), Some(9)));
    let late =
        BlockReport { race_winner: winner, race_udp_ns: times.0, race_compact_ns: times.1, ..report(7) };
    file.add([&LogEntry { report: late, is_update: true }], Some(&origin()), 0).unwrap();
    let read = "SELECT race_winner, race_udp_ns, race_compact_ns FROM blocks";
    let row = Connection::open(&path).unwrap().query_row(read, [], |row| {
        Ok((row.get::<_, Option<String>>(0)?, (row.get::<_, Option<i64>>(1)?, row.get::<_, Option<i64>>(2)?)))
    });
    assert_eq!(row.unwrap(), (winner.map(String::from), times));
}

#[test]
fn unsent_rows_of_a_moved_file_count_as_dropped() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("blocks");
    let counts = Arc::new(StoreState::default());
    let (batches, mut store) = tokio::sync::mpsc::channel(1);
    let forwarding = Forwarding { origin: origin(), counts: counts.clone(), batches };
    let (recorder, queue) = BlockLogThread::start(&path, 100, Some(forwarding)).unwrap();
    let eventually = |count: &AtomicU64, expected: u64| {
        let deadline = Instant::now() + Duration::from_secs(60);
        while count.load(Relaxed) != expected && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(count.load(Relaxed), expected);
    };
    queue.push(report(1));
    assert_eq!(store.blocking_recv().unwrap().batch.heights, [1], "under way, and not lost with the file");
    (2..=4).for_each(|height| queue.push(report(height)));
    eventually(&counts.waiting, 4);
    std::fs::rename(&path, dir.path().join("moved")).unwrap();
    queue.push(report(5));
    assert_eq!(store.blocking_recv().unwrap().batch.heights, [5]);
    eventually(&counts.dropped, 3);
    eventually(&counts.waiting, 1);
    recorder.finish();
}

#[test]
fn outbox_drops_only_rows_that_were_not_sent() {
    let dir = TempDir::new().unwrap();
    let mut file = BlockLogFile::open(&dir.path().join("blocks"), 3).unwrap();
    let add = |file: &mut BlockLogFile, height, under_way| {
        let entry = LogEntry { report: report(height), is_update: false };
        file.add([&entry], Some(&origin()), under_way).unwrap()
    };
    assert!(file.unsent(0, 10).unwrap().is_none());
    assert_eq!([1, 2, 3].map(|height| add(&mut file, height, 0)), [0, 0, 0]);
    assert_eq!(file.unsent(0, 2).unwrap().unwrap().heights, [1, 2]);
    assert_eq!(file.unsent(2, 2).unwrap().unwrap().heights, [3]);
    // The rows 1 and 2 are being sent to the block store. The number of lost rows therefore does not include them when
    // the limit deletes them, but includes row 3.
    assert_eq!([4, 5, 6].map(|height| add(&mut file, height, 2)), [0, 0, 1]);
    assert_eq!((file.count_unsent(2).unwrap(), file.unsent(2, 10).unwrap().unwrap().up_to), (3, 6));
    file.delete_sent(6).unwrap();
    assert!(file.unsent(0, 10).unwrap().is_none());
    // SQLite does not use the ID of a deleted row again (AUTOINCREMENT). A late `delete_sent` for a row can therefore
    // not delete another row.
    add(&mut file, 7, 0);
    assert_eq!(file.unsent(0, 10).unwrap().unwrap().up_to, 7);
}

#[test]
fn row_of_the_store_has_wall_clock_times() {
    let report = BlockReport {
        time: 1_800_000_000.25,
        connected_us: Some(250_000),
        header_us: Some(1),
        compact_us: Some(2000),
        complete_us: Some(100_000),
        fibre_us: Some(260_000),
        ..report(9)
    };
    let row = outbox::store_row(&report, &origin());
    for (column, expected) in [
        ("announced_at", "2027-01-15T08:00:00.000000Z"),
        ("header_at", "2027-01-15T08:00:00.000001Z"),
        ("compact_at", "2027-01-15T08:00:00.002000Z"),
        ("fibre_at", "2027-01-15T07:59:59.990000Z"),
        ("complete_at", "2027-01-15T08:00:00.100000Z"),
        ("connected_at", "2027-01-15T08:00:00.250000Z"),
    ] {
        assert_eq!(row[column], expected, "{column}");
    }
    let unknown = outbox::store_row(&BlockReport { time: 1e9, ..BlockReport::default() }, &origin());
    assert!(
        ["announced_at", "complete_at", "arrival", "transactions", "clock_synchronized"]
            .iter()
            .all(|it| unknown[*it].is_null())
    );
    // The row must have a field for every column of the block store's table, and no other field.
    let schema = include_str!("../../contrib/postgresql/propagation.sql");
    let (_, table) = schema.split_once("CREATE TABLE propagation.blocks (").unwrap();
    let columns =
        table.split_once("PRIMARY KEY").unwrap().0.lines().filter_map(|line| line.trim().split(' ').next());
    let mut columns: Vec<_> = columns.filter(|name| !name.is_empty()).collect();
    columns.sort_unstable();
    let mut of_row: Vec<_> = row.as_object().unwrap().keys().map(String::as_str).collect();
    of_row.sort_unstable();
    assert_eq!(of_row, columns);
}
