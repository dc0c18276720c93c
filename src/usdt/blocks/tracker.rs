//! Follows blocks from what happened to them, and counts those that were connected.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use super::active_chain::ActiveChain;
use super::block_report::{BlockReport, Race};
use super::event::{Announcement, Compact, Connected, ConnectionType, Event, Hash, What};
use super::families::Counts;
use super::trace::{Arrival, Timeline, Way};
use crate::usdt::histogram::Block;
use crate::usdt::{block_log, clock, maps};

/// Limit on blocks that are followed at a time.
pub const MAX_BLOCKS: usize = 64;
/// Limit on peers whose kind of connection is remembered; a node has 125 by default.
const MAX_CONNECTIONS: usize = 2048;
/// Where the node says what became of a compact block.
const RECONSTRUCTED: &str = "net:compact_block_reconstructed";
/// How many of the last blocks, and races, are kept to be shown.
const LAST: usize = 20;
/// Messages that come so long after the block was connected still count. Later than this, a peer that has just connected
/// tells which blocks it has.
const LATE: Duration = Duration::from_secs(60);

/// Older than this a header is not by the time of its block's propagation: it was announced late, or a clock is wrong.
const MAX_HEADER_AGE: Duration = Duration::from_secs(2 * 60 * 60);

#[derive(Default)]
pub struct State {
    chain: ActiveChain<(u64, Hash, Connected)>,
    /// [`clock::epoch_ns`], of the events that are being worked off.
    epoch_ns: i64,
    /// In the order in which they were first seen.
    pub timelines: VecDeque<Timeline>,
    counts: Counts,
    /// Events that are not worked off yet.
    queue: Vec<Event>,
    /// The node says when it has put a compact block together: the messages alone do not tell it then.
    tells_reconstruction: bool,
    /// Connected since the last time that they were taken.
    connected: Vec<BlockReport>,
    record: Option<block_log::Queue>,
    /// By the node's numbers for peers, which it counts up.
    connections: BTreeMap<i64, ConnectionType>,
    /// The last flushes of the UTXO cache: begin and end.
    flushes: VecDeque<(u64, u64)>,
    /// The last that were connected, and the last races, newest first.
    last: VecDeque<BlockReport>,
    races: VecDeque<Race>,
}

/// The blocks that are followed, and what was counted of those that were connected.
#[derive(Default)]
pub struct Blocks(Mutex<State>);

impl Blocks {
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// A copy at one moment.
    pub fn counts(&self) -> Counts {
        self.state().counts
    }

    /// Adds events; they are worked off by [`Blocks::settle`].
    pub fn add(&self, read: impl FnOnce(&mut Vec<Event>)) {
        read(&mut self.state().queue);
    }

    /// Works off what was added, in the order in which it happened. Returns the blocks that were connected, to be logged when nothing
    /// is locked any more.
    pub fn settle(&self) -> Vec<BlockReport> {
        self.settle_at(clock::epoch_ns())
    }

    /// At this relation of the clocks.
    pub fn settle_at(&self, epoch_ns: i64) -> Vec<BlockReport> {
        let state = &mut *self.state();
        state.epoch_ns = epoch_ns;
        let mut queue = std::mem::take(&mut state.queue);
        queue.sort_by_key(|event| event.time_ns);
        for event in queue.drain(..) {
            state.happened(event);
        }
        state.queue = queue;
        std::mem::take(&mut state.connected)
    }

    /// The last blocks that were connected, and the last races; newest first.
    pub fn last(&self) -> (Vec<BlockReport>, Vec<Race>) {
        let state = self.state();
        (state.last.iter().cloned().collect(), state.races.iter().cloned().collect())
    }

    /// The node has this tracepoint, or not.
    pub fn attached(&self, has: impl Fn(&str) -> bool) {
        self.state().tells_reconstruction = has(RECONSTRUCTED);
    }

    /// Hands on each block that is connected.
    pub fn record(&self, queue: block_log::Queue) {
        self.state().record = Some(queue);
    }

    /// The node has ended. Its numbers for peers start again.
    pub fn node_ended(&self) {
        let mut state = self.state();
        state.timelines.clear();
        state.connections.clear();
        state.queue.clear();
        state.flushes.clear();
        // The next one may connect its blocks again, or be one of another chain.
        state.chain = ActiveChain::default();
    }
}

impl State {
    pub fn find(&mut self, hash: &Hash) -> Option<&mut Timeline> {
        self.timelines.iter_mut().rfind(|it| it.hash == *hash)
    }

    /// The timeline of a block that is announced.
    fn open(&mut self, hash: Hash, time_ns: u64, peer: i64, by: Announcement) -> &mut Timeline {
        let position = match self.timelines.iter().rposition(|it| it.hash == hash) {
            Some(position) => position,
            None => {
                self.make_room();
                self.timelines.push_back(Timeline::new(hash, time_ns, peer, by, self.epoch_ns));
                self.timelines.len() - 1
            }
        };
        &mut self.timelines[position]
    }

    /// Forgets a block that was connected; without one the first of the peer that announced most blocks first, of those that the
    /// node has not asked for: hashes cost a peer nothing, and it shall not displace what others announced.
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

