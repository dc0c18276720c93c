//! Reads the events in the ring buffers of the BPF programs, logs the events, and passes events of blocks to the block
//! tracker.

use std::cell::RefCell;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use libbpf_rs::{MapHandle, RingBuffer, RingBufferBuilder};
use tracing::info;

use super::{MetricsReader, Programs};

/// Maximum number of log lines per second, separately for announced blocks, for other blocks, and for the events of
/// each tracepoint group. The limit is necessary because each connected block has a log line, and a syncing node
/// connects hundreds of blocks per second.
const MAX_LINES: u32 = 200;

/// A rate limiter that allows at most [`MAX_LINES`] log lines per second.
struct LineLimit {
    /// Start of the current second; `lines` is the number of lines logged since then.
    second: Instant,
    /// Lines in the current second, including lines that were dropped because of the limit.
    lines: u32,
}

impl Default for LineLimit {
    fn default() -> Self {
        LineLimit { second: Instant::now(), lines: 0 }
    }
}

impl LineLimit {
    /// Calls `write` to log a line, unless the limit for the current second is reached.
    fn line(&mut self, write: impl FnOnce()) {
        if self.second.elapsed() > Duration::from_secs(1) {
            if self.lines > MAX_LINES {
                info!(
                    events = self.lines - MAX_LINES,
                    "too many events within a second: some are not logged"
                );
            }
            *self = LineLimit::default();
        }
        self.lines += 1;
        if self.lines <= MAX_LINES {
            write();
        }
    }
}

/// Reads the events in the ring buffers of all BPF programs, and logs the events.
pub struct EventReader {
    buffers: RingBuffer<'static>,
    reader: Arc<MetricsReader>,
    /// Two limits: the first for the log lines of announced blocks, the second for the log lines of other blocks.
    /// Because the limits are separate, blocks of a sync do not suppress the lines of announced blocks.
    limits: RefCell<(LineLimit, LineLimit)>,
}

impl EventReader {
    /// A reader of the events of these programs; `None` if no program has a ring buffer.
    ///
    /// # Errors
    /// A ring buffer cannot be opened.
    pub fn from_programs(programs: &Programs) -> Result<Option<Self>> {
        let sources = programs.events()?;
        if sources.is_empty() {
            return Ok(None);
        }
        let mut builder = RingBufferBuilder::new();
        for (group, buffer) in sources {
            // The ring buffer borrows the map handle. The handle is deliberately never freed (leaked), because the ring
            // buffer lives as long as the process.
            let buffer: &'static MapHandle = Box::leak(Box::new(buffer));
            let mut limit = LineLimit::default();
            let reader = programs.reader.clone();
            builder.add(buffer, move |event| {
                reader.blocks.add(|queue| group.block_events(event, queue));
                if let Some(log) = group.log() {
                    limit.line(|| log(event));
                }
                0
            })?;
        }
        let reader = programs.reader.clone();
        Ok(Some(EventReader { buffers: builder.build()?, reader, limits: RefCell::default() }))
    }

    /// The epoll descriptor of the ring buffers. The descriptor becomes readable when a BPF program submits an event
    /// that wakes up user space.
    pub fn epoll_fd(&self) -> RawFd {
        self.buffers.epoll_fd()
    }

    /// Passes the time of the wall clock to the BPF programs.
    pub fn update_clock(&self) {
        for (group, maps) in &self.reader.groups {
            group.programs.update_clock(maps);
        }
    }

    /// Reads all events in the ring buffers, and logs a line for each block that the node has connected.
    ///
    /// # Errors
    /// A ring buffer cannot be read.
    pub fn consume(&self) -> Result<()> {
        let read = self.buffers.consume();
        let (announced, other) = &mut *self.limits.borrow_mut();
        for block in self.reader.blocks.process_queue() {
            let limit = if block.announced_by.is_some() { &mut *announced } else { &mut *other };
            limit.line(|| block.log());
        }
        Ok(read?)
    }
}
