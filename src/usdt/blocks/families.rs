//! The metrics about connected blocks, and about the arrival of blocks at the node.

use super::event::{Announcement, ConnectedBlock, ConnectionType};
use super::trace::{ArrivalMethod, BlockArrival, MODES};
use crate::metrics::{Family, counter, gauge, histogram};
use crate::usdt::histogram::{BlockId, Buckets, CountedHistogram, TXS};

const DURATION: Buckets =
    Buckets::new(1e9, &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0]);
const SIGOPS: Buckets =
    Buckets::new(1.0, &[0.0, 100.0, 1000.0, 5000.0, 10000.0, 20000.0, 30000.0, 40000.0, 60000.0, 80000.0]);
const ARRIVAL: Buckets =
    Buckets::new(1e9, &[0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0]);
const ASSEMBLY: Buckets =
    Buckets::new(1e9, &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0]);
const HEADER_AGE: Buckets =
    Buckets::new(1e9, &[1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 7200.0]);
#[rustfmt::skip]
const BYTES: Buckets = Buckets::new(1.0, &[
    0.0, 250.0, 1000.0, 5000.0, 10_000.0, 50_000.0, 100_000.0, 250_000.0, 500_000.0, 1_000_000.0, 2_000_000.0, 4_000_000.0,
]);

/// The counts behind the metrics about blocks: connected blocks, their announcements and their arrivals.
#[derive(Clone, Copy, Default)]
pub struct BlockCounts {
    pub connected: u64,
    /// Height of the last block that was connected, for which FIBRE reported a race (its comparison of relay
    /// mechanisms), or that FIBRE reconstructed.
    pub last_height: Option<i32>,
    pub announcements: [u64; Announcement::LABELS.len()],
    pub first_announcements: [u64; ConnectionType::LABELS.len()],
    pub arrivals: [u64; ArrivalMethod::LABELS.len()],
    pub compact_blocks: [u64; MODES.len()],
    pub arrival_ns: CountedHistogram,
    pub assembly_ns: CountedHistogram,
    pub requested_transactions: CountedHistogram,
    pub requested_bytes: CountedHistogram,
    pub prefilled_transactions: CountedHistogram,
    pub mempool_transactions: CountedHistogram,
    pub extra_pool_transactions: CountedHistogram,
    pub roundtrip_ns: CountedHistogram,
    pub header_age_ns: CountedHistogram,
    duration_ns: CountedHistogram,
    transactions: CountedHistogram,
    inputs: CountedHistogram,
    sigops: CountedHistogram,
}

impl BlockCounts {
    /// Counts a connected block, which arrived by `method`. `arrival` is `None` if no peer announced the block.
    pub fn connected(
        &mut self,
        block: &BlockId,
        connected: &ConnectedBlock,
        method: ArrivalMethod,
        arrival: Option<&BlockArrival>,
    ) {
        self.connected += 1;
        self.last_height = Some(block.height);
        for (counted, buckets, value) in [
            (&mut self.duration_ns, &DURATION, connected.duration_ns),
            (&mut self.transactions, &TXS, connected.transactions),
            (&mut self.inputs, &TXS, connected.inputs),
            (&mut self.sigops, &SIGOPS, connected.sigops),
        ] {
            if let Ok(value) = u64::try_from(value) {
                counted.observe(buckets, value, block);
            }
        }
        self.arrivals[method as usize] += 1;
        let Some(arrival) = arrival else { return };
        let timeline = arrival.timeline;
        for (count, added) in self.announcements.iter_mut().zip(timeline.announcements) {
            *count += added;
        }
        for (count, added) in self.compact_blocks.iter_mut().zip(timeline.compact_blocks) {
            *count += added;
        }
        self.arrival_ns.observe(&ARRIVAL, arrival.connected_ns.saturating_sub(timeline.first_ns), block);
        if let Some(first) = timeline.first_compact_ns() {
            self.assembly_ns.observe(&ASSEMBLY, arrival.start_ns.saturating_sub(first), block);
        }
        for peer in timeline.peers.values() {
            if let (Some((asked, _)), Some((answered, _))) = (peer.asked, peer.answered) {
                self.roundtrip_ns.observe(&ASSEMBLY, answered.saturating_sub(asked), block);
            }
        }
        if let Some(age) = arrival.header_age_ns {
            self.header_age_ns.observe(&HEADER_AGE, age, block);
        }
        if let Some((transactions, bytes)) = arrival.requested {
            self.requested_transactions.observe(&TXS, transactions, block);
            self.requested_bytes.observe(&BYTES, bytes, block);
        }
        if let Some(prefilled) = arrival.prefilled {
            self.prefilled_transactions.observe(&TXS, prefilled, block);
        }
        if let Some(from) = arrival.reconstructed {
            self.mempool_transactions.observe(&TXS, from.from_mempool.into(), block);
            self.extra_pool_transactions.observe(&TXS, from.from_extra_pool.into(), block);
        }
    }
}

