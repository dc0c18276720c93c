//! The SQLite file of the block log. This module creates the file, migrates it to the current schema, adds rows, and
//! deletes the oldest rows. The outbox is the table of the rows that the exporter has to send to the block store
//! (`--block-store`).
//!
//! The file uses SQLite's rollback journal and not write-ahead logging (WAL). With a rollback journal, a reader needs
//! only read access to the file; with WAL, it may also need write access. The higher speed of WAL is not needed,
//! because the exporter writes only one row per block.

use std::error::Error;
use std::fs::TryLockError;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{fmt, fs, thread};

use anyhow::{Context, Result, bail};
use rusqlite::{Connection, ErrorCode, OpenFlags, params_from_iter};

use super::outbox::{self, Batch, RowOrigin};
use super::report::BlockReport;
use super::writer::LogEntry;

/// SQLite `application_id` of a block log file: "btxb" as a big-endian integer.
const APPLICATION: i32 = i32::from_be_bytes(*b"btxb");
/// The versions of the file's schema (`user_version`), each with the SQL statements that migrate from the previous
/// version. The statements of the first version migrate from an empty file. A new field of [`BlockReport`] needs a new
/// version with `ALTER TABLE blocks ADD COLUMN …`. Version 1 existed only before the first release, with other columns,
/// and is not supported.
pub(super) const VERSIONS: [(i32, &str); 2] = [
    (
        2,
        "CREATE TABLE blocks (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            time REAL NOT NULL,
            block_height INTEGER NOT NULL,
            block_hash TEXT NOT NULL,
            transactions INTEGER NOT NULL,
            inputs INTEGER NOT NULL,
            sigops INTEGER NOT NULL,
            duration_us INTEGER NOT NULL,
            arrival TEXT NOT NULL,
            announced_by TEXT,
            announced_peer INTEGER,
            announcements INTEGER,
            header_age_ms INTEGER,
            compact_blocks INTEGER,
            compact_us INTEGER,
            short_ids INTEGER,
            prefilled INTEGER,
            asked_peers INTEGER,
            asked_us INTEGER,
            answered_us INTEGER,
            from_mempool INTEGER,
            from_extra_pool INTEGER,
            requested INTEGER,
            requested_bytes INTEGER,
            complete_us INTEGER,
            connected_us INTEGER,
            flush_us INTEGER,
            race_winner TEXT
        );
        CREATE INDEX blocks_by_height ON blocks (block_height);",
    ),
    // Rows that bitcoind-ipc-exporter writes have no data about the contents of a block (`transactions`, `inputs`,
    // `sigops`) and about its arrival, so the columns for this data must permit NULL. The migration copies the table,
    // because SQLite cannot remove the constraint NOT NULL from a column.
    (
        3,
        "ALTER TABLE blocks RENAME TO old;
        DROP INDEX blocks_by_height;
        CREATE TABLE blocks (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            time REAL NOT NULL,
            block_height INTEGER NOT NULL,
            block_hash TEXT NOT NULL,
            transactions INTEGER,
            inputs INTEGER,
            sigops INTEGER,
            duration_us INTEGER,
            arrival TEXT,
            announced_by TEXT,
            announced_peer INTEGER,
            announcements INTEGER,
            header_age_ms INTEGER,
            compact_blocks INTEGER,
            compact_us INTEGER,
            short_ids INTEGER,
            prefilled INTEGER,
            asked_peers INTEGER,
            asked_us INTEGER,
            answered_us INTEGER,
            from_mempool INTEGER,
            from_extra_pool INTEGER,
            requested INTEGER,
            requested_bytes INTEGER,
            complete_us INTEGER,
            connected_us INTEGER,
            flush_us INTEGER,
            race_winner TEXT
        );
        INSERT INTO blocks SELECT * FROM old;
        DROP TABLE old;
        CREATE INDEX blocks_by_height ON blocks (block_height);
        ALTER TABLE blocks ADD COLUMN announced_connection TEXT;
        ALTER TABLE blocks ADD COLUMN header_us INTEGER;
        ALTER TABLE blocks ADD COLUMN fibre_us INTEGER;
        ALTER TABLE blocks ADD COLUMN race_udp_ns INTEGER;
        ALTER TABLE blocks ADD COLUMN race_compact_ns INTEGER;
        ALTER TABLE blocks ADD COLUMN resolution_us INTEGER;
        ALTER TABLE blocks ADD COLUMN clock_synchronized INTEGER;
        ALTER TABLE blocks ADD COLUMN clock_max_error_us INTEGER;
        ALTER TABLE blocks ADD COLUMN clock_estimated_error_us INTEGER;
        CREATE TABLE outbox (id INTEGER PRIMARY KEY AUTOINCREMENT, block_height INTEGER NOT NULL, row TEXT NOT NULL);",
    ),
];
const VERSION: i32 = VERSIONS[VERSIONS.len() - 1].0;
/// Maximum time for which the exporter or a reader waits until another process releases its lock on the file.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// Size of SQLite's page cache in KiB. It is smaller than SQLite's default of 2 MB, to save memory.
const CACHE_KIB: i32 = 256;

