//! Writes the block log on a dedicated thread. While the file cannot be written, the reports of connected blocks are
//! kept in memory, and reports above a limit are counted as lost. The thread also passes rows of the outbox (the table
//! of the rows that the block store does not have yet) to the thread that forwards them to the block store, a
//! PostgreSQL database.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::Result;
use rusqlite::ErrorCode;
use tokio::sync::{mpsc, oneshot};
use tracing::{debug, info, warn};

use super::file::{BlockLogFile, DatabaseError};
use super::outbox::{Batch, RowOrigin};
use super::report::BlockReport;
use crate::block_store::StoreState;
use crate::scheduling;

/// Maximum number of block reports in the queue to the thread that writes the block log, and also of reports that this
/// thread keeps in memory until the file can be written. The ring buffer in the kernel (validation.bpf.c) holds about
/// the same number of blocks for an exporter that is stopped (SIGSTOP), and the exporter reads all of them at once when
/// it is resumed. A full queue takes 4 MB of memory.
const MAX_QUEUED: usize = 8192;
/// Minimum time between a failed attempt to write to the file and the next attempt.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);
/// Maximum interval at which the thread checks whether the exporter exits, and whether the block store has confirmed a
/// batch.
const CHECK_INTERVAL: Duration = Duration::from_millis(200);
/// Maximum time for which an exiting exporter waits until the thread has written the queued reports.
const FINISH_TIMEOUT: Duration = Duration::from_secs(5);

/// The report of a block, in the queue to the thread that writes the block log: a new row, or an update of the block's
/// row.
pub struct LogEntry {
    /// The report of the block.
    pub report: BlockReport,
    /// Whether the block already has a row. In this case, the thread only adds the result of the race for this block to
    /// the row. The race is between FIBRE (a relay of blocks over UDP) and compact blocks.
    pub is_update: bool,
}

/// The sending side of the queue of block reports to the thread that writes the block log.
pub struct ReportQueue {
    /// The entries are boxed, because the channel allocates memory for all its slots when it is created, and a slot
    /// with a pointer is smaller than a slot with an entry.
    sender: SyncSender<Box<LogEntry>>,
    lost: Arc<AtomicU64>,
}

impl ReportQueue {
    /// Adds the report of a block to the queue without blocking. If the queue is full, the report is dropped and
    /// counted as lost.
    pub fn push(&self, report: BlockReport) {
        self.send(LogEntry { report, is_update: false });
    }

    /// Adds a second report of a block to the queue. The thread adds the result of the race between FIBRE and compact
    /// blocks in this report to the row of the block.
    pub fn update(&self, report: BlockReport) {
        self.send(LogEntry { report, is_update: true });
    }

    fn send(&self, entry: LogEntry) {
        if self.sender.try_send(Box::new(entry)).is_err() {
            self.lost.fetch_add(1, Relaxed);
        }
    }
}

/// A batch of rows of the outbox that is being sent to the block store, with the channel for the confirmation.
pub struct OutboxBatch {
    /// The rows.
    pub batch: Batch,
    /// Channel on which the forwarding thread reports that the block store has confirmed the batch.
    pub stored: oneshot::Sender<()>,
}

/// Connection from the thread that writes the block log to the thread that forwards its rows to the block store. At
/// most one batch of rows is being forwarded at a time.
pub struct Forwarding {
    /// Name of the chain, name of the node and kind of exporter, which are part of each row in the block store.
    pub origin: RowOrigin,
    /// The numbers of forwarded, waiting and dropped rows and the state of the block store, which both threads update
    /// for the metrics and the status page.
    pub counts: Arc<StoreState>,
    /// Channel to the forwarding thread for the next batch.
    pub batches: mpsc::Sender<OutboxBatch>,
}

