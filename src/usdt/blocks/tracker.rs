//! Applies events to the timelines of blocks, and counts the blocks that were connected.
//!
//! A timeline is the history of one block from its first announcement. The race for a block is FIBRE's comparison of
//! the relay mechanisms FIBRE/UDP and compact blocks: FIBRE reports which of them delivered the block first.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use tracing::warn;

use super::active_chain::ActiveChain;
use super::block_report::Race;
use super::event::{Announcement, BlockEvent, BlockEventKind, ConnectedBlock, ConnectionType, RawBlockHash};
use super::families::BlockCounts;
use super::trace::{ArrivalMethod, BlockArrival, Timeline};
use crate::block_log::{self, BlockReport};
use crate::sys::{self, ClockError};
use crate::usdt::histogram::BlockId;
use crate::usdt::{clock, maps};

/// Maximum number of blocks that have a timeline at the same time.
pub const MAX_BLOCKS: usize = 64;
/// Limit on peers whose connection type is remembered. A node has up to 125 peers by default.
const MAX_CONNECTIONS: usize = 2048;
/// Name of the tracepoint that fires when the node has reconstructed a compact block.
const RECONSTRUCTED: &str = "net:compact_block_reconstructed";
/// Number of most recent connected blocks, of FIBRE races and of flushes of the UTXO cache that are each kept. The
/// exporter's HTML page shows the blocks and the races.
const LAST_BLOCKS_LIMIT: usize = 20;
/// Time after a block's connection during which announcements of the block still count. Later announcements are not
/// counted, because they come from peers that have just connected and announce blocks that they already have.
const LATE_LIMIT: Duration = Duration::from_secs(60);
/// Maximum change of the wall clock against the monotonic clock while a block arrives. After a larger change, the wall
/// clock counts as set. The limit is greater than the adjustment by a time service while a block arrives: at most 500
/// µs in a second, and the arrival takes seconds.
const MAX_CLOCK_DRIFT: Duration = Duration::from_millis(5);

/// Maximum age of the timestamp in a block's header when the block is first announced. A greater age is omitted,
/// because it does not measure propagation: the block was announced long after it was found, or a clock is wrong.
const MAX_HEADER_AGE: Duration = Duration::from_secs(2 * 60 * 60);

/// The data of a [`BlockTracker`], which its mutex protects: timelines and counts of blocks, queued events, and recent
/// blocks, races and flushes.
#[derive(Default)]
pub struct TrackerState {
    chain: ActiveChain<(u64, RawBlockHash, ConnectedBlock)>,
    /// Unix time at which the monotonic clock was 0, in nanoseconds ([`clock::epoch_ns`]), for the events that are
    /// being processed.
    epoch_ns: i64,
    /// The kernel's estimate of the error of the wall clock, for the events that are being processed.
    clock_error: Option<ClockError>,
    /// Timelines of blocks, in the order of the first event of each block.
    pub timelines: VecDeque<Timeline>,
    counts: BlockCounts,
    /// Events that are not processed yet.
    queue: Vec<BlockEvent>,
    /// Whether the tracepoint `RECONSTRUCTED` is attached. If it is attached, its hits determine when a compact block
    /// was complete. If it is not attached, the P2P messages determine the time.
    reports_reconstruction: bool,
    /// Reports of blocks that were connected since [`BlockTracker::process_queue`] last returned reports.
    connected: Vec<BlockReport>,
    block_log: Option<block_log::ReportQueue>,
    /// Connection types of peers, by the node's ID for the peer. If there are too many peers, the lowest IDs are
    /// removed first, because the node assigns ascending IDs.
    connections: BTreeMap<i64, ConnectionType>,
    /// Begin and end of the last flushes of the UTXO cache, in nanoseconds on the monotonic clock.
    flushes: VecDeque<(u64, u64)>,
    /// Reports of the last connected blocks, newest first.
    last: VecDeque<BlockReport>,
    /// The last races between FIBRE and compact blocks, newest first.
    races: VecDeque<Race>,
    /// For each of the last races, the hash of the block and the relay mechanism that won.
    race_winners: VecDeque<(RawBlockHash, &'static str)>,
    /// The last blocks that FIBRE reconstructed. For each block: the time of the reconstruction, and whether the node has
    /// connected the block. FIBRE can reconstruct a block before any peer announces it.
    fibre_blocks: VecDeque<(RawBlockHash, (u64, bool))>,
}

/// Tracks the arrival of blocks at the node: processes the events of blocks, and counts the blocks that the node
/// connects.
#[derive(Default)]
pub struct BlockTracker(Mutex<TrackerState>);

impl BlockTracker {
    /// Locks the state.
    pub fn state(&self) -> MutexGuard<'_, TrackerState> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// A copy of the current counts of blocks.
    pub fn counts(&self) -> BlockCounts {
        self.state().counts
    }