/// Names of the columns that a [`BlockReport`] fills.
pub fn columns() -> Vec<&'static str> {
    BlockReport::default().columns().into_iter().map(|(name, _)| name).collect()
}

/// The schema version of a block log's file; 0 for an empty database. Returns an error if the file belongs to another
/// program, or if its schema version is not supported.
fn version(connection: &Connection, path: &Path) -> Result<i32> {
    let number = |pragma: &str| connection.query_row(&format!("PRAGMA {pragma}"), [], |row| row.get(0));
    let read = || -> rusqlite::Result<(i32, i32, i32)> {
        let tables = connection.query_row("SELECT count(*) FROM sqlite_master", [], |row| row.get(0))?;
        Ok((number("application_id")?, number("user_version")?, tables))
    };
    match read().map_err(|error| explain(error, path))? {
        (APPLICATION, file_version, _) if VERSIONS.iter().any(|(version, _)| *version == file_version) => {
            Ok(file_version)
        }
        (APPLICATION, other, _) => bail!(
            "{} is a block log of version {other}, but this exporter supports version {VERSION}; use the exporter that \
             wrote it, or another file",
            path.display()
        ),
        (0, 0, 0) => Ok(0),
        _ => bail!("{} is a database of another program; choose another file", path.display()),
    }
}

/// An error of an operation on a database: SQLite for the block log, or PostgreSQL for the block store. It has the
/// database's error code, if there is one, and a message that states the remedy, if one is known.
#[derive(Debug)]
pub struct DatabaseError<C> {
    pub code: Option<C>,
    pub text: String,
}

impl<C> fmt::Display for DatabaseError<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl<C: fmt::Debug> Error for DatabaseError<C> {}

/// Adds the path of the file and, if known, the remedy to an error of SQLite.
pub fn explain(error: rusqlite::Error, path: &Path) -> anyhow::Error {
    let code = error.sqlite_error_code();
    let advice = match code {
        Some(ErrorCode::NotADatabase) => {
            "; if it was a block log, it is corrupt: move it away, or choose another file"
        }
        Some(ErrorCode::DatabaseCorrupt) => "; it is corrupt: move it away",
        Some(ErrorCode::ReadOnly) => "; the exporter's user needs write access to it and its folder",
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            "; another process has locked it for 5 s: find the process with fuser and end it, or try again later"
        }
        _ => "",
    };
    // Remove the path from rusqlite's message, because some messages already contain it.
    let message = error.to_string().replace(&format!(": {}", path.display()), "");
    anyhow::Error::new(DatabaseError { code, text: format!("{}: {message}{advice}", path.display()) })
}

/// The SQLite file of the block log, open and locked for writing.
pub struct BlockLogFile {
    path: PathBuf,
    connection: Connection,
    /// The descriptor that holds the `flock`; `None` if the file system does not support `flock`. This field is
    /// declared after `connection` and therefore dropped after it, because closing any descriptor of a file releases
    /// all record locks of the process on that file, including SQLite's.
    _lock: Option<fs::File>,
    /// Device and inode of the open file. If `path` refers to another inode, the file was moved or deleted.
    identity: (u64, u64),
    /// Number of most recent blocks whose rows are kept.
    keep: u32,
}

impl BlockLogFile {
    /// Opens the file of the block log, or creates it if there is none.
    ///
    /// # Errors
    /// The file cannot be opened or migrated, belongs to another program, or is written by another exporter. Two
    /// exporters would each add a row for each block.
    pub fn open(path: &Path, keep: u32) -> Result<Self> {
        Self::open_within(BUSY_TIMEOUT, path, keep)
    }

