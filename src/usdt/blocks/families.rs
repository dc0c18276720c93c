//! The metrics of connected blocks.

use super::event::{Announcement, Connected, ConnectionType};
use super::timeline::{Arrival, MODES, Timeline, Way};
use crate::metrics::{Exemplar, Family, Kind, Reading, Row, Sample, reference};
use crate::usdt::histogram::{Block, Buckets, Counted, TXS};
use crate::usdt::subject::{Traced, count, counts_by, one};

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
    pub connected: u64,
    /// Of the block that was connected, raced or reconstructed last.
    pub last_height: Option<i32>,
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
    /// In the order of [`OF_CONNECTION`].
    of_connection: [Counted; 4],
}

impl Counts {
    /// Counts a connected block, with what is known of its way.
    pub fn connected(&mut self, block: &Block, connected: &Connected, way: Option<(&Way, &Timeline)>) {
        let Connected { transactions, inputs, sigops, duration_ns, .. } = *connected;
        self.connected += 1;
        self.last_height = Some(block.height);
        let values = [duration_ns, transactions, inputs, sigops].map(u64::try_from);
        for ((counted, (_, buckets)), value) in self.of_connection.iter_mut().zip(OF_CONNECTION).zip(values) {
            if let Ok(value) = value {
                counted.observe(buckets, value, block);
            }
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

/// Histograms of the arguments of `validation:block_connected`.
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

/// Tracepoints that feed a family: all that it cannot do without, and then others.
struct Sources {
    all: &'static [&'static str],
    needed: usize,
}

/// Of a block that was connected.
const CONNECTED: Sources = Sources { all: &["validation:block_connected"], needed: 1 };
/// Of its way to the node; where a node has the last two, they give it more exactly.
const WAY: Sources = Sources {
    all: &[
        "net:inbound_message",
        "net:outbound_message",
        "validation:block_connected",
        "net:block_header",
        "net:compact_block_reconstructed",
    ],
    needed: 3,
};
/// Each of them has a block's height.
const HEIGHT: Sources = Sources {
    all: &[
        "udp:block_race_winner",
        "udp:block_race_time",
        "udp:block_reconstructed",
        "validation:block_connected",
    ],
    needed: 0,
};

macro_rules! family {
    ($kind:ident $name:literal [$($label:literal),*] $help:literal, $sources:ident, |$counts:ident| $read:expr) => {
        Family {
            name: $name,
            kind: Kind::$kind,
            labels: &[$($label),*],
            help: $help,
            sources: $sources.all,
            read: |traced| {
                let $counts = &traced.totals.0;
                let mut needed = $sources.all.iter().take($sources.needed);
                if needed.all(|source| traced.has_attached(&[*source])) { $read } else { Vec::new() }
            },
        }
    };
}

/// A copy of the counts at one moment.
pub struct Totals(pub Counts);

static FAMILIES: &[Family<Traced<Totals>>] = &[
    family!(Counter "bitcoin_blocks_connected_total" []
        "Blocks connected to the active chain. Not counted: blocks that a check of the database connects again (`verifychain`, \
         `-checklevel=4`), blocks below a UTXO snapshot, and blocks that `reconsiderblock` connects again before others have taken \
         their place. The exporter cannot recognize the first two before it has seen a block of the active chain, but for a check at \
         startup",
        CONNECTED, |c| count(c.connected)),
    family!(Histogram "bitcoin_block_connection_duration_seconds" [] "Time that connecting a block took",
        CONNECTED, |c| shown(&DURATION, c.of_connection[0])),
    family!(Histogram "bitcoin_block_tx_count" [] "Transactions of a connected block",
        CONNECTED, |c| shown(&TXS, c.of_connection[1])),
    family!(Histogram "bitcoin_block_inputs" [] "Inputs of a connected block, with its coinbase's",
        CONNECTED, |c| shown(&TXS, c.of_connection[2])),
    family!(Histogram "bitcoin_block_sigops" [] "Cost of a connected block's signature operations",
        CONNECTED, |c| shown(&SIGOPS, c.of_connection[3])),
    family!(Gauge "fibre_last_block_height" []
        "Height of the block that was connected, raced or, where the node passes its height, reconstructed last. No tracepoint \
         fires when a block is disconnected: after a reorg it is the new tip's when that is connected",
        HEIGHT, |c| c.last_height.map(|height| Sample(Vec::new(), Reading::Value(height.into()))).into_iter().collect()),
    family!(Counter "bitcoin_block_announcements_total" ["by"]
        "Announcements of blocks that were connected, by the message; the first of each peer, until a minute after the \
         block was connected",
        WAY, |c| by(Announcement::LABELS, c.announcements)),
    family!(Counter "bitcoin_block_first_announcements_total" ["connection_type"]
        "Connected blocks by the kind of connection that the peer has that announced them first, as the node calls it; \
         `unknown` until the peer has sent a ping, pong or verack",
        WAY, |c| by(ConnectionType::LABELS, c.first_announcements)),
    family!(Counter "bitcoin_block_arrivals_total" ["by"]
        "Connected blocks by what completed them: a compact block alone, transactions that were requested for one, a whole \
         block, FIBRE; `other` is what nobody announced (a sync, a block of the node's own, one connected again)",
        WAY, |c| by(Arrival::LABELS, c.arrivals)),
    family!(Histogram "bitcoin_block_arrival_seconds" []
        "Time from the first announcement of a block until it was connected",
        WAY, |c| shown(&ARRIVAL, c.arrival_ns)),
    family!(Histogram "bitcoin_block_assembly_seconds" []
        "Time from the first compact block until all transactions were there: as `net:compact_block_reconstructed` says it, where \
         the node has that, else when it began to connect the block",
        WAY, |c| shown(&ASSEMBLY, c.assembly_ns)),
    family!(Counter "bitcoin_compact_blocks_received_total" ["mode"]
        "Compact blocks received of blocks that were connected, until a minute after: high_bandwidth ones come as the \
         announcement, low_bandwidth ones were asked for",
        WAY, |c| by(MODES, c.compact_blocks)),
    family!(Histogram "bitcoin_compact_block_requested_transactions" []
        "Transactions that were requested to complete a compact block, of connected blocks that a compact block brought",
        WAY, |c| shown(&TXS, c.requested_transactions)),
    family!(Histogram "bitcoin_compact_block_requested_bytes" []
        "Bytes of the transactions that were requested, of connected blocks that a compact block brought",
        WAY, |c| shown(&BYTES, c.requested_bytes)),
    family!(Histogram "bitcoin_compact_block_prefilled_transactions" []
        "Transactions that a compact block itself contained, of connected blocks that a compact block brought",
        WAY, |c| shown(&TXS, c.prefilled_transactions)),
    family!(Histogram "bitcoin_compact_block_roundtrip_seconds" []
        "Time from a getblocktxn to its blocktxn, of connected blocks and before they were connected",
        WAY, |c| shown(&ASSEMBLY, c.roundtrip_ns)),
    family!(Histogram "bitcoin_block_header_age_seconds" []
        "Delay between the time in a connected block's header and its first announcement, of 0 to 7200 s: others come from a clock that \
         is wrong, or of a block that was announced late",
        WAY, |c| shown(&HEADER_AGE, c.header_age_ns)),
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
    FAMILIES.iter().filter(move |family| family.sources.contains(&tracepoint)).map(|family| family.name)
}

pub fn families() -> &'static [Family<Traced<Totals>>] {
    FAMILIES
}
