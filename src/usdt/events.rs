//! The rare events, as log lines.

use std::time::{Duration, Instant};

use anyhow::Result;
use libbpf_rs::{MapHandle, RingBuffer, RingBufferBuilder};
use tracing::{debug, info};

use super::families::MECHANISMS;
use super::programs::Subject;
use super::totals::text;

/// `struct event` of `bpf/common.h`.
struct Event {
    kind: u32,
    height: i32,
    /// As people write it.
    hash: String,
    values: [i64; 4],
    texts: [String; 2],
}

impl Event {
    const HASH: usize = 8;
    const VALUES: usize = Self::HASH + 32;
    const TEXTS: usize = Self::VALUES + 4 * 8;
    const TEXT: usize = 64;
    const SIZE: usize = Self::TEXTS + 2 * Self::TEXT;

    fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; Self::SIZE] = bytes.try_into().ok()?;
        let four = |at: usize| bytes[at..at + 4].try_into().expect("four bytes");
        let value = |at: usize| i64::from_ne_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        let text_at = |place: usize| {
            let start = Self::TEXTS + place * Self::TEXT;
            text(&bytes[start..start + Self::TEXT])
        };
        Some(Event {
            kind: u32::from_ne_bytes(four(0)),
            height: i32::from_ne_bytes(four(4)),
            hash: bytes[Self::HASH..Self::VALUES].iter().rev().map(|byte| format!("{byte:02x}")).collect(),
            values: [0, 1, 2, 3].map(|place| value(Self::VALUES + place * 8)),
            texts: [text_at(0), text_at(1)],
        })
    }
}

/// Blocks that get a line each in one second; a syncing node connects hundreds.
const LINES: u32 = 200;

/// Reads events and logs them, each ring buffer with its subject's meaning; `None` if no subject has events.
pub(super) fn reader(buffers: &[(Subject, MapHandle)]) -> Result<Option<RingBuffer<'static>>> {
    if buffers.is_empty() {
        return Ok(None);
    }
    let mut builder = RingBufferBuilder::new();
    for (subject, buffer) in buffers {
        let subject = *subject;
        // The ring buffer borrows it; both live as long as the process.
        let buffer: &'static MapHandle = Box::leak(Box::new(MapHandle::try_from(buffer)?));
        let (mut second, mut lines) = (Instant::now(), 0);
        builder.add(buffer, move |bytes| {
            if second.elapsed() > Duration::from_secs(1) {
                if lines > LINES {
                    info!(events = lines - LINES, "more events came within a second than are shown");
                }
                (second, lines) = (Instant::now(), 0);
            }
            lines += 1;
            if let Some(event) = Event::decode(bytes)
                && lines <= LINES
            {
                log(subject, &event);
            }
            0
        })?;
    }
    Ok(Some(builder.build()?))
}

fn log(subject: Subject, event: &Event) {
    let Event { kind, height, hash, values: [a, b, c, d], texts: [first, second] } = event;
    let block_hash = hash.as_str();
    match (subject, kind) {
        (Subject::Validation, _) => info!(
            block_height = height,
            block_hash,
            transactions = a,
            inputs = b,
            sigops = c,
            duration_us = d / 1000,
            "block connected"
        ),
        (Subject::Utxocache, _) => {
            info!(duration_us = a, mode = b, coins = c, bytes = d, "UTXO cache flushed")
        }
        (Subject::Fibre, 0) => info!(
            block_hash,
            source = first,
            chunks_used = a,
            chunks_received = b,
            peers = c,
            duration_us = d,
            "block reconstructed from FIBRE/UDP"
        ),
        (Subject::Fibre, 2) => {
            let mechanism = usize::try_from(*a).ok().and_then(|at| MECHANISMS.get(at)).unwrap_or(&"other");
            info!(block_height = height, block_hash, mechanism, peer = first, "block race won");
        }
        (Subject::Fibre, 3) => info!(
            block_height = height,
            block_hash,
            udp_ns = a,
            udp_peer = first,
            compact_ns = b,
            compact_peer = second,
            "block race"
        ),
        _ => debug!(kind, "an event of unknown kind"),
    }
}
