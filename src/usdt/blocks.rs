//! A block's way to the node: who announced it, what was asked for, when it was complete.
//!
//! The programs copy the beginnings of the messages that tell of a block; they are put together here by the block's hash,
//! when the node has connected the block. What was never connected is not counted.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use tracing::info;

use super::events::LineLimit;
use super::histogram::{Buckets, Counted, TXS};
use super::maps;
use super::subject::{Traced, counts_by, one};
use crate::metrics::{Family, Kind, Row, Sample, now, reference};

/// Limit on blocks that are followed at a time.
const MAX_BLOCKS: usize = 64;
/// Limit on peers that are remembered of one block.
const MAX_PEERS: usize = 256;
/// Limit on complete deliveries, or what looks like one, that are remembered of one block.
const MAX_DELIVERIES: usize = 32;
/// Messages that come so long after the block was connected still count. Later than this, a peer that has just connected
/// tells which blocks it has.
const LATE: Duration = Duration::from_secs(60);

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

/// The hash of a block, as the node has it in memory.
pub(super) type Hash = [u8; 32];

/// Something that happened to a block.
pub(super) struct Event {
    /// When, on the monotonic clock, in nanoseconds.
    pub time_ns: u64,
    pub hash: Hash,
    pub what: What,
}

/// What happened. `peer` is the node's number for it.
pub(super) enum What {
    /// An inv, or a header in headers.
    Announced { peer: i64, by: Announcement },
    /// A cmpctblock came.
    Compact { peer: i64, compact: Compact },
    /// A getdata was sent.
    Fetched { peer: i64, is_compact: bool },
    /// A getblocktxn was sent.
    Asked { peer: i64, transactions: u64 },
    /// A blocktxn came.
    Answered { peer: i64, bytes: u64 },
    /// A block came.
    Whole { peer: i64 },
    /// FIBRE has put it together.
    Fibre,
    /// The node connected it.
    Connected(Connected),
}

/// A block that was connected.
pub(super) struct Connected {
    pub height: i32,
    pub transactions: i64,
    pub inputs: i64,
    pub sigops: i64,
    pub duration_ns: i64,
}

/// How a block is announced.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Announcement {
    /// With the time in the header, Unix seconds.
    Headers(u32),
    Inv,
    /// A cmpctblock that was not asked for, with the time in its header.
    Compact(u32),
}

impl Announcement {
    const LABELS: [&'static str; 3] = ["headers", "inv", "cmpctblock"];

    fn number(self) -> usize {
        match self {
            Announcement::Headers(_) => 0,
            Announcement::Inv => 1,
            Announcement::Compact(_) => 2,
        }
    }

    fn label(self) -> &'static str {
        Self::LABELS[self.number()]
    }

    fn header_time(self) -> Option<u32> {
        match self {
            Announcement::Headers(time) | Announcement::Compact(time) => Some(time),
            Announcement::Inv => None,
        }
    }
}

/// A compact block.
#[derive(Clone, Copy)]
pub(super) struct Compact {
    /// In its header, Unix seconds.
    pub header_time: u32,
    pub short_ids: u64,
    /// Unknown if the message ends before it.
    pub prefilled: Option<u64>,
}

/// How a block came that was connected.
#[derive(Clone, Copy, PartialEq)]
enum Arrival {
    CompactComplete,
    CompactRequested,
    FullBlock,
    Fibre,
    Other,
}

impl Arrival {
    const LABELS: [&'static str; 5] =
        ["compact_complete", "compact_requested", "full_block", "fibre", "other"];

    fn label(self) -> &'static str {
        Self::LABELS[self as usize]
    }
}

/// `mode` of a compact block: sent as the announcement, or asked for.
const MODES: [&str; 2] = ["high_bandwidth", "low_bandwidth"];

/// What has been counted of connected blocks.
#[derive(Clone, Copy, Default)]
struct Counts {
    announcements: [u64; Announcement::LABELS.len()],
    arrivals: [u64; Arrival::LABELS.len()],
    compact_blocks: [u64; MODES.len()],
    arrival_ns: Counted,
    assembly_ns: Counted,
    requested_transactions: Counted,
    requested_bytes: Counted,
    prefilled_transactions: Counted,
    roundtrip_ns: Counted,
    header_age_ns: Counted,
}