    /// Calls `read` with the queue of unprocessed events, to which `read` appends events.
    /// [`BlockTracker::process_queue`] processes the queue later.
    pub fn add(&self, read: impl FnOnce(&mut Vec<BlockEvent>)) {
        read(&mut self.state().queue);
    }

    /// Processes the queued events in the order of their times. Returns the reports of connected blocks, which the
    /// caller logs after this function has released the lock.
    pub fn process_queue(&self) -> Vec<BlockReport> {
        let epoch_ns = clock::epoch_ns();
        let before_ns = self.state().epoch_ns; // releases the lock before a line is logged
        log_if_clock_was_set(before_ns, epoch_ns);
        self.process_queue_at(epoch_ns, sys::clock_error())
    }

    /// Like [`BlockTracker::process_queue`], but with the given values instead of the results of [`clock::epoch_ns`]
    /// and [`sys::clock_error`].
    pub fn process_queue_at(&self, epoch_ns: i64, clock_error: Option<ClockError>) -> Vec<BlockReport> {
        let state = &mut *self.state();
        state.epoch_ns = epoch_ns;
        state.clock_error = clock_error;
        let mut queue = std::mem::take(&mut state.queue);
        queue.sort_by_key(|event| event.time_ns);
        for event in queue.drain(..) {
            state.apply(event);
        }
        state.queue = queue;
        std::mem::take(&mut state.connected)
    }

    /// The reports of the last connected blocks, and the last races, newest first.
    pub fn last(&self) -> (Vec<BlockReport>, Vec<Race>) {
        let state = self.state();
        (state.last.iter().cloned().collect(), state.races.iter().cloned().collect())
    }

    /// Called after the BPF programs were attached to a node. `has` returns whether a tracepoint is attached. Records
    /// whether the tracepoint `RECONSTRUCTED` is attached.
    pub fn attached(&self, has: impl Fn(&str) -> bool) {
        self.state().reports_reconstruction = has(RECONSTRUCTED);
    }

    /// Sets the queue of the block log, to which the tracker then adds the report of each connected block.
    pub fn set_block_log(&self, queue: block_log::ReportQueue) {
        self.state().block_log = Some(queue);
    }

    /// Clears the data about the node that is no longer traced, because the next node assigns its peer IDs from the
    /// beginning.
    pub fn node_ended(&self) {
        let mut state = self.state();
        state.timelines.clear();
        state.connections.clear();
        state.queue.clear();
        state.flushes.clear();
        state.fibre_blocks.clear();
        // The next node may connect the same blocks again, or may run on another chain.
        state.chain = ActiveChain::default();
    }
}

impl TrackerState {
    /// The newest timeline of the block with this hash.
    pub fn find(&mut self, hash: &RawBlockHash) -> Option<&mut Timeline> {
        self.timelines.iter_mut().rfind(|it| it.hash == *hash)
    }

    /// The timeline of an announced block, added if the block has no timeline.
    fn open(&mut self, hash: RawBlockHash, time_ns: u64, peer: i64, by: Announcement) -> &mut Timeline {
        if self.find(&hash).is_none() {
            self.make_room();
            let fibre_ns = self.fibre_ns(&hash);
            self.timelines.push_back(Timeline {
                hash,
                epoch_ns: self.epoch_ns,
                first_ns: time_ns,
                first_peer: peer,
                first_by: by,
                fibre_ns,
                is_wanted: fibre_ns.is_some(),
                ..Timeline::default()
            });
        }
        self.find(&hash).expect("it was found or added")
    }

