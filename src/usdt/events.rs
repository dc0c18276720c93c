//! The rare events, as log lines.

use std::time::{Duration, Instant};

use anyhow::Result;
use libbpf_rs::{MapHandle, RingBuffer, RingBufferBuilder};
use tracing::info;

use super::Programs;

/// Events of one kind that are logged in one second; a syncing node connects hundreds of blocks.
const LINES: u32 = 200;

/// Reads events and logs them; `None` if no subject has events.
pub(super) fn reader(programs: &Programs) -> Result<Option<RingBuffer<'static>>> {
    let buffers = programs.events()?;
    if buffers.is_empty() {
        return Ok(None);
    }
    let mut builder = RingBufferBuilder::new();
    for (buffer, log) in buffers {
        // The ring buffer borrows it; both live as long as the process.
        let buffer: &'static MapHandle = Box::leak(Box::new(buffer));
        let (mut second, mut lines) = (Instant::now(), 0);
        builder.add(buffer, move |event| {
            if second.elapsed() > Duration::from_secs(1) {
                if lines > LINES {
                    info!(events = lines - LINES, "more events came within a second than are shown");
                }
                (second, lines) = (Instant::now(), 0);
            }
            lines += 1;
            if lines <= LINES {
                log(event);
            }
            0
        })?;
    }
    Ok(Some(builder.build()?))
}
