//! Makes the report of a connected block, for the log, the block log and the HTML page, from the block's timeline.

use serde::Serialize;

use super::event::ConnectedBlock;
use super::trace::{ArrivalMethod, BlockArrival};
use crate::block_log::BlockReport;
use crate::usdt::histogram::BlockId;
use crate::usdt::maps;

/// The result of a race for one block, as FIBRE reports it: how long FIBRE/UDP and compact blocks took to deliver the
/// block, and which of these mechanisms was first.
#[derive(Clone, Debug, Serialize)]
pub struct Race {
    /// Time at which FIBRE reported the result of the race, Unix seconds.
    pub time: f64,
    pub block_height: i32,
    pub block_hash: String,
    /// Label value of the relay mechanism that delivered the block first; `None` if FIBRE has not reported which
    /// mechanism was first.
    pub winner: Option<&'static str>,
    /// Nanoseconds from the first data over FIBRE/UDP to the connection of the block; `None` if FIBRE/UDP took no part.
    pub udp_ns: Option<i64>,
    /// Nanoseconds from the first compact block to the connection of the block; `None` if no compact block arrived.
    pub compact_ns: Option<i64>,
}

impl BlockReport {
    /// Creates the report of a connected block, which arrived by `method`. `arrival` is `None` if no peer announced the
    /// block.
    pub(super) fn new(
        block: &BlockId,
        connected: &ConnectedBlock,
        method: ArrivalMethod,
        arrival: Option<&BlockArrival>,
    ) -> Self {
        let report = BlockReport {
            time: block.time,
            block_height: block.height.into(),
            block_hash: maps::hash(&block.hash),
            transactions: Some(connected.transactions),
            inputs: Some(connected.inputs),
            sigops: Some(connected.sigops),
            duration_us: Some(connected.duration_ns / 1000),
            arrival: Some(method.label()),
            ..BlockReport::default()
        };
        let Some(arrival) = arrival else { return report };
        let timeline = arrival.timeline;
        let since_first = |time: u64| (time.saturating_sub(timeline.first_ns) / 1000) as i64;
        let sum = |counts: &[u64]| Some(counts.iter().sum::<u64>() as i64);
        let asked = timeline.peers.values().filter_map(|peer| peer.asked);
        let answered = timeline.peers.values().filter_map(|peer| peer.answered);
        BlockReport {
            announced_by: Some(timeline.first_by.label()),
            announced_peer: Some(timeline.first_peer),
            announcements: sum(&timeline.announcements),
            header_us: timeline.header_ns.map(since_first),
            header_age_ms: arrival.header_age_ns.map(|age| (age / 1_000_000) as i64),
            compact_blocks: sum(&timeline.compact_blocks),
            compact_us: timeline.first_compact_ns().map(since_first),
            short_ids: arrival.short_ids.map(|ids| ids as i64),
            prefilled: arrival.prefilled.map(|number| number as i64),
            from_mempool: arrival.reconstructed.map(|from| from.from_mempool.into()),
            from_extra_pool: arrival.reconstructed.map(|from| from.from_extra_pool.into()),
            asked_peers: Some(asked.clone().count() as i64),
            asked_us: asked.map(|(time, _)| since_first(time)).min(),
            answered_us: answered.map(|(time, _)| since_first(time)).min(),
            requested: arrival.requested.map(|(transactions, _)| transactions as i64),
            requested_bytes: arrival.requested.map(|(_, bytes)| bytes as i64),
            complete_us: Some(since_first(arrival.start_ns)),
            connected_us: Some(since_first(arrival.connected_ns)),
            // The tracker sets this field, because flushes are events of another tracepoint group.
            flush_us: None,
            ..report
        }
    }
}