    /// Like [`BlockLogFile::open`], but with the timeout `busy` for another exporter to release the file. The wait lets
    /// a restarted exporter open the file while the earlier exporter exits.
    pub(super) fn open_within(busy: Duration, path: &Path, keep: u32) -> Result<Self> {
        check_regular(path)?;
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags).map_err(|error| explain(error, path))?;
        let lock = lock(path, busy)?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        let version = version(&connection, path)?;
        upgrade(&connection, version, &VERSIONS).map_err(|error| explain(error, path))?;
        connection.pragma_update(None, "cache_size", -CACHE_KIB).map_err(|error| explain(error, path))?;
        let identity = identity(path).with_context(|| format!("{} no longer exists", path.display()))?;
        Ok(BlockLogFile { path: path.into(), connection, _lock: lock, identity, keep })
    }

    /// Whether the block log's path still refers to the open file; false if the file was moved or deleted.
    pub fn is_in_place(&self) -> bool {
        identity(&self.path) == Some(self.identity)
    }

    /// Adds or updates the rows of these blocks, and deletes the oldest rows beyond the limit (`keep`), in one
    /// transaction. If `origin` is set, the rows are also added to the outbox, to which the same limit applies. Returns
    /// the number of rows that the limit deleted from the outbox before they were sent to the block store. `under_way`
    /// is the ID of the last row of the outbox that was sent or is being sent.
    ///
    /// # Errors
    /// The file cannot be written; in this case, no row was changed.
    pub fn add<'a>(
        &mut self,
        entries: impl IntoIterator<Item = &'a LogEntry>,
        origin: Option<&RowOrigin>,
        under_way: i64,
    ) -> Result<u64> {
        let columns = columns();
        let places = vec!["?"; columns.len()].join(", ");
        let insert = format!("INSERT INTO blocks ({}) VALUES ({places})", columns.join(", "));
        let add = || -> rusqlite::Result<u64> {
            let transaction = self.connection.transaction()?;
            {
                let mut insert = transaction.prepare(&insert)?;
                for LogEntry { report, is_update } in entries {
                    if *is_update {
                        update_race(&transaction, report)?;
                    } else {
                        insert.execute(params_from_iter(
                            report.columns().into_iter().map(|(_, value)| value),
                        ))?;
                    }
                    if let Some(origin) = origin {
                        outbox::push(&transaction, report, origin)?;
                    }
                }
            }
            transaction
                .execute("DELETE FROM blocks WHERE id <= (SELECT max(id) FROM blocks) - ?", [self.keep])?;
            let dropped = outbox::limit(&transaction, self.keep, under_way)?;
            transaction.commit()?;
            Ok(dropped)
        };
        add().map_err(|error| explain(error, &self.path))
    }

    /// Adds rows for new blocks, and nothing to the outbox.
    ///
    /// # Errors
    /// The errors of [`BlockLogFile::add`].
    #[cfg(test)]
    pub fn add_reports<'a>(&mut self, reports: impl IntoIterator<Item = &'a BlockReport>) -> Result<u64> {
        let entry = |report: &BlockReport| LogEntry { report: report.clone(), is_update: false };
        self.add(&reports.into_iter().map(entry).collect::<Vec<_>>(), None, 0)
    }

    /// The oldest rows of the outbox with IDs above `after`, at most `limit` rows; `None` if there are no such rows.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn unsent(&self, after: i64, limit: usize) -> Result<Option<Batch>> {
        let read = || -> rusqlite::Result<Batch> {
            let query = "SELECT id, block_height, row FROM outbox WHERE id > ? ORDER BY id LIMIT ?";
            let mut statement = self.connection.prepare(query)?;
            let mut rows = statement.query((after, limit as i64))?;
            let mut batch = Batch { up_to: after, heights: Vec::new(), rows: Vec::new() };
            while let Some(row) = rows.next()? {
                batch.up_to = row.get(0)?;
                batch.heights.push(row.get(1)?);
                batch.rows.push(row.get(2)?);
            }
            Ok(batch)
        };
        let batch = read().map_err(|error| explain(error, &self.path))?;
        Ok((!batch.rows.is_empty()).then_some(batch))
    }

    /// Deletes the rows of the outbox with IDs up to `up_to`.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn delete_sent(&self, up_to: i64) -> Result<()> {
        let deleted = self.connection.execute(outbox::DELETE, [up_to]);
        deleted.map(drop).map_err(|error| explain(error, &self.path))
    }

    /// Number of rows of the outbox with IDs above `after`.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn count_unsent(&self, after: i64) -> Result<u64> {
        let count = "SELECT count(*) FROM outbox WHERE id > ?";
        let count = self.connection.query_row(count, [after], |row| row.get::<_, i64>(0));
        count.map(|count| count as u64).map_err(|error| explain(error, &self.path))
    }
}