/// What one peer has to do with a block.
struct Peer {
    id: i64,
    has_announced: bool,
    /// It was asked for a compact block that has not come yet.
    owes_compact: bool,
    compact: Option<Compact>,
    /// When it was asked for transactions, and for how many.
    asked: Option<(u64, u64)>,
    /// When these came, and their bytes.
    answered: Option<(u64, u64)>,
}

/// What is known of a block.
struct Timeline {
    hash: Hash,
    first_ns: u64,
    first_peer: i64,
    first_by: Announcement,
    header_time: Option<u32>,
    first_compact_ns: Option<u64>,
    peers: Vec<Peer>,
    announcements: [u64; Announcement::LABELS.len()],
    compact_blocks: [u64; MODES.len()],
    /// Messages after which the block may have been complete: when, from whom, and how it came.
    deliveries: VecDeque<(u64, i64, Arrival)>,
    fibre_ns: Option<u64>,
    connected_ns: Option<u64>,
}

impl Timeline {
    /// `None` if too many are remembered.
    fn peer(&mut self, id: i64) -> Option<&mut Peer> {
        let position = match self.peers.iter().position(|peer| peer.id == id) {
            Some(position) => position,
            None if self.peers.len() >= MAX_PEERS => return None,
            None => {
                self.peers.push(Peer {
                    id,
                    has_announced: false,
                    owes_compact: false,
                    compact: None,
                    asked: None,
                    answered: None,
                });
                self.peers.len() - 1
            }
        };
        self.peers.get_mut(position)
    }

    fn deliver(&mut self, time_ns: u64, peer: i64, arrival: Arrival) {
        if self.deliveries.len() == MAX_DELIVERIES {
            self.deliveries.pop_front();
        }
        self.deliveries.push_back((time_ns, peer, arrival));
    }

    /// What completed the block, as far as the messages tell: what came last before the node began to connect it. The node
    /// handles one message after the other. FIBRE works beside them, and goes on as soon as it has a block.
    fn arrival(&self, start_ns: u64) -> (Arrival, Option<&Peer>) {
        if self.fibre_ns.is_some_and(|time| time <= start_ns) {
            return (Arrival::Fibre, None);
        }
        let Some(&(_, id, arrival)) = self.deliveries.iter().rfind(|(time, ..)| *time <= start_ns) else {
            return (Arrival::Other, None);
        };
        let peer = self.peers.iter().find(|peer| peer.id == id);
        match (arrival, peer) {
            // Transactions were missing, and the block came from elsewhere before they did: submitted by RPC, say.
            (Arrival::CompactComplete, Some(Peer { asked: Some(_), .. })) => (Arrival::Other, None),
            _ => (arrival, peer),
        }
    }
}

#[derive(Default)]
struct State {
    /// In the order in which they were first seen.
    timelines: VecDeque<Timeline>,
    counts: Counts,
    /// Events that are not worked off yet.
    queue: Vec<Event>,
    /// For blocks that were announced, and for others: a sync does not push out the lines of the former.
    announced_limit: LineLimit,
    other_limit: LineLimit,
}

/// The blocks that are followed, and what was counted of those that were connected.
#[derive(Default)]
pub(super) struct Blocks(Mutex<State>);

/// Which tracepoints all of this needs.
const SOURCES: [&str; 3] = ["net:inbound_message", "net:outbound_message", "validation:block_connected"];

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
                if SOURCES.iter().all(|source| traced.has_attached(&[*source])) { $read } else { Vec::new() }
            },
        }
    };
}

/// A copy of the counts at one moment.
pub(super) struct Totals(Counts);