    /// Evicts a timeline if there are [`MAX_BLOCKS`] timelines. If there are timelines of connected blocks, the oldest
    /// of them is evicted. If no timeline is of a connected block, the candidates are the timelines without
    /// `is_wanted`, or all timelines if all have `is_wanted`. The tracker determines the peer that was the first to
    /// announce most of the candidates, and evicts the oldest candidate of this peer. A peer that announces many
    /// invented hashes therefore evicts only its own blocks.
    fn make_room(&mut self) {
        if self.timelines.len() < MAX_BLOCKS {
            return;
        }
        let all_wanted = self.timelines.iter().all(|it| it.is_wanted);
        let can_go = |it: &&Timeline| all_wanted || !it.is_wanted;
        let first_peers: Vec<_> = self.timelines.iter().filter(can_go).map(|it| it.first_peer).collect();
        let announced = |peer| first_peers.iter().filter(|first| **first == peer).count();
        let most = first_peers.iter().copied().max_by_key(|peer| announced(*peer));
        let connected = self.timelines.iter().position(|it| it.connected_ns.is_some());
        let forgotten = connected
            .or_else(|| self.timelines.iter().position(|it| can_go(&it) && Some(it.first_peer) == most));
        self.timelines.remove(forgotten.unwrap_or(0));
    }

    /// Processes one event.
    fn apply(&mut self, BlockEvent { time_ns, hash, kind }: BlockEvent) {
        match kind {
            BlockEventKind::Announced { peer, by, header_time } => {
                self.on_announcement(hash, time_ns, peer, by, header_time);
            }
            BlockEventKind::Compact { peer, header_time, short_ids } => {
                self.on_compact_block(hash, time_ns, peer, header_time, short_ids);
            }
            BlockEventKind::Connected(connected) => {
                let (height, thread) = (connected.height, connected.thread);
                for (time_ns, hash, connected) in
                    self.chain.connected(height, hash, thread, (time_ns, hash, connected))
                {
                    self.on_connected(hash, time_ns, &connected);
                }
            }
            BlockEventKind::PeerActive { peer, connection } => {
                self.connections.insert(peer, connection);
                if self.connections.len() > MAX_CONNECTIONS {
                    self.connections.pop_first();
                }
            }
            BlockEventKind::Flushed { duration_ns } => {
                push_recent(&mut self.flushes, (time_ns.saturating_sub(duration_ns), time_ns));
            }
            BlockEventKind::RaceFinished { height, udp_ns, compact_ns } => {
                let (time, block_hash) = (unix_time(self.epoch_ns, time_ns), maps::hash(&hash));
                self.counts.last_height = Some(height);
                let winner = find_recent(&self.race_winners, &hash);
                push_recent(
                    &mut self.races,
                    Race { time, block_height: height, block_hash, winner, udp_ns, compact_ns },
                );
                self.update_report(&hash);
            }
            BlockEventKind::RaceWon { height, mechanism } => {
                self.counts.last_height = Some(height);
                push_recent(&mut self.race_winners, (hash, mechanism));
                self.update_report(&hash);
            }
            _ => {
                if let BlockEventKind::Fibre { height: Some(height) } = kind {
                    self.counts.last_height = Some(height);
                }
                if matches!(kind, BlockEventKind::Fibre { .. }) && self.fibre_ns(&hash).is_none() {
                    push_recent(&mut self.fibre_blocks, (hash, (time_ns, false)));
                }
                let reports_reconstruction = self.reports_reconstruction;
                // Requests, responses and reports of the node add no timeline, because during a sync the node requests
                // many blocks that no peer has announced.
                if let Some(timeline) = self.find(&hash).filter(|it| it.connected_ns.is_none()) {
                    timeline.apply(time_ns, kind, reports_reconstruction);
                }
            }
        }
    }

    fn on_announcement(
        &mut self,
        hash: RawBlockHash,
        time_ns: u64,
        id: i64,
        by: Announcement,
        header_time: Option<u32>,
    ) {
        let timeline = self.open(hash, time_ns, id, by);
        let connected_ns = timeline.connected_ns;
        if timeline.header_time.is_none() {
            timeline.header_time = header_time;
            timeline.header_ns = header_time.map(|_| time_ns);
        }
        let Some(peer) = timeline.peer(id) else { return };
        if peer.announced.is_some() {
            return;
        }
        peer.announced = Some((time_ns, by));
        match connected_ns {
            None => timeline.announcements[by as usize] += 1,
            Some(connected_ns) if is_late(time_ns, connected_ns) => {}
            Some(_) => self.counts.announcements[by as usize] += 1,
        }
    }

