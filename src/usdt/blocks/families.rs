//! The metrics of connected blocks.

use super::event::{Announcement, Connected, ConnectionType};
use super::timeline::{Arrival, MODES, Timeline, Way};
use crate::metrics::{Exemplar, Family, Kind, Row, Sample, reference};
use crate::usdt::histogram::{Block, Buckets, Counted, TXS};
use crate::usdt::subject::{Traced, counts_by, one};
use crate::usdt::validation::{DURATION, SIGOPS};

const ARRIVAL: Buckets =
    Buckets::new(1e9, &[0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0]);
const ASSEMBLY: Buckets =
    Buckets::new(1e9, &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0]);
const HEADER_AGE: Buckets =
    Buckets::new(1e9, &[1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 7200.0]);
const BYTES: Buckets = Buckets::new(
    1.0,
    &[
        0.0,
        250.0,
        1000.0,
        5000.0,
        10_000.0,
        50_000.0,
        100_000.0,
        250_000.0,
        500_000.0,
        1_000_000.0,
        2_000_000.0,
        4_000_000.0,
    ],
);

/// What has been counted of connected blocks.
#[derive(Clone, Copy, Default)]
pub struct Counts {
    pub announcements: [u64; Announcement::LABELS.len()],
    pub first_announcements: [u64; ConnectionType::LABELS.len()],
    pub arrivals: [u64; Arrival::LABELS.len()],
    pub compact_blocks: [u64; MODES.len()],
    pub arrival_ns: Counted,
    pub assembly_ns: Counted,
    pub requested_transactions: Counted,
    pub requested_bytes: Counted,
    pub prefilled_transactions: Counted,
    pub roundtrip_ns: Counted,
    pub header_age_ns: Counted,
    /// What the programs count; here for the exemplars alone.
    of_connection: [Counted; 4],
}

impl Counts {
    /// Counts a connected block, with what is known of its way.
    pub fn connected(&mut self, block: &Block, connected: &Connected, way: Option<(&Way, &Timeline)>) {
        let Connected { transactions, inputs, sigops, duration_ns, .. } = *connected;
        let values = [duration_ns, transactions, inputs, sigops].map(|value| value as u64);
        for ((counted, (_, buckets)), value) in self.of_connection.iter_mut().zip(OF_CONNECTION).zip(values) {
            counted.observe(buckets, value, block);
        }
        let Some((way, timeline)) = way else {
            self.arrivals[Arrival::Other as usize] += 1;
            return;
        };
        self.arrivals[way.arrival as usize] += 1;
        for (count, more) in self.announcements.iter_mut().zip(timeline.announcements) {
            *count += more;
        }
        for (count, more) in self.compact_blocks.iter_mut().zip(timeline.compact_blocks) {
            *count += more;
        }
        self.arrival_ns.observe(&ARRIVAL, way.connected_ns.saturating_sub(timeline.first_ns), block);
        if let Some(first) = timeline.first_compact_ns() {
            self.assembly_ns.observe(&ASSEMBLY, way.start_ns.saturating_sub(first), block);
        }
        for peer in &timeline.peers {
            if let (Some((asked, _)), Some((answered, _))) = (peer.asked, peer.answered) {
                self.roundtrip_ns.observe(&ASSEMBLY, answered.saturating_sub(asked), block);
            }
        }
        if let Some(age) = way.header_age_ns {
            self.header_age_ns.observe(&HEADER_AGE, age, block);
        }
        if let Some((transactions, bytes)) = way.requested {
            self.requested_transactions.observe(&TXS, transactions, block);
            self.requested_bytes.observe(&BYTES, bytes, block);
        }
        if let Some(prefilled) = way.prefilled {
            self.prefilled_transactions.observe(&TXS, prefilled, block);
        }
    }
}

/// Histograms of `validation:block_connected`, which the programs count.
const OF_CONNECTION: [(&str, &Buckets); 4] = [
    ("bitcoin_block_connection_duration_seconds", &DURATION),
    ("bitcoin_block_tx_count", &TXS),
    ("bitcoin_block_inputs", &TXS),
    ("bitcoin_block_sigops", &SIGOPS),
];

/// The last block in each bucket of each histogram.
pub fn exemplars(totals: &Totals) -> Vec<Exemplar> {
    let counts = &totals.0;
    let ours = [
        ("bitcoin_block_arrival_seconds", &ARRIVAL, &counts.arrival_ns),
        ("bitcoin_block_assembly_seconds", &ASSEMBLY, &counts.assembly_ns),
        ("bitcoin_compact_block_requested_transactions", &TXS, &counts.requested_transactions),
        ("bitcoin_compact_block_requested_bytes", &BYTES, &counts.requested_bytes),
        ("bitcoin_compact_block_prefilled_transactions", &TXS, &counts.prefilled_transactions),
        ("bitcoin_compact_block_roundtrip_seconds", &ASSEMBLY, &counts.roundtrip_ns),
        ("bitcoin_block_header_age_seconds", &HEADER_AGE, &counts.header_age_ns),
    ];
    let of_connection = OF_CONNECTION.iter().zip(&counts.of_connection);
    let of_connection = of_connection.map(|(&(family, buckets), counted)| (family, buckets, counted));
    ours.into_iter()
        .chain(of_connection)
        .flat_map(|(family, buckets, counted)| counted.exemplars(family, buckets))
        .collect()
}