static FAMILIES: &[Family<Traced<Totals>>] = &[
    family!(Counter "bitcoin_block_announcements_total" ["by"]
        "Announcements of blocks that were connected, by the message; the first of each peer, until a minute after the \
         block was connected",
        |c| by(Announcement::LABELS, c.announcements)),
    family!(Counter "bitcoin_block_arrivals_total" ["by"]
        "Connected blocks by what completed them: a compact block alone, transactions that were requested for one, a whole \
         block, FIBRE; `other` is what nobody announced (a sync, a block of the node's own, one connected again)",
        |c| by(Arrival::LABELS, c.arrivals)),
    family!(Histogram "bitcoin_block_arrival_seconds" []
        "Time from the first announcement of a block until it was connected",
        |c| shown(&ARRIVAL, c.arrival_ns)),
    family!(Histogram "bitcoin_block_assembly_seconds" []
        "Time from the first compact block until all transactions were there and the node began to connect the block",
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
pub(super) fn rows() -> Vec<Row> {
    reference(FAMILIES)
}

/// The metrics that this tracepoint feeds.
pub(super) fn fed_by(tracepoint: &str) -> impl Iterator<Item = &'static str> {
    FAMILIES.iter().filter(move |_| SOURCES.contains(&tracepoint)).map(|family| family.name)
}

pub(super) fn families() -> &'static [Family<Traced<Totals>>] {
    FAMILIES
}

impl Blocks {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub fn totals(&self) -> Totals {
        Totals(self.state().counts)
    }

    /// Adds events; they are worked off by [`Blocks::settle`].
    pub fn add(&self, read: impl FnOnce(&mut Vec<Event>)) {
        read(&mut self.state().queue);
    }

    /// Works off what was added, in the order in which it happened.
    pub fn settle(&self) {
        let state = &mut *self.state();
        let mut queue = std::mem::take(&mut state.queue);
        queue.sort_by_key(|event| event.time_ns);
        for event in queue.drain(..) {
            state.happened(event);
        }
        state.queue = queue;
    }

    /// The node has ended. Its numbers for peers start again.
    pub fn node_ended(&self) {
        let mut state = self.state();
        state.timelines.clear();
        state.queue.clear();
    }
}

impl State {
    fn find(&mut self, hash: &Hash) -> Option<&mut Timeline> {
        self.timelines.iter_mut().rfind(|it| it.hash == *hash)
    }

    /// The timeline of a block that is announced.
    fn open(&mut self, hash: Hash, time_ns: u64, peer: i64, by: Announcement) -> &mut Timeline {
        let position = match self.timelines.iter().rposition(|it| it.hash == hash) {
            Some(position) => position,
            None => {
                self.make_room();
                self.timelines.push_back(Timeline {
                    hash,
                    first_ns: time_ns,
                    first_peer: peer,
                    first_by: by,
                    header_time: None,
                    first_compact_ns: None,
                    peers: Vec::new(),
                    announcements: Default::default(),
                    compact_blocks: Default::default(),
                    deliveries: VecDeque::new(),
                    fibre_ns: None,
                    connected_ns: None,
                });
                self.timelines.len() - 1
            }
        };
        &mut self.timelines[position]
    }

    /// Forgets a block that was connected; without one the first of the peer that announced most blocks first: hashes cost
    /// a peer nothing, and it shall not displace what others announced.
    fn make_room(&mut self) {
        if self.timelines.len() < MAX_BLOCKS {
            return;
        }
        let first_peers: Vec<_> = self.timelines.iter().map(|it| it.first_peer).collect();
        let announced = |peer| first_peers.iter().filter(|first| **first == peer).count();
        let most = first_peers.iter().copied().max_by_key(|peer| announced(*peer));
        let connected = self.timelines.iter().position(|it| it.connected_ns.is_some());
        let forgotten =
            connected.or_else(|| self.timelines.iter().position(|it| Some(it.first_peer) == most));
        self.timelines.remove(forgotten.unwrap_or(0));
    }

