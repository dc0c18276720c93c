//! Writes the block log on a dedicated thread. While the file cannot be written, blocks are kept in a queue, and blocks
//! that do not fit are counted as lost.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::Result;
use rusqlite::ErrorCode;
use tracing::{info, warn};

use super::file::{BlockLogFile, DatabaseError};
use crate::scheduling;
use crate::usdt::blocks::BlockReport;

/// Limit on the blocks in the queue to the thread, and separately on the blocks that the thread keeps until the file
/// can be written. The ring buffer in the kernel (validation.bpf.c) holds about as many blocks for an exporter that is
/// stopped (SIGSTOP), and all of them are read at once when the exporter is resumed. A full queue takes 4 MB of memory.
const MAX_QUEUED: usize = 8192;
/// Minimum time between a failed attempt to write and the next attempt.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);
/// Interval at which the thread checks whether the exporter exits.
const CHECK_INTERVAL: Duration = Duration::from_millis(200);
/// Maximum time for writing the queued blocks when the exporter exits.
const FINISH_TIMEOUT: Duration = Duration::from_secs(5);

/// The sending side of the queue of block reports to the thread that writes the block log.
pub struct ReportQueue {
    /// The reports are boxed because the channel allocates memory for all its slots when it is created.
    sender: SyncSender<Box<BlockReport>>,
    lost: Arc<AtomicU64>,
}

impl ReportQueue {
    /// Adds the report of a block to the queue without blocking. If the queue is full, the report is dropped and
    /// counted as lost.
    pub fn push(&self, report: BlockReport) {
        if self.sender.try_send(Box::new(report)).is_err() {
            self.lost.fetch_add(1, Relaxed);
        }
    }
}

/// Handle of the thread that writes the block log.
pub struct BlockLogThread {
    /// Set when the thread has to exit.
    ends: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl BlockLogThread {
    /// Starts the thread. Returns an error if the file cannot be created, belongs to another program or has an
    /// unsupported version. If the disk is full, the file is corrupt or locked, or an I/O error occurs, the thread
    /// retries instead.
    pub(in crate::usdt) fn start(path: &Path, keep: u32) -> Result<(Self, ReportQueue)> {
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

    /// Stops the thread. If the file can be written, the thread first writes the queued blocks. Waits at most
    /// `FINISH_TIMEOUT`.
    pub fn finish(self) {
        self.ends.store(true, Relaxed);
        let deadline = Instant::now() + FINISH_TIMEOUT;
        while !self.thread.is_finished() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Whether a retry may succeed without a change of the configuration.
fn is_temporary(error: &anyhow::Error) -> bool {
    let code = error.downcast_ref::<DatabaseError>().and_then(|failure| failure.code);
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

/// The state of the thread that writes the block log: the open file, and the blocks that are not written yet.
struct BlockLogWriter {
    path: PathBuf,
    keep: u32,
    file: Option<BlockLogFile>,
    /// Blocks that are not written yet, oldest first.
    pending: VecDeque<Box<BlockReport>>,
    lost: Arc<AtomicU64>,
    /// The last logged reason why the file cannot be written; `None` after a successful write.
    last_logged: Option<String>,
    /// Time of the last attempt to open or write the file.
    tried_at: Instant,
}

impl BlockLogWriter {
    /// Writes blocks from the queue until the exporter exits.
    fn run(&mut self, reports: &Receiver<Box<BlockReport>>, ends: &AtomicBool) {
        loop {
            let first = reports.recv_timeout(CHECK_INTERVAL);
            let is_over = ends.load(Relaxed) || matches!(first, Err(RecvTimeoutError::Disconnected));
            self.pending.extend(first);
            self.pending.extend(reports.try_iter().take(MAX_QUEUED));
            let too_many = self.pending.len().saturating_sub(MAX_QUEUED);
            self.pending.drain(..too_many);
            self.lost.fetch_add(too_many as u64, Relaxed);
            let is_time = self.last_logged.is_none() || self.tried_at.elapsed() > RETRY_INTERVAL || is_over;
            if !self.pending.is_empty() && is_time {
                self.try_to_write();
            }
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
            None => BlockLogFile::open(&self.path, self.keep)?,
        };
        self.file.insert(file).add(self.pending.iter().map(Box::as_ref))
    }
}
