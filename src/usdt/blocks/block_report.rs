//! The way of a block that was connected, as it is told: in the journal, in the record, on the page.

use serde::Serialize;

use super::event::Connected;
use super::trace::{Arrival, Timeline, Way};
use crate::usdt::histogram::Block;
use crate::usdt::maps;

/// A connected block. `docs/journal.md` says what each field means; times are since the first announcement. What did not
/// happen is `None`, and so is all from `announced_by` on for a block that nobody announced.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[allow(missing_docs, reason = "in docs/journal.md")]
pub struct BlockReport {
    /// When it was connected, Unix seconds.
    pub time: f64,
    pub block_height: i64,
    pub block_hash: String,
    pub transactions: i64,
    pub inputs: i64,
    pub sigops: i64,
    pub duration_us: i64,
    pub arrival: &'static str,
    pub announced_by: Option<&'static str>,
    pub announced_peer: Option<i64>,
    pub announcements: Option<i64>,
    pub header_age_ms: Option<i64>,
    pub compact_blocks: Option<i64>,
    pub compact_us: Option<i64>,
    pub short_ids: Option<i64>,
    pub prefilled: Option<i64>,
    pub asked_peers: Option<i64>,
    pub asked_us: Option<i64>,
    pub answered_us: Option<i64>,
    pub from_mempool: Option<i64>,
    pub from_extra_pool: Option<i64>,
    pub requested: Option<i64>,
    pub requested_bytes: Option<i64>,
    pub complete_us: Option<i64>,
    pub connected_us: Option<i64>,
    pub flush_us: Option<i64>,
    pub race_winner: Option<&'static str>,
}

/// A race of FIBRE against compact blocks.
#[derive(Clone, Debug, Serialize)]
pub struct Race {
    /// When its end was known, Unix seconds.
    pub time: f64,
    pub block_height: i32,
    pub block_hash: String,
    /// Nanoseconds until the block was there by FIBRE/UDP; `None` if that took no part.
    pub udp_ns: Option<i64>,
    /// By a compact block, likewise.
    pub compact_ns: Option<i64>,
}

impl BlockReport {
    pub(super) fn of(block: &Block, connected: &Connected, way: Option<(&Way, &Timeline)>) -> Self {
        let report = BlockReport {
            time: block.time,
            block_height: block.height.into(),
            block_hash: maps::hash(&block.hash),
            transactions: connected.transactions,
            inputs: connected.inputs,
            sigops: connected.sigops,
            duration_us: connected.duration_ns / 1000,
            arrival: Arrival::Other.label(),
            ..BlockReport::default()
        };
        let Some((way, timeline)) = way else { return report };
        let since_first = |time: u64| (time.saturating_sub(timeline.first_ns) / 1000) as i64;
        let sum = |counts: &[u64]| Some(counts.iter().sum::<u64>() as i64);
        let asked = timeline.peers.iter().filter_map(|peer| peer.asked);
        let answered = timeline.peers.iter().filter_map(|peer| peer.answered);
        BlockReport {
            arrival: way.arrival.label(),
            announced_by: Some(timeline.first_by.label()),
            announced_peer: Some(timeline.first_peer),
            announcements: sum(&timeline.announcements),
            header_age_ms: way.header_age_ns.map(|age| (age / 1_000_000) as i64),
            compact_blocks: sum(&timeline.compact_blocks),
            compact_us: timeline.first_compact_ns().map(since_first),
            short_ids: way.compact.map(|compact| compact.short_ids as i64),
            prefilled: way.prefilled.map(|number| number as i64),
            from_mempool: way.reconstructed.map(|from| from.from_mempool.into()),
            from_extra_pool: way.reconstructed.map(|from| from.from_extra_pool.into()),
            asked_peers: Some(asked.clone().count() as i64),
            asked_us: asked.map(|(time, _)| since_first(time)).min(),
            answered_us: answered.map(|(time, _)| since_first(time)).min(),
            requested: way.requested.map(|(transactions, _)| transactions as i64),
            requested_bytes: way.requested.map(|(_, bytes)| bytes as i64),
            complete_us: Some(since_first(way.start_ns)),
            connected_us: Some(since_first(way.connected_ns)),
            // From another group of tracepoints.
            flush_us: None,
            race_winner: timeline.race_winner,
            ..report
        }
    }
}