    fn happened(&mut self, Event { time_ns, hash, what }: Event) {
        match what {
            What::Announced { peer, by } => self.announced(hash, time_ns, peer, by),
            What::Compact { peer, compact } => self.compact(hash, time_ns, peer, compact),
            What::Connected(connected) => self.connected(hash, time_ns, &connected),
            _ => {
                // Only an announcement begins a timeline: a sync fetches blocks that nobody has announced.
                let Some(timeline) = self.find(&hash).filter(|it| it.connected_ns.is_none()) else { return };
                match what {
                    What::Fetched { peer, is_compact } => {
                        if let Some(peer) = timeline.peer(peer) {
                            peer.owes_compact = is_compact;
                        }
                    }
                    What::Asked { peer, transactions } => {
                        if let Some(peer) = timeline.peer(peer) {
                            peer.asked = Some((time_ns, transactions));
                        }
                    }
                    What::Answered { peer: id, bytes } => {
                        let Some(peer) = timeline.peer(id) else { return };
                        if peer.asked.is_some() && peer.answered.is_none() {
                            peer.answered = Some((time_ns, bytes));
                            timeline.deliver(time_ns, id, Arrival::CompactRequested);
                        }
                    }
                    What::Whole { peer } => timeline.deliver(time_ns, peer, Arrival::FullBlock),
                    What::Fibre => {
                        timeline.fibre_ns.get_or_insert(time_ns);
                    }
                    What::Announced { .. } | What::Compact { .. } | What::Connected(_) => {}
                }
            }
        }
    }

    fn announced(&mut self, hash: Hash, time_ns: u64, id: i64, by: Announcement) {
        let timeline = self.open(hash, time_ns, id, by);
        let connected_ns = timeline.connected_ns;
        if timeline.header_time.is_none() {
            timeline.header_time = by.header_time();
        }
        let Some(peer) = timeline.peer(id) else { return };
        if std::mem::replace(&mut peer.has_announced, true) {
            return;
        }
        match connected_ns {
            None => timeline.announcements[by.number()] += 1,
            Some(connected_ns) if is_late(time_ns, connected_ns) => {}
            Some(_) => self.counts.announcements[by.number()] += 1,
        }
    }

    fn compact(&mut self, hash: Hash, time_ns: u64, id: i64, compact: Compact) {
        let by = Announcement::Compact(compact.header_time);
        let was_asked = self
            .find(&hash)
            .and_then(|timeline| timeline.peer(id))
            .is_some_and(|peer| std::mem::replace(&mut peer.owes_compact, false));
        if !was_asked {
            self.announced(hash, time_ns, id, by);
        }
        let timeline = self.open(hash, time_ns, id, by);
        let mode = usize::from(was_asked);
        match timeline.connected_ns {
            None => {
                timeline.compact_blocks[mode] += 1;
                timeline.first_compact_ns.get_or_insert(time_ns);
                if let Some(peer) = timeline.peer(id) {
                    peer.compact = Some(compact);
                    timeline.deliver(time_ns, id, Arrival::CompactComplete);
                }
            }
            Some(connected_ns) if is_late(time_ns, connected_ns) => {}
            Some(_) => self.counts.compact_blocks[mode] += 1,
        }
    }