    fn happened(&mut self, Event { time_ns, hash, what }: Event) {
        match what {
            What::Announced { peer, by } => self.announced(hash, time_ns, peer, by),
            What::Compact { peer, compact } => self.compact(hash, time_ns, peer, compact),
            What::Connected(connected) => {
                let (height, thread) = (connected.height, connected.thread);
                for (time_ns, hash, connected) in
                    self.chain.connected(height, hash, thread, (time_ns, hash, connected))
                {
                    self.connected(hash, time_ns, &connected);
                }
            }
            What::Alive { peer, connection } => {
                self.connections.insert(peer, connection);
                if self.connections.len() > MAX_CONNECTIONS {
                    self.connections.pop_first();
                }
            }
            What::Flushed { duration_ns } => {
                keep(&mut self.flushes, (time_ns.saturating_sub(duration_ns), time_ns));
            }
            What::Raced { height, udp_ns, compact_ns } => {
                let (time, block_hash) = (unix_time(self.epoch_ns, time_ns), maps::hash(&hash));
                self.counts.last_height = Some(height);
                keep(&mut self.races, Race { time, block_height: height, block_hash, udp_ns, compact_ns });
            }
            _ => {
                if let What::Fibre { height: Some(height) } | What::Won { height, .. } = what {
                    self.counts.last_height = Some(height);
                }
                let told = self.tells_reconstruction;
                // Only an announcement begins a timeline: a sync fetches blocks that nobody has announced.
                if let Some(timeline) = self.find(&hash).filter(|it| it.connected_ns.is_none()) {
                    timeline.happened(time_ns, what, told);
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
        if peer.announced.is_some() {
            return;
        }
        peer.announced = Some((time_ns, by));
        match connected_ns {
            None => timeline.announcements[by.number()] += 1,
            Some(connected_ns) if is_late(time_ns, connected_ns) => {}
            Some(_) => self.counts.announcements[by.number()] += 1,
        }
    }

    fn compact(&mut self, hash: Hash, time_ns: u64, id: i64, compact: Compact) {
        let by = Announcement::Compact(compact.header_time);
        let told = self.tells_reconstruction;
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
                if let Some(peer) = timeline.peer(id) {
                    // A node that is at the first one does not look at another.
                    peer.compact.get_or_insert((time_ns, compact));
                    if !told {
                        timeline.deliver(time_ns, id, Arrival::CompactComplete);
                    }
                }
            }
            Some(connected_ns) if is_late(time_ns, connected_ns) => {}
            Some(_) => self.counts.compact_blocks[mode] += 1,
        }
    }

    fn connected(&mut self, hash: Hash, time_ns: u64, connected: &Connected) {
        let block = Block { height: connected.height, hash, time: unix_time(self.epoch_ns, time_ns) };
        let timeline = self.timelines.iter_mut().rfind(|it| it.hash == hash && it.connected_ns.is_none());
        let way = timeline.map(|timeline| {
            timeline.connected_ns = Some(time_ns);
            let first_unix = unix_time(timeline.epoch_ns, timeline.first_ns);
            let header_age_ns = timeline.header_time.and_then(|time| age_ns(time, first_unix));
            (Way::of(timeline, time_ns, connected, header_age_ns), &*timeline)
        });
        if let Some((_, timeline)) = &way {
            let connection = self.connections.get(&timeline.first_peer).copied();
            self.counts.first_announcements[connection.unwrap_or(ConnectionType::UNKNOWN).number()] += 1;
        }
        self.counts.connected(&block, connected, way.as_ref().map(|(way, timeline)| (way, *timeline)));
        let mut report =
            BlockReport::of(&block, connected, way.as_ref().map(|(way, timeline)| (way, *timeline)));
        if let Some((_, timeline)) = &way {
            report.flush_us = flushed_us(&self.flushes, timeline.first_ns, time_ns);
        }
        let was_announced = way.is_some();
        keep(&mut self.last, report.clone());
        self.connected.push(report.clone());
        if let Some(record) = &self.record {
            record.push(report);
        }
        if !was_announced {
            self.remember(hash, time_ns);
        }
    }

    /// A block that nobody announced was connected: who announces it now is late. It does not displace those that wait.
    fn remember(&mut self, hash: Hash, time_ns: u64) {
        const NOBODY: i64 = -1;
        let is_room =
            self.timelines.len() < MAX_BLOCKS || self.timelines.iter().any(|it| it.connected_ns.is_some());
        if is_room && self.find(&hash).is_none() {
            self.make_room();
            let timeline = Timeline::new(hash, time_ns, NOBODY, Announcement::Inv, self.epoch_ns);
            self.timelines.push_back(Timeline { connected_ns: Some(time_ns), ..timeline });
        }
    }
}

/// How much of the time from the first announcement of a block until it was connected the UTXO cache was being written; `None` if
/// it was not.
fn flushed_us(flushes: &VecDeque<(u64, u64)>, first_ns: u64, connected_ns: u64) -> Option<i64> {
    let within = |&(begin, end): &(u64, u64)| end.min(connected_ns).checked_sub(begin.max(first_ns));
    let times: Vec<u64> = flushes.iter().filter_map(within).filter(|time| *time > 0).collect();
    (!times.is_empty()).then(|| (times.iter().sum::<u64>() / 1000) as i64)
}

fn keep<T>(last: &mut VecDeque<T>, it: T) {
    last.push_front(it);
    last.truncate(LAST);
}

fn is_late(time_ns: u64, connected_ns: u64) -> bool {
    u128::from(time_ns.saturating_sub(connected_ns)) > LATE.as_nanos()
}

/// Unix seconds of a moment of the programs' clock.
fn unix_time(epoch_ns: i64, moment_ns: u64) -> f64 {
    epoch_ns.saturating_add_unsigned(moment_ns) as f64 / 1e9
}

/// How long after the header's time, Unix seconds, a block was announced; `None` if it was before, or absurdly long.
fn age_ns(header_time: u32, announced: f64) -> Option<u64> {
    let age = announced - f64::from(header_time);
    (age > 0.0 && age <= MAX_HEADER_AGE.as_secs_f64()).then_some((age * 1e9) as u64)
}