/// Tracepoints that feed the metrics about a block's arrival. [`REQUIRED_ARRIVAL_SOURCES`] are required. The other
/// tracepoints are optional, and make the metrics more accurate.
pub const ARRIVAL_SOURCES: &[&str] = &[
    "net:inbound_message",
    "net:outbound_message",
    "validation:block_connected",
    "net:block_header",
    "net:compact_block_reconstructed",
];
/// Tracepoints without which the metrics about a block's arrival are not exported.
pub const REQUIRED_ARRIVAL_SOURCES: &[&str] = ARRIVAL_SOURCES.split_at(3).0;
/// Tracepoints that feed the metrics about the node's report of a reconstructed compact block. All are required.
pub const REPORT_SOURCES: &[&str] =
    &["net:compact_block_reconstructed", "net:inbound_message", "validation:block_connected"];
const CONNECTED: &[&str] = &["validation:block_connected"];
/// Tracepoints that have a block's height among their arguments.
const HEIGHT: &[&str] = &[
    "udp:block_race_winner",
    "udp:block_race_time",
    "udp:block_reconstructed",
    "validation:block_connected",
];

/// The metrics about blocks, with these counts as their values.
pub fn families(c: &BlockCounts) -> Vec<Family> {
    connection_families(c).into_iter().chain(arrival_families(c)).collect()
}

/// The metrics about the connection of blocks, and about the contents of the connected blocks.
#[rustfmt::skip]
fn connection_families(c: &BlockCounts) -> Vec<Family> {
    vec![
        counter("bitcoin_blocks_connected_total",
            "Blocks connected to the active chain. Three kinds of blocks are not counted: blocks that a check of the \
             database reconnects (`verifychain`, `-checklevel=4`), blocks below a UTXO snapshot, and blocks that \
             `reconsiderblock` reconnects before other blocks have replaced them. Except for a check at startup, the \
             exporter recognizes the first two kinds only after it has seen a block of the active chain", CONNECTED)
            .value(c.connected),
        counted("bitcoin_block_connection_duration_seconds", "Time to connect a block", CONNECTED, &DURATION, &c.duration_ns),
        counted("bitcoin_block_tx_count", "Transactions in a connected block", CONNECTED, &TXS, &c.transactions),
        counted("bitcoin_block_inputs",
            "Transaction inputs in a connected block, including the input of the coinbase", CONNECTED, &TXS, &c.inputs),
        counted("bitcoin_block_sigops", "Signature operation cost of a connected block", CONNECTED, &SIGOPS, &c.sigops),
        gauge("fibre_last_block_height",
            "Height of the last block that was connected, took part in a FIBRE race or (if the tracepoint has its height) was reconstructed. No tracepoint fires when a block is disconnected, so after a reorg the value changes when the first block of the new branch is connected", HEIGHT)
            .value_if_known(c.last_height.map(f64::from)),
    ]
}