    fn connected(&mut self, hash: Hash, time_ns: u64, connected: &Connected) {
        let counts = &mut self.counts;
        let timeline = self.timelines.iter_mut().rfind(|it| it.hash == hash && it.connected_ns.is_none());
        let Some(timeline) = timeline else {
            counts.arrivals[Arrival::Other as usize] += 1;
            self.other_limit.line(|| {
                info!(
                    block_height = connected.height,
                    block_hash = maps::hash(&hash),
                    transactions = connected.transactions,
                    inputs = connected.inputs,
                    sigops = connected.sigops,
                    duration_us = connected.duration_ns / 1000,
                    arrival = Arrival::Other.label(),
                    "block connected"
                );
            });
            return;
        };
        timeline.connected_ns = Some(time_ns);
        let start_ns = time_ns.saturating_sub(connected.duration_ns.max(0) as u64);
        let (arrival, peer) = timeline.arrival(start_ns);
        counts.arrivals[arrival as usize] += 1;
        for (count, more) in counts.announcements.iter_mut().zip(timeline.announcements) {
            *count += more;
        }
        for (count, more) in counts.compact_blocks.iter_mut().zip(timeline.compact_blocks) {
            *count += more;
        }
        counts.arrival_ns.observe(&ARRIVAL, time_ns.saturating_sub(timeline.first_ns));
        let assembly_ns = timeline.first_compact_ns.map(|first| start_ns.saturating_sub(first));
        if let Some(assembly_ns) = assembly_ns {
            counts.assembly_ns.observe(&ASSEMBLY, assembly_ns);
        }
        for peer in &timeline.peers {
            if let (Some((asked, _)), Some((answered, _))) = (peer.asked, peer.answered) {
                counts.roundtrip_ns.observe(&ASSEMBLY, answered.saturating_sub(asked));
            }
        }
        let header_age_ns = timeline.header_time.and_then(|time| age_ns(time, timeline.first_ns));
        if let Some(age) = header_age_ns {
            counts.header_age_ns.observe(&HEADER_AGE, age);
        }

        let compact = peer.and_then(|peer| peer.compact);
        let came_compact = matches!(arrival, Arrival::CompactComplete | Arrival::CompactRequested);
        let compact = compact.filter(|_| came_compact);
        let (mut requested, mut requested_bytes) = (None, None);
        if came_compact {
            let of_peer = peer.and_then(|peer| Some((peer.asked?.1, peer.answered?.1)));
            let (transactions, bytes) = of_peer.unwrap_or_default();
            counts.requested_transactions.observe(&TXS, transactions);
            counts.requested_bytes.observe(&BYTES, bytes);
            (requested, requested_bytes) = (Some(transactions), Some(bytes));
        }
        if let Some(prefilled) = compact.and_then(|compact| compact.prefilled) {
            counts.prefilled_transactions.observe(&TXS, prefilled);
        }

        let since_first = |time: u64| time.saturating_sub(timeline.first_ns) / 1000;
        let asked = timeline.peers.iter().filter_map(|peer| peer.asked);
        let answered = timeline.peers.iter().filter_map(|peer| peer.answered);
        self.announced_limit.line(|| {
            info!(
                block_height = connected.height,
                block_hash = maps::hash(&hash),
                transactions = connected.transactions,
                inputs = connected.inputs,
                sigops = connected.sigops,
                duration_us = connected.duration_ns / 1000,
                arrival = arrival.label(),
                announced_by = timeline.first_by.label(),
                announced_peer = timeline.first_peer,
                announcements = timeline.announcements.iter().sum::<u64>(),
                header_age_ms = header_age_ns.map(|age| age / 1_000_000),
                compact_blocks = timeline.compact_blocks.iter().sum::<u64>(),
                compact_us = timeline.first_compact_ns.map(since_first),
                short_ids = compact.map(|compact| compact.short_ids),
                prefilled = compact.and_then(|compact| compact.prefilled),
                asked_peers = asked.clone().count() as u64,
                asked_us = asked.map(|(time, _)| since_first(time)).min(),
                answered_us = answered.map(|(time, _)| since_first(time)).min(),
                requested,
                requested_bytes,
                complete_us = since_first(start_ns),
                connected_us = since_first(time_ns),
                "block connected"
            );
        });
    }
}

fn is_late(time_ns: u64, connected_ns: u64) -> bool {
    u128::from(time_ns.saturating_sub(connected_ns)) > LATE.as_nanos()
}