    fn on_compact_block(
        &mut self,
        hash: RawBlockHash,
        time_ns: u64,
        id: i64,
        header_time: u32,
        short_ids: u64,
    ) {
        let by = Announcement::Compact;
        let reports_reconstruction = self.reports_reconstruction;
        let was_asked = self
            .find(&hash)
            .and_then(|timeline| timeline.peer(id))
            .is_some_and(|peer| std::mem::replace(&mut peer.owes_compact, false));
        if !was_asked {
            self.on_announcement(hash, time_ns, id, by, Some(header_time));
        }
        let timeline = self.open(hash, time_ns, id, by);
        let mode = usize::from(was_asked);
        match timeline.connected_ns {
            None => {
                timeline.compact_blocks[mode] += 1;
                if let Some(peer) = timeline.peer(id) {
                    // Record only the first compact block from a peer, because the node ignores further compact blocks
                    // of the same block from that peer.
                    peer.compact.get_or_insert((time_ns, short_ids));
                    if !reports_reconstruction {
                        timeline.deliver(time_ns, id, ArrivalMethod::CompactComplete);
                    }
                }
            }
            Some(connected_ns) if is_late(time_ns, connected_ns) => {}
            Some(_) => self.counts.compact_blocks[mode] += 1,
        }
    }

    fn on_connected(&mut self, hash: RawBlockHash, time_ns: u64, connected: &ConnectedBlock) {
        let block = BlockId { height: connected.height, hash, time: unix_time(self.epoch_ns, time_ns) };
        // FIBRE may have delivered a block that no peer announced and that therefore has no timeline.
        let start_ns = connected.start_ns(time_ns);
        let fibre_block = self.fibre_blocks.iter_mut().find(|(other, _)| *other == hash);
        let is_by_fibre = fibre_block
            .is_some_and(|(_, (time, connected))| !std::mem::replace(connected, true) && *time <= start_ns);
        let unannounced = if is_by_fibre { ArrivalMethod::Fibre } else { ArrivalMethod::Other };
        let timeline = self.timelines.iter_mut().rfind(|it| it.hash == hash && it.connected_ns.is_none());
        let arrival = timeline.map(|timeline| {
            timeline.connected_ns = Some(time_ns);
            let first_unix = unix_time(timeline.epoch_ns, timeline.first_ns);
            let header_age_ns = timeline.header_time.and_then(|time| age_ns(time, first_unix));
            BlockArrival::new(timeline, time_ns, connected, header_age_ns)
        });
        let method = arrival.as_ref().map_or(unannounced, |arrival| arrival.arrival);
        self.counts.connected(&block, connected, method, arrival.as_ref());
        let mut report = BlockReport::new(&block, connected, method, arrival.as_ref());
        let was_announced = arrival.is_some();
        let mut was_set = false;
        if let Some(BlockArrival { timeline, .. }) = arrival {
            let connection = self.connections.get(&timeline.first_peer).copied();
            self.counts.first_announcements[connection.unwrap_or(ConnectionType::UNKNOWN).0] += 1;
            report.announced_connection = connection.map(ConnectionType::label);
            report.flush_us = flushed_us(&self.flushes, timeline.first_ns, time_ns);
            was_set = is_other_epoch(timeline.epoch_ns, self.epoch_ns);
        }
        report.set_clock_error(self.clock_error, was_set);
        self.add_fibre_to_report(&mut report, &hash, time_ns);
        push_recent(&mut self.last, report.clone());
        self.connected.push(report.clone());
        if let Some(block_log) = &self.block_log {
            block_log.push(report);
        }
        if !was_announced {
            self.add_unannounced(hash, time_ns);
        }
    }

    /// The time at which FIBRE reconstructed this block; `None` if the block is not among the last
    /// [`LAST_BLOCKS_LIMIT`] blocks that FIBRE reconstructed.
    fn fibre_ns(&self, hash: &RawBlockHash) -> Option<u64> {
        find_recent(&self.fibre_blocks, hash).map(|(time, _)| time)
    }

    /// Adds the time at which FIBRE reconstructed the block, and the result of its race, to the block's report.
    fn add_fibre_to_report(&self, report: &mut BlockReport, hash: &RawBlockHash, connected_ns: u64) {
        if let Some(fibre_ns) = self.fibre_ns(hash).filter(|time| *time <= connected_ns) {
            report.fibre_us = Some(((connected_ns - fibre_ns) / 1000) as i64);
        }
        self.add_race_to_report(report, hash);
    }

    /// Adds the winner and the times of the race for the block to the block's report, if FIBRE has reported them.
    fn add_race_to_report(&self, report: &mut BlockReport, hash: &RawBlockHash) {
        report.race_winner = find_recent(&self.race_winners, hash);
        if let Some(race) = self.races.iter().find(|race| race.block_hash == report.block_hash) {
            (report.race_udp_ns, report.race_compact_ns) = (race.udp_ns, race.compact_ns);
        }
    }