/// Handle of the thread that writes the block log.
pub struct BlockLogThread {
    /// Set to true when the exporter exits, to end the thread.
    ends: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl BlockLogThread {
    /// Opens the file of the block log and starts the thread that writes it. If the disk is full, or the file is
    /// corrupt, locked or cannot be read because of an I/O error, the thread starts without the file and tries to open
    /// the file later. If `forwarding` is set, the rows are also forwarded to the block store.
    ///
    /// # Errors
    /// The file cannot be created, belongs to another program, is written by another exporter or has an unsupported
    /// version.
    pub fn start(path: &Path, keep: u32, forwarding: Option<Forwarding>) -> Result<(Self, ReportQueue)> {
        let (file, error) = match BlockLogFile::open(path, keep) {
            Ok(file) => (Some(file), None),
            Err(error) if is_temporary(&error) => (None, Some(error)),
            Err(error) => return Err(error.context("cannot open the block log (--block-log)")),
        };
        let (sender, reports) = sync_channel(MAX_QUEUED);
        let (ends, lost) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut writer = BlockLogWriter {
            path: path.into(),
            keep,
            file,
            pending: VecDeque::new(),
            outbox: forwarding.map(Outbox::new),
            lost: lost.clone(),
            last_logged: None,
            tried_at: Instant::now(),
        };
        if let Some(error) = error {
            writer.log_once(&error);
        }
        let end = ends.clone();
        let thread = thread::Builder::new().name("block-log".into()).spawn(move || {
            scheduling::lower_priority();
            writer.run(&reports, &end);
        })?;
        Ok((BlockLogThread { ends, thread }, ReportQueue { sender, lost }))
    }

    /// Stops the thread. If the file can be written, the thread first writes the queued reports. Waits at most
    /// `FINISH_TIMEOUT`.
    pub fn finish(self) {
        self.ends.store(true, Relaxed);
        let deadline = Instant::now() + FINISH_TIMEOUT;
        while !self.thread.is_finished() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Whether the error may go away without a change of the configuration, like the error of a full disk. In this case,
/// the thread tries to open the file again later.
fn is_temporary(error: &anyhow::Error) -> bool {
    let code = error.downcast_ref::<DatabaseError<ErrorCode>>().and_then(|failure| failure.code);
    matches!(
        code,
        Some(
            ErrorCode::DiskFull
                | ErrorCode::DatabaseCorrupt
                | ErrorCode::DatabaseBusy
                | ErrorCode::SystemIoFailure
        )
    )
}

/// The state of the thread that writes the block log: the open file, and the reports that are not written yet.
struct BlockLogWriter {
    path: PathBuf,
    keep: u32,
    file: Option<BlockLogFile>,
    /// Reports that are not written to the file yet, oldest first.
    pending: VecDeque<Box<LogEntry>>,
    outbox: Option<Outbox>,
    lost: Arc<AtomicU64>,
    /// The last logged reason why the file cannot be written; `None` after a successful write.
    last_logged: Option<String>,
    /// Time of the last attempt to open or write the file.
    tried_at: Instant,
}

impl BlockLogWriter {
    /// Writes the reports from the queue to the file until the exporter exits.
    fn run(&mut self, reports: &Receiver<Box<LogEntry>>, ends: &AtomicBool) {
        loop {
            let first = reports.recv_timeout(CHECK_INTERVAL);
            let is_over = ends.load(Relaxed) || matches!(first, Err(RecvTimeoutError::Disconnected));
            self.pending.extend(first);
            self.pending.extend(reports.try_iter().take(MAX_QUEUED));
            let too_many = self.pending.len().saturating_sub(MAX_QUEUED);
            self.pending.drain(..too_many);
            self.lost.fetch_add(too_many as u64, Relaxed);
            let is_time = self.last_logged.is_none() || self.tried_at.elapsed() > RETRY_INTERVAL || is_over;
            let has_work = !self.pending.is_empty() || (self.outbox.is_some() && self.file.is_none());
            if has_work && is_time {
                self.try_to_write();
            }
            self.forward();
            if is_over {
                return;
            }
        }
    }

    fn try_to_write(&mut self) {
        self.tried_at = Instant::now();
        match self.write() {
            Ok(()) => {
                self.pending.clear();
                if self.last_logged.take().is_some() {
                    info!("writing to the block log {} again", self.path.display());
                }
                let lost = self.lost.swap(0, Relaxed);
                if lost > 0 {
                    self.outbox.iter().for_each(|outbox| {
                        outbox.forwarding.counts.dropped.fetch_add(lost, Relaxed);
                    });
                    warn!(events = lost, "blocks were not written to the block log: queue full");
                }
            }
            Err(error) => {
                self.file = None;
                self.log_once(&error);
            }
        }
    }

    /// Logs the reason why the file cannot be written, unless it equals the reason that was logged last.
    fn log_once(&mut self, error: &anyhow::Error) {
        let why = error.to_string();
        if self.last_logged.as_ref() != Some(&why) {
            warn!(
                "cannot write the block log; the last {MAX_QUEUED} blocks are kept in memory until it succeeds: {why}"
            );
            self.last_logged = Some(why);
        }
    }

    fn write(&mut self) -> Result<()> {
        let file = match self.file.take().filter(BlockLogFile::is_in_place) {
            Some(file) => file,
            None => {
                let file = BlockLogFile::open(&self.path, self.keep)?;
                if let Some(outbox) = &mut self.outbox {
                    outbox.file_opened(file.count_unsent(0)?);
                }
                file
            }
        };
        let origin = self.outbox.as_ref().map(|outbox| &outbox.forwarding.origin);
        let under_way = self.outbox.as_ref().map_or(0, Outbox::last_sent);
        let dropped = self.file.insert(file).add(self.pending.iter().map(Box::as_ref), origin, under_way)?;
        if let Some(outbox) = &mut self.outbox {
            outbox.forwarding.counts.dropped.fetch_add(dropped, Relaxed);
            outbox.has_news = true;
        }
        Ok(())
    }

    /// Passes the next rows of the outbox to the thread that forwards rows, and deletes the rows that the block store
    /// has confirmed.
    fn forward(&mut self) {
        let (Some(outbox), Some(file)) = (&mut self.outbox, &self.file) else { return };
        if let Err(error) = outbox.exchange(file) {
            self.file = None;
            self.log_once(&error);
        }
    }
}

/// The progress of forwarding the rows of the outbox to the block store: which rows are being sent, and which rows the
/// block store has confirmed.
struct Outbox {
    forwarding: Forwarding,
    /// ID of the last row that the block store has confirmed.
    stored: i64,
    /// Time of the next attempt to delete the rows up to `stored`; `None` if they have been deleted.
    delete_at: Option<Instant>,
    under_way: Option<UnderWay>,
    /// Whether the outbox may have rows that have not been sent in a batch yet.
    has_news: bool,
}

/// The one batch that is being sent to the block store, from the view of the thread that writes the block log.
struct UnderWay {
    /// ID that the last row of the batch has in the outbox.
    up_to: i64,
    /// Number of rows in the batch.
    rows: u64,
    stored: oneshot::Receiver<()>,
}

impl Outbox {
    /// Maximum number of rows in a batch. A row has about 800 bytes, so a batch has at most about 400 kB.
    const MAX_ROWS: usize = 500;

    fn new(forwarding: Forwarding) -> Self {
        Outbox { forwarding, stored: 0, delete_at: None, under_way: None, has_news: true }
    }

    /// ID of the last row that the block store has confirmed or that is being sent.
    fn last_sent(&self) -> i64 {
        self.under_way.as_ref().map_or(self.stored, |batch| batch.up_to)
    }

    /// Resets the progress after a file was opened, because the rows in another file have other IDs. If a batch is
    /// being sent and its rows are in the opened file, they are sent again, which does not change the block store.
    /// `unsent` is the number of rows in the outbox of the opened file. If an earlier file was moved away with unsent
    /// rows, these rows are counted as dropped, except the rows of the batch that is being sent.
    fn file_opened(&mut self, unsent: u64) {
        let waiting = self.forwarding.counts.waiting.load(Relaxed);
        let under_way = self.under_way.take().map_or(0, |batch| batch.rows);
        let lost = waiting.saturating_sub(under_way).saturating_sub(unsent);
        self.forwarding.counts.dropped.fetch_add(lost, Relaxed);
        if lost > 0 {
            warn!(
                rows = lost,
                "the block log was moved or deleted with rows that the block store does not have"
            );
        }
        (self.stored, self.delete_at, self.has_news) = (0, None, true);
    }

    /// Deletes the rows that the block store has confirmed, and passes the next rows to the thread that forwards rows.
    fn exchange(&mut self, file: &BlockLogFile) -> Result<()> {
        if let Some(batch) = self.under_way.take_if(|batch| batch.stored.try_recv().is_ok()) {
            (self.stored, self.has_news) = (batch.up_to, true);
            self.delete_at.get_or_insert_with(Instant::now);
        }
        self.delete_stored(file);
        if !self.has_news {
            return Ok(());
        }
        self.forwarding.counts.waiting.store(file.count_unsent(self.stored)?, Relaxed);
        if self.under_way.is_some() {
            self.has_news = false;
            return Ok(());
        }
        match file.unsent(self.stored, Self::MAX_ROWS)? {
            Some(batch) => {
                let (confirm, stored) = oneshot::channel();
                let under_way = UnderWay { up_to: batch.up_to, rows: batch.rows.len() as u64, stored };
                let sent = self.forwarding.batches.try_send(OutboxBatch { batch, stored: confirm });
                self.under_way = sent.is_ok().then_some(under_way);
                self.has_news = self.under_way.is_none();
            }
            None => self.has_news = false,
        }
        Ok(())
    }

    /// Deletes the rows that the block store has confirmed. If the deletion fails, for example on a full disk, the
    /// rows are not sent again, and are deleted later.
    fn delete_stored(&mut self, file: &BlockLogFile) {
        if self.delete_at.is_none_or(|at| Instant::now() < at) {
            return;
        }
        self.delete_at = None;
        if let Err(error) = file.delete_sent(self.stored) {
            debug!("cannot delete sent rows: {error:#}");
            self.delete_at = Some(Instant::now() + RETRY_INTERVAL);
        }
    }
}
