//! The report of a connected block, which is logged, written to the block log as a row, and shown on the page.

use rusqlite::ToSql;
use serde::Serialize;
use tracing::info;

use super::event::ConnectedBlock;
use super::trace::{ArrivalMethod, BlockArrival, Timeline};
use crate::usdt::histogram::BlockId;
use crate::usdt::maps;

/// Generates from a list of fields the struct `BlockReport`, its log line, and its columns of the block log.
macro_rules! block_report {
    ($($field:ident: $type:ty,)*) => {
        /// The report of a connected block: the block's contents, and the stages of its arrival. `docs/journal.md`
        /// describes each field. Times of stages (`_us`) are measured from the first announcement. The time of a stage
        /// that did not occur is `None`. If no peer announced the block, all fields from `announced_by` on are `None`.
        #[derive(Clone, Debug, Default, PartialEq, Serialize)]
        #[allow(missing_docs, reason = "in docs/journal.md")]
        pub struct BlockReport {
            /// Time of the connection, Unix seconds. The log line omits this field, because every log line has a
            /// timestamp.
            pub time: f64,
            $(pub $field: $type,)*
        }

        impl BlockReport {
            /// Logs the report as one line with all fields except `time`.
            pub fn log(&self) {
                info!($($field = self.$field,)* "block connected");
            }

            /// Name and value of each column of the report's row in the block log.
            pub fn columns(&self) -> Vec<(&'static str, &dyn ToSql)> {
                vec![("time", &self.time as &dyn ToSql), $((stringify!($field), &self.$field)),*]
            }
        }
    };
}

// A new field also needs a migration in block_log/file.rs and a line in docs/journal.md.
block_report! {
    block_height: i64,
    block_hash: String,
    transactions: i64,
    inputs: i64,
    sigops: i64,
    duration_us: i64,
    arrival: &'static str,
    announced_by: Option<&'static str>,
    announced_peer: Option<i64>,
    announcements: Option<i64>,
    header_age_ms: Option<i64>,
    compact_blocks: Option<i64>,
    compact_us: Option<i64>,
    short_ids: Option<i64>,
    prefilled: Option<i64>,
    asked_peers: Option<i64>,
    asked_us: Option<i64>,
    answered_us: Option<i64>,
    from_mempool: Option<i64>,
    from_extra_pool: Option<i64>,
    requested: Option<i64>,
    requested_bytes: Option<i64>,
    complete_us: Option<i64>,
    connected_us: Option<i64>,
    flush_us: Option<i64>,
    race_winner: Option<&'static str>,
}

/// The result of a race between FIBRE/UDP and compact blocks for one block.
#[derive(Clone, Debug, Serialize)]
pub struct Race {
    /// Time at which FIBRE reported the result, Unix seconds.
    pub time: f64,
    pub block_height: i32,
    pub block_hash: String,
    /// Nanoseconds until FIBRE/UDP had delivered the block; `None` if FIBRE/UDP did not deliver it.
    pub udp_ns: Option<i64>,
    /// Nanoseconds until a compact block had delivered the block; `None` if no compact block delivered it.
    pub compact_ns: Option<i64>,
}

impl BlockReport {
    /// Creates the report of a connected block. `arrival` is `None` if no peer announced the block.
    pub(super) fn new(
        block: &BlockId,
        connected: &ConnectedBlock,
        arrival: Option<(&BlockArrival, &Timeline)>,
    ) -> Self {
        let report = BlockReport {
            time: block.time,
            block_height: block.height.into(),
            block_hash: maps::hash(&block.hash),
            transactions: connected.transactions,
            inputs: connected.inputs,
            sigops: connected.sigops,
            duration_us: connected.duration_ns / 1000,
            arrival: ArrivalMethod::Other.label(),
            ..BlockReport::default()
        };
        let Some((arrival, timeline)) = arrival else { return report };
        let since_first = |time: u64| (time.saturating_sub(timeline.first_ns) / 1000) as i64;
        let sum = |counts: &[u64]| Some(counts.iter().sum::<u64>() as i64);
        let asked = timeline.peers.iter().filter_map(|peer| peer.asked);
        let answered = timeline.peers.iter().filter_map(|peer| peer.answered);
        BlockReport {
            arrival: arrival.arrival.label(),
            announced_by: Some(timeline.first_by.label()),
            announced_peer: Some(timeline.first_peer),
            announcements: sum(&timeline.announcements),
            header_age_ms: arrival.header_age_ns.map(|age| (age / 1_000_000) as i64),
            compact_blocks: sum(&timeline.compact_blocks),
            compact_us: timeline.first_compact_ns().map(since_first),
            short_ids: arrival.compact.map(|compact| compact.short_ids as i64),
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
            race_winner: timeline.race_winner,
            ..report
        }
    }
}
