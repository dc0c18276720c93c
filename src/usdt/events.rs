//! The rare events: log lines, and what happens to blocks.

use std::cell::RefCell;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use libbpf_rs::{MapHandle, RingBuffer, RingBufferBuilder};
use tracing::info;

use super::Programs;
use super::blocks::BlockTracker;

/// Log lines of one kind in one second; a syncing node connects hundreds of blocks.
const MAX_LINES: u32 = 200;

/// Limits log lines.
struct LineLimit {
    second: Instant,
    lines: u32,
}

impl Default for LineLimit {
    fn default() -> Self {
        LineLimit { second: Instant::now(), lines: 0 }
    }
}

impl LineLimit {
    /// Writes this line if there is room for it.
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

/// The ring buffers of the programs.
pub struct EventReader {
    buffers: RingBuffer<'static>,
    blocks: Arc<BlockTracker>,
    /// For blocks that were announced, and for others: a sync does not push out the lines of the former.
    limits: RefCell<(LineLimit, LineLimit)>,
}

impl EventReader {
    /// Of these programs; `None` if none of them has events.
    pub fn from_programs(programs: &Programs) -> Result<Option<Self>> {
        let blocks = programs.blocks();
        let sources = programs.events()?;
        if sources.is_empty() {
            return Ok(None);
        }
        let mut builder = RingBufferBuilder::new();
        for (group, buffer) in sources {
            // The ring buffer borrows it; both live as long as the process.
            let buffer: &'static MapHandle = Box::leak(Box::new(buffer));
            let mut limit = LineLimit::default();
            let blocks = blocks.clone();
            builder.add(buffer, move |event| {
                blocks.add(|queue| group.block_events(event, queue));
                if let Some(log) = group.log() {
                    limit.line(|| log(event));
                }
                0
            })?;
        }
        Ok(Some(EventReader { buffers: builder.build()?, blocks, limits: RefCell::default() }))
    }

    /// Readable when there are events that must not wait.
    pub fn epoll_fd(&self) -> RawFd {
        self.buffers.epoll_fd()
    }

    /// Reads all that there is.
    pub fn consume(&self) -> Result<()> {
        let read = self.buffers.consume();
        let (announced, other) = &mut *self.limits.borrow_mut();
        for block in self.blocks.process_queue() {
            let limit = if block.announced_by.is_some() { &mut *announced } else { &mut *other };
            limit.line(|| block.log());
        }
        Ok(read?)
    }
}