/// Which tracepoints all of this needs.
const NEEDED: [&str; 3] = ["net:inbound_message", "net:outbound_message", "validation:block_connected"];
/// These, and those that say it better where a node has them.
const SOURCES: [&str; 5] =
    [NEEDED[0], NEEDED[1], NEEDED[2], "net:block_header", "net:compact_block_reconstructed"];

macro_rules! family {
    ($kind:ident $name:literal [$($label:literal),*] $help:literal, |$counts:ident| $read:expr) => {
        Family {
            name: $name,
            kind: Kind::$kind,
            labels: &[$($label),*],
            help: $help,
            sources: &SOURCES,
            read: |traced| {
                let $counts = &traced.totals.0;
                if NEEDED.iter().all(|source| traced.has_attached(&[*source])) { $read } else { Vec::new() }
            },
        }
    };
}

/// A copy of the counts at one moment.
pub struct Totals(pub Counts);

static FAMILIES: &[Family<Traced<Totals>>] = &[
    family!(Counter "bitcoin_block_announcements_total" ["by"]
        "Announcements of blocks that were connected, by the message; the first of each peer, until a minute after the \
         block was connected",
        |c| by(Announcement::LABELS, c.announcements)),
    family!(Counter "bitcoin_block_first_announcements_total" ["connection_type"]
        "Connected blocks by the kind of connection that the peer has that announced them first, as the node calls it; \
         `unknown` until the peer has sent a ping, pong or verack",
        |c| by(ConnectionType::LABELS, c.first_announcements)),
    family!(Counter "bitcoin_block_arrivals_total" ["by"]
        "Connected blocks by what completed them: a compact block alone, transactions that were requested for one, a whole \
         block, FIBRE; `other` is what nobody announced (a sync, a block of the node's own, one connected again)",
        |c| by(Arrival::LABELS, c.arrivals)),
    family!(Histogram "bitcoin_block_arrival_seconds" []
        "Time from the first announcement of a block until it was connected",
        |c| shown(&ARRIVAL, c.arrival_ns)),
    family!(Histogram "bitcoin_block_assembly_seconds" []
        "Time from the first compact block until all transactions were there: as `net:compact_block_reconstructed` says it, where \
         the node has that, else when it began to connect the block",
        |c| shown(&ASSEMBLY, c.assembly_ns)),
    family!(Counter "bitcoin_compact_blocks_received_total" ["mode"]
        "Compact blocks received of blocks that were connected, until a minute after: high_bandwidth ones come as the \
         announcement, low_bandwidth ones were asked for",
        |c| by(MODES, c.compact_blocks)),
    family!(Histogram "bitcoin_compact_block_requested_transactions" []
        "Transactions that were requested to complete a compact block, of connected blocks that a compact block brought",
        |c| shown(&TXS, c.requested_transactions)),
    family!(Histogram "bitcoin_compact_block_requested_bytes" []
        "Bytes of the transactions that were requested, of connected blocks that a compact block brought",
        |c| shown(&BYTES, c.requested_bytes)),
    family!(Histogram "bitcoin_compact_block_prefilled_transactions" []
        "Transactions that a compact block itself contained, of connected blocks that a compact block brought",
        |c| shown(&TXS, c.prefilled_transactions)),
    family!(Histogram "bitcoin_compact_block_roundtrip_seconds" []
        "Time from a getblocktxn to its blocktxn, of connected blocks and before they were connected",
        |c| shown(&ASSEMBLY, c.roundtrip_ns)),
    family!(Histogram "bitcoin_block_header_age_seconds" []
        "Time from that in the header of a connected block until its first announcement, where it is positive",
        |c| shown(&HEADER_AGE, c.header_age_ns)),
];

fn by<const N: usize>(labels: [&'static str; N], counts: [u64; N]) -> Vec<Sample> {
    counts_by(labels.into_iter().zip(counts))
}

fn shown(buckets: &Buckets, counted: Counted) -> Vec<Sample> {
    one(counted.reading(buckets))
}

/// Lines of `METRICS.md`.
pub fn rows() -> Vec<Row> {
    reference(FAMILIES)
}

/// The metrics that this tracepoint feeds.
pub fn fed_by(tracepoint: &str) -> impl Iterator<Item = &'static str> {
    FAMILIES.iter().filter(move |_| SOURCES.contains(&tracepoint)).map(|family| family.name)
}

pub fn families() -> &'static [Family<Traced<Totals>>] {
    FAMILIES
}