    /// Adds a race to the report of its block, if the node has already connected the block, because FIBRE can report
    /// the result of a race after the connection.
    fn update_report(&mut self, hash: &RawBlockHash) {
        let block_hash = maps::hash(hash);
        let Some(position) = self.last.iter().position(|report| report.block_hash == block_hash) else {
            return;
        };
        let mut report = self.last[position].clone();
        self.add_race_to_report(&mut report, hash);
        self.last[position] = report.clone();
        if let Some(block_log) = &self.block_log {
            block_log.update(report);
        }
    }

    /// Adds a timeline for a connected block that no peer had announced. The timeline shows that later announcements
    /// arrive after the block's connection. Never evicts the timeline of a block that is not connected yet.
    fn add_unannounced(&mut self, hash: RawBlockHash, time_ns: u64) {
        const NOBODY: i64 = -1;
        let is_room =
            self.timelines.len() < MAX_BLOCKS || self.timelines.iter().any(|it| it.connected_ns.is_some());
        if is_room && self.find(&hash).is_none() {
            self.make_room();
            self.timelines.push_back(Timeline {
                hash,
                epoch_ns: self.epoch_ns,
                first_ns: time_ns,
                first_peer: NOBODY,
                connected_ns: Some(time_ns),
                ..Timeline::default()
            });
        }
    }
}

/// Total time that the node spent on writing the UTXO cache to disk between a block's first announcement and its
/// connection, in microseconds; `None` if there was no flush.
fn flushed_us(flushes: &VecDeque<(u64, u64)>, first_ns: u64, connected_ns: u64) -> Option<i64> {
    let within = |&(begin, end): &(u64, u64)| end.min(connected_ns).checked_sub(begin.max(first_ns));
    let times: Vec<u64> = flushes.iter().filter_map(within).filter(|time| *time > 0).collect();
    (!times.is_empty()).then(|| (times.iter().sum::<u64>() / 1000) as i64)
}

/// Logs a warning if the wall clock was set since the last call. The arguments are two values of [`clock::epoch_ns`];
/// `before` is 0 at the first call.
fn log_if_clock_was_set(before: i64, now: i64) {
    if before != 0 && is_other_epoch(before, now) {
        warn!(
            seconds = (now - before) as f64 / 1e9,
            "the wall clock was set, or the machine was suspended; the block log marks the clock as \
             unsynchronized for blocks that arrived in the meantime"
        );
    }
}

/// Whether the wall clock was set between two results of [`clock::epoch_ns`].
fn is_other_epoch(before: i64, now: i64) -> bool {
    before.abs_diff(now) > MAX_CLOCK_DRIFT.as_nanos() as u64
}

/// Adds an element at the front, and drops elements beyond [`LAST_BLOCKS_LIMIT`] at the back.
fn push_recent<T>(last: &mut VecDeque<T>, it: T) {
    last.push_front(it);
    last.truncate(LAST_BLOCKS_LIMIT);
}

/// The value that a list of recent blocks, for example `race_winners`, has for the block with this hash.
fn find_recent<T: Copy>(last: &VecDeque<(RawBlockHash, T)>, hash: &RawBlockHash) -> Option<T> {
    last.iter().find(|(other, _)| other == hash).map(|(_, value)| *value)
}

/// Whether a message arrived more than [`LATE_LIMIT`] after the block's connection, and is therefore not counted.
fn is_late(time_ns: u64, connected_ns: u64) -> bool {
    u128::from(time_ns.saturating_sub(connected_ns)) > LATE_LIMIT.as_nanos()
}

/// Converts a monotonic time in nanoseconds to Unix seconds.
fn unix_time(epoch_ns: i64, moment_ns: u64) -> f64 {
    epoch_ns.saturating_add_unsigned(moment_ns) as f64 / 1e9
}

/// Time from the header's timestamp to the announcement of the block, in nanoseconds. Both arguments are Unix seconds.
/// `None` if the announcement was not later than the timestamp, or if the time exceeds [`MAX_HEADER_AGE`].
fn age_ns(header_time: u32, announced: f64) -> Option<u64> {
    let age = announced - f64::from(header_time);
    (age > 0.0 && age <= MAX_HEADER_AGE.as_secs_f64()).then_some((age * 1e9) as u64)
}