/// Sets the columns about the race for a block in the last row of this block. The race is between FIBRE (a relay of
/// blocks over UDP) and compact blocks; the relay mechanism that delivers the block first wins.
fn update_race(connection: &Connection, report: &BlockReport) -> rusqlite::Result<()> {
    let update = "UPDATE blocks SET race_winner = ?, race_udp_ns = ?, race_compact_ns = ? \
                  WHERE id = (SELECT max(id) FROM blocks WHERE block_height = ? AND block_hash = ?)";
    let race = (report.race_winner, report.race_udp_ns, report.race_compact_ns);
    let (height, hash) = (report.block_height, &report.block_hash);
    connection.execute(update, (race.0, race.1, race.2, height, hash)).map(drop)
}

/// Returns an error if the path exists and is not a regular file, for example a FIFO.
fn check_regular(path: &Path) -> Result<()> {
    match fs::metadata(path) {
        Ok(file) if !file.is_file() => bail!("{} is not a regular file; choose another path", path.display()),
        _ => Ok(()),
    }
}

/// Locks the file against other exporters with `flock`. The lock blocks neither SQLite, whose record locks do not
/// conflict with `flock`, nor readers of the block log, which do not call `flock`. Returns `None` if the file system
/// does not support `flock`.
fn lock(path: &Path, busy: Duration) -> Result<Option<fs::File>> {
    const RETRY_INTERVAL: Duration = Duration::from_millis(50);
    let file = fs::File::open(path).with_context(|| path.display().to_string())?;
    let deadline = Instant::now() + busy;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(Some(file)),
            Err(TryLockError::WouldBlock) if Instant::now() >= deadline => bail!(
                "{} is written by another exporter: choose another file for this exporter, or stop the other exporter",
                path.display()
            ),
            Err(TryLockError::WouldBlock) => thread::sleep(RETRY_INTERVAL),
            Err(TryLockError::Error(_)) => return Ok(None),
        }
    }
}

/// Migrates a file from the schema version `from` to the last of `versions`.
pub(super) fn upgrade(connection: &Connection, from: i32, versions: &[(i32, &str)]) -> rusqlite::Result<()> {
    for (version, change) in versions.iter().filter(|(version, _)| *version > from) {
        connection.execute_batch(&format!(
            "BEGIN IMMEDIATE; {change} PRAGMA application_id = {APPLICATION}; PRAGMA user_version = {version}; COMMIT;"
        ))?;
    }
    Ok(())
}

/// Device and inode of a file; `None` if the file cannot be accessed.
fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::metadata(path).ok().map(|it| (it.dev(), it.ino()))
}

/// Opens the file of a block log for reading; `None` if the file has no table yet, because no exporter has written to
/// it.
///
/// # Errors
/// There is no file, the file cannot be read, or it is not a block log of a supported version.
pub fn open_to_read(path: &Path) -> Result<Option<Connection>> {
    if !path.exists() {
        bail!(
            "there is no block log at {}; start the exporter with --block-log, or pass the file that it writes",
            path.display()
        );
    }
    check_regular(path)?;
    let open = |access| {
        let flags = access | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags).map_err(|error| explain(error, path))?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        let version = version(&connection, path)?;
        anyhow::Ok((connection, version))
    };
    let opened = open(OpenFlags::SQLITE_OPEN_READ_ONLY).or_else(|error| match error.downcast_ref() {
        // If an exporter was killed while it wrote to the file, SQLite has to roll back the unfinished transaction
        // first, which requires write access.
        Some(DatabaseError { code: Some(ErrorCode::ReadOnly), .. }) => open(OpenFlags::SQLITE_OPEN_READ_WRITE).context(
            "an exporter was killed while writing; run this command as a user with write access, or start the exporter, to \
             repair the file",
        ),
        _ => Err(error),
    });
    let (connection, version) = opened?;
    Ok((version > 0).then_some(connection))
}