/// The metrics about the arrival of blocks.
#[rustfmt::skip]
fn arrival_families(c: &BlockCounts) -> Vec<Family> {
    vec![
        counter("bitcoin_block_announcements_total",
            "Announcements of connected blocks, by message type. Only the first announcement by each peer is counted, and only until a minute after the block was connected", ARRIVAL_SOURCES).by(&["by"]).samples(by(Announcement::LABELS, c.announcements)),
        counter("bitcoin_block_first_announcements_total",
            "Connected blocks by connection type of the first announcing peer, as named by the node; `unknown` if \
             the peer had not sent a ping, pong or verack yet", ARRIVAL_SOURCES)
            .by(&["connection_type"]).samples(by(ConnectionType::LABELS, c.first_announcements)),
        counter("bitcoin_block_arrivals_total",
            "Connected blocks by the way in which the node received them: `compact_complete` (a compact block \
             without requests), `compact_requested` (a compact block and requested transactions), `full_block` (a \
             full block), `fibre` (FIBRE), `other` (neither announced nor by FIBRE: a sync, a block \
             mined by the node, a reconnected block)", ARRIVAL_SOURCES)
            .by(&["by"]).samples(by(ArrivalMethod::LABELS, c.arrivals)),
        counted("bitcoin_block_arrival_seconds", "Time from the first announcement of a block until its connection",
            ARRIVAL_SOURCES, &ARRIVAL, &c.arrival_ns),
        counted("bitcoin_block_assembly_seconds",
            "Time from the first compact block until all transactions of the block had arrived. The time ends at the \
             tracepoint `net:compact_block_reconstructed`, or, if the node does not have this tracepoint, when the \
             node begins to connect the block", ARRIVAL_SOURCES, &ASSEMBLY, &c.assembly_ns),
        counter("bitcoin_compact_blocks_received_total",
            "Compact blocks received for connected blocks, by mode, until a minute after the block was connected: a `high_bandwidth` compact block is itself the announcement, a `low_bandwidth` compact block was requested by the node", ARRIVAL_SOURCES)
            .by(&["mode"]).samples(by(MODES, c.compact_blocks)),
        counted("bitcoin_compact_block_requested_transactions",
            "Transactions requested to complete a compact block, for connected blocks that arrived as a compact block",
            ARRIVAL_SOURCES, &TXS, &c.requested_transactions),
        counted("bitcoin_compact_block_requested_bytes",
            "Bytes of the transactions requested to complete a compact block, for connected blocks that arrived as a compact block",
            ARRIVAL_SOURCES, &BYTES, &c.requested_bytes),
        counted("bitcoin_compact_block_prefilled_transactions",
            "Transactions prefilled in a compact block, for connected blocks that arrived as a compact block",
            ARRIVAL_SOURCES, &TXS, &c.prefilled_transactions),
        counted("bitcoin_compact_block_mempool_transactions",
            "Transactions of a compact block that the node found in its mempool, for connected blocks that arrived \
             as a compact block", REPORT_SOURCES, &TXS, &c.mempool_transactions),
        counted("bitcoin_compact_block_extra_pool_transactions",
            "Transactions of a compact block that the node found in its extra pool (orphan, replaced and rejected \
             transactions), for connected blocks that arrived as a compact block", REPORT_SOURCES, &TXS, &c.extra_pool_transactions),
        counted("bitcoin_compact_block_roundtrip_seconds",
            "Time from sending a getblocktxn message until receiving the blocktxn response, for connected blocks; \
             responses after the block was connected are omitted", ARRIVAL_SOURCES, &ASSEMBLY, &c.roundtrip_ns),
        counted("bitcoin_block_header_age_seconds",
            "Delay between a block's header timestamp and its first announcement, for connected blocks; delays \
             outside 0 to 7200 s are omitted, because a wrong clock or a late announcement causes them",
             ARRIVAL_SOURCES, &HEADER_AGE, &c.header_age_ns),
    ]
}

/// A histogram metric with these buckets, in which each connected block counts with one value.
fn counted(
    name: &'static str,
    help: &'static str,
    sources: &'static [&'static str],
    buckets: &Buckets,
    counts: &CountedHistogram,
) -> Family {
    histogram(name, help, sources, buckets.bounds).value(counts.histogram(buckets))
}

/// Pairs each label value with the count at the same index.
fn by<const N: usize>(
    labels: [&'static str; N],
    counts: [u64; N],
) -> impl Iterator<Item = ([&'static str; 1], u64)> {
    labels.into_iter().zip(counts).map(|(label, count)| ([label], count))
}