/// How long after the header's time, Unix seconds, this moment of the monotonic clock was; `None` if it was before.
fn age_ns(header_time: u32, moment_ns: u64) -> Option<u64> {
    let monotonic = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC).ok()?);
    let since = monotonic.saturating_sub(Duration::from_nanos(moment_ns));
    let age = now() - since.as_secs_f64() - f64::from(header_time);
    (age > 0.0).then_some((age * 1e9) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;
    const HASH: Hash = [7; 32];

    fn connected() -> What {
        let duration_ns = 5 * MS as i64;
        What::Connected(Connected { height: 1, transactions: 1, inputs: 0, sigops: 0, duration_ns })
    }

    fn compact(peer: i64) -> What {
        What::Compact { peer, compact: Compact { header_time: u32::MAX, short_ids: 1, prefilled: Some(1) } }
    }

    fn inv(peer: i64) -> What {
        What::Announced { peer, by: Announcement::Inv }
    }

    /// What happened, with the milliseconds when it did.
    fn happen(blocks: &Blocks, events: impl IntoIterator<Item = (u64, Hash, What)>) {
        let events = events.into_iter().map(|(at_ms, hash, what)| Event { time_ns: at_ms * MS, hash, what });
        blocks.add(|queue| queue.extend(events));
        blocks.settle();
    }

    fn arrivals(blocks: &Blocks) -> Vec<(&'static str, u64)> {
        let counts = blocks.totals().0.arrivals;
        Arrival::LABELS.into_iter().zip(counts).filter(|(_, count)| *count > 0).collect()
    }

    #[test]
    fn what_fibre_put_together_before_it_was_connected_is_fibres() {
        let blocks = Blocks::default();
        // The order in which the buffers are read is another than that in which it happened.
        happen(
            &blocks,
            [
                (110, HASH, connected()),
                (100, HASH, What::Fibre),
                (101, HASH, compact(1)), // comes while FIBRE's block is being checked
                (90, HASH, inv(2)),
            ],
        );
        assert_eq!(arrivals(&blocks), [("fibre", 1)]);
        assert_eq!(blocks.totals().0.announcements, [0, 1, 1]);

        let other = [8; 32];
        happen(
            &blocks,
            [
                (200, other, compact(1)),
                (210, other, connected()), // begun at 205
                (206, other, What::Fibre),
            ],
        );
        assert_eq!(arrivals(&blocks), [("compact_complete", 1), ("fibre", 1)]);
    }

    #[test]
    fn a_block_that_is_connected_again_did_not_arrive_again() {
        let blocks = Blocks::default();
        happen(&blocks, [(1, HASH, compact(1)), (10, HASH, connected()), (50, HASH, connected())]);
        assert_eq!(arrivals(&blocks), [("compact_complete", 1), ("other", 1)]);
        let counts = blocks.totals().0;
        assert_eq!((counts.announcements, counts.compact_blocks), ([0, 0, 1], [1, 0]));
    }

    #[test]
    fn a_minute_after_it_was_connected_a_block_is_not_announced_any_more() {
        let blocks = Blocks::default();
        happen(
            &blocks,
            [
                (1, HASH, inv(1)),
                (10, HASH, connected()),
                (60_010, HASH, inv(2)),
                (60_010, HASH, compact(2)),
                (60_011, HASH, inv(3)),
                (60_011, HASH, compact(4)),
            ],
        );
        let counts = blocks.totals().0;
        assert_eq!((counts.announcements, counts.compact_blocks), ([0, 2, 0], [1, 0]));
    }

    #[test]
    fn what_peers_say_is_bounded() {
        let blocks = Blocks::default();
        let invented = (0..1000u16).map(|number| {
            let mut hash = [0; 32];
            hash[..2].copy_from_slice(&number.to_le_bytes());
            (5, hash, inv(9))
        });
        happen(&blocks, [(1, HASH, inv(1))].into_iter().chain(invented));
        assert_eq!(blocks.state().timelines.len(), MAX_BLOCKS);
        happen(&blocks, (0..1000).map(|peer| (6, HASH, compact(peer))));
        assert_eq!(blocks.state().find(&HASH).unwrap().peers.len(), MAX_PEERS);
        assert_eq!(blocks.state().find(&HASH).unwrap().deliveries.len(), MAX_DELIVERIES);
        happen(&blocks, [(20, HASH, connected())]);
        assert_eq!(arrivals(&blocks), [("compact_complete", 1)]);
        assert_eq!(blocks.totals().0.announcements, [0, 1, MAX_PEERS as u64 - 1]);
    }

    #[test]
    fn peers_of_a_node_that_has_ended_are_forgotten() {
        let blocks = Blocks::default();
        happen(&blocks, [(1, HASH, compact(1))]);
        blocks.node_ended();
        happen(&blocks, [(10, HASH, connected())]);
        assert_eq!(arrivals(&blocks), [("other", 1)]);
        assert_eq!(blocks.totals().0.announcements, [0; 3]);
    }
}
