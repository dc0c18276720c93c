//! The timeline of one block, which has the times of the P2P messages about the block and of the node's reports about
//! it, and the decision by which method the block arrived.

use std::collections::{BTreeMap, VecDeque};

use super::event::{Announcement, BlockEventKind, ConnectedBlock, RawBlockHash, Reconstruction};

/// Limit on peers whose activity is recorded for one block.
pub const MAX_PEERS: usize = 256;
/// Limit on recorded deliveries of one block. A delivery is a message after which the block may have been complete.
pub const MAX_DELIVERIES: usize = 32;

/// The method by which a connected block arrived at the node.
#[derive(Clone, Copy, PartialEq)]
pub enum ArrivalMethod {
    /// The node reconstructed the block from a compact block without requesting transactions.
    CompactComplete,
    /// The node reconstructed the block from a compact block after it had requested missing transactions.
    CompactRequested,
    /// A peer sent the full block in a block message.
    FullBlock,
    /// FIBRE reconstructed the block from UDP chunks.
    Fibre,
    /// The block arrived by another method, for example `submitblock`, or no peer announced the block.
    Other,
}

impl ArrivalMethod {
    /// Values of the metric label for the method, in the order of the variants.
    pub const LABELS: [&'static str; 5] =
        ["compact_complete", "compact_requested", "full_block", "fibre", "other"];

    pub fn label(self) -> &'static str {
        Self::LABELS[self as usize]
    }
}

/// Values of the label `mode` of compact blocks: `high_bandwidth` for a compact block sent as the announcement,
/// `low_bandwidth` for a compact block that the node requested.
pub const MODES: [&str; 2] = ["high_bandwidth", "low_bandwidth"];

/// Times and contents of the messages that the node and one peer have exchanged about one block.
#[derive(Default)]
pub struct PeerActivity {
    /// Time and message type of the peer's first announcement of the block.
    pub announced: Option<(u64, Announcement)>,
    /// Whether the node has requested a compact block from this peer and has not received it yet.
    pub owes_compact: bool,
    /// Arrival time and number of short IDs of the peer's first compact block.
    pub compact: Option<(u64, u64)>,
    /// Time at which the node requested transactions of the compact block from the peer (getblocktxn), and the number
    /// of requested transactions.
    pub asked: Option<(u64, u64)>,
    /// Arrival time of the requested transactions (blocktxn), and their total size in bytes.
    pub answered: Option<(u64, u64)>,
}

/// The history of one announced block: announcements, other messages about the block, and the node's reports about it.
/// Fields that end in `_ns` are times on the monotonic clock, in nanoseconds.
#[derive(Default)]
pub struct Timeline {
    pub hash: RawBlockHash,
    /// Unix time at which the monotonic clock was 0, in nanoseconds, as `clock::epoch_ns` returned it when the block
    /// was announced.
    pub epoch_ns: i64,
    /// Time at which the block was first announced. `first_peer` and `first_by` are the peer and the message type of
    /// this announcement.
    pub first_ns: u64,
    pub first_peer: i64,
    pub first_by: Announcement,
    /// Timestamp in the block's header, Unix seconds.
    pub header_time: Option<u32>,
    /// Time of the first message with the block's header. The time is before `first_ns` if the node did not accept the
    /// header of that message.
    pub header_ns: Option<u64>,
    /// The activity of each peer, by the node's ID for the peer.
    pub peers: BTreeMap<i64, PeerActivity>,
    /// Number of announcements before the block's connection, by message type.
    pub announcements: [u64; Announcement::LABELS.len()],
    /// Number of compact blocks received before the block's connection, by mode.
    pub compact_blocks: [u64; MODES.len()],
    /// Messages after which the block may have been complete: for each the time, the peer, and the method of arrival.
    pub deliveries: VecDeque<(u64, i64, ArrivalMethod)>,
    /// Whether the node has requested the block or parts of it, has accepted its header, or has reconstructed it. A
    /// peer cannot have invented the hash of a block that the node has requested, accepted or reconstructed.
    pub is_wanted: bool,
    /// Whether the node has reported the peer from which it accepted the header.
    pub has_header: bool,
    /// The node's report that it has reconstructed the block: the time, the peer that sent the compact block, and the
    /// numbers of transactions by source.
    pub reconstructed: Option<(u64, i64, Reconstruction)>,
    /// Time at which FIBRE reconstructed the block.
    pub fibre_ns: Option<u64>,
    /// Time at which the node had connected the block.
    pub connected_ns: Option<u64>,
}

impl Timeline {
    /// Arrival time of the first compact block that arrived with or after the first announcement.
    pub fn first_compact_ns(&self) -> Option<u64> {
        let came = self.peers.values().filter_map(|peer| Some(peer.compact?.0));
        came.filter(|time| *time >= self.first_ns).min()
    }

    /// The activity of this peer, added if the timeline has no activity of this peer; `None` if the timeline already
    /// has [`MAX_PEERS`] other peers.
    pub fn peer(&mut self, id: i64) -> Option<&mut PeerActivity> {
        let is_full = self.peers.len() >= MAX_PEERS && !self.peers.contains_key(&id);
        (!is_full).then(|| self.peers.entry(id).or_default())
    }

    /// Applies an event that occurred before the block was connected. `reports_reconstruction` is true if the
    /// tracepoint `net:compact_block_reconstructed` is attached, which then determines when a compact block was
    /// complete.
    pub fn apply(&mut self, time_ns: u64, kind: BlockEventKind, reports_reconstruction: bool) {
        self.is_wanted |=
            !matches!(kind, BlockEventKind::TransactionsReceived { .. } | BlockEventKind::FullBlock { .. });
        match kind {
            BlockEventKind::Requested { peer, is_compact } => {
                if let Some(peer) = self.peer(peer) {
                    peer.owes_compact = is_compact;
                }
            }
            BlockEventKind::TransactionsRequested { peer, transactions } => {
                if let Some(peer) = self.peer(peer) {
                    peer.asked = Some((time_ns, transactions));
                }
            }
            BlockEventKind::TransactionsReceived { peer: id, bytes } => {
                let Some(peer) = self.peer(id) else { return };
                if peer.asked.is_some() {
                    peer.answered = Some((time_ns, bytes));
                    if !reports_reconstruction {
                        self.deliver(time_ns, id, ArrivalMethod::CompactRequested);
                    }
                }
            }
            BlockEventKind::HeaderAccepted { peer } => self.header(peer),
            BlockEventKind::Reconstructed { peer, from } => {
                self.reconstructed.get_or_insert((time_ns, peer, from));
            }
            BlockEventKind::FullBlock { peer } => self.deliver(time_ns, peer, ArrivalMethod::FullBlock),
            BlockEventKind::Fibre { .. } => {
                self.fibre_ns.get_or_insert(time_ns);
            }
            // `BlockTracker` handles the other events.
            _ => {}
        }
    }

    /// Applies the node's report that it accepted the header from this peer. Earlier headers from other peers were not
    /// accepted, and are not eligible as the first announcement. An earlier announcement by inv, which has only the
    /// hash, remains eligible.
    pub fn header(&mut self, id: i64) {
        if std::mem::replace(&mut self.has_header, true) {
            return;
        }
        let announced = self.peers.iter().filter_map(|(id, peer)| Some((peer.announced?, *id)));
        let counts = announced.filter(|((_, by), peer)| *peer == id || *by == Announcement::Inv);
        if let Some(((time_ns, by), peer)) = counts.min_by_key(|((time_ns, _), _)| *time_ns) {
            (self.first_ns, self.first_peer, self.first_by) = (time_ns, peer, by);
        }
    }

    /// Records a message after which the block may have been complete. If there are already [`MAX_DELIVERIES`]
    /// deliveries, the oldest delivery is dropped.
    pub fn deliver(&mut self, time_ns: u64, peer: i64, arrival: ArrivalMethod) {
        if self.deliveries.len() == MAX_DELIVERIES {
            self.deliveries.pop_front();
        }
        self.deliveries.push_back((time_ns, peer, arrival));
    }

    /// The method by which the block arrived, and the peer that sent it. The last delivery before the node began to
    /// connect the block completed the block, because the node handles one P2P message after the other. FIBRE runs in
    /// parallel to P2P messages. A block that FIBRE reconstructed before the connection therefore arrived by FIBRE,
    /// unless a compact block was reconstructed earlier.
    fn arrival(&self, start_ns: u64) -> (ArrivalMethod, Option<i64>) {
        let reconstructed_ns = self.reconstructed.map_or(u64::MAX, |(time, ..)| time);
        if self.fibre_ns.is_some_and(|time| time <= start_ns.min(reconstructed_ns)) {
            return (ArrivalMethod::Fibre, None);
        }
        // The reconstruction of a compact block completes the block. Messages after the reconstruction did not
        // complete the block.
        if let Some((_, id, from)) = self.reconstructed.filter(|_| reconstructed_ns <= start_ns) {
            let by = if from.requested == 0 {
                ArrivalMethod::CompactComplete
            } else {
                ArrivalMethod::CompactRequested
            };
            return (by, Some(id));
        }
        let Some(&(_, id, arrival)) = self.deliveries.iter().rfind(|(time, ..)| *time <= start_ns) else {
            return (ArrivalMethod::Other, None);
        };
        let was_asked = || self.peers.get(&id).is_some_and(|peer| peer.asked.is_some());
        if arrival == ArrivalMethod::CompactComplete && was_asked() {
            // The requested transactions had not arrived when the node began to connect the block. The block arrived by
            // another method, for example `submitblock`.
            return (ArrivalMethod::Other, None);
        }
        (arrival, Some(id))
    }
}

/// The arrival of a connected block: the block's timeline, and the method and the times of the arrival, which are
/// derived from the timeline.
pub struct BlockArrival<'a> {
    pub timeline: &'a Timeline,
    pub arrival: ArrivalMethod,
    /// Time at which the block was complete. For a compact block, the time of the node's report of the reconstruction,
    /// if there is one. In all other cases, the time at which the node began to connect the block.
    pub start_ns: u64,
    /// Time at which the node had connected the block.
    pub connected_ns: u64,
    /// Age of the timestamp in the block's header when the block was first announced. `None` if the timestamp is
    /// unknown, in the future, or older than the limit `MAX_HEADER_AGE`.
    pub header_age_ns: Option<u64>,
    /// Number of short IDs in the compact block from which the node reconstructed the block.
    pub short_ids: Option<u64>,
    /// Number of transactions that were prefilled in the compact block.
    pub prefilled: Option<u64>,
    /// Number and bytes of the transactions that were requested to complete the compact block.
    pub requested: Option<(u64, u64)>,
    /// The node's report of the reconstruction, if the node has the tracepoint `net:compact_block_reconstructed`.
    pub reconstructed: Option<Reconstruction>,
}

impl<'a> BlockArrival<'a> {
    pub fn new(
        timeline: &'a Timeline,
        time_ns: u64,
        connected: &ConnectedBlock,
        header_age_ns: Option<u64>,
    ) -> Self {
        let began_ns = connected.start_ns(time_ns);
        let (arrival, from) = timeline.arrival(began_ns);
        let came_compact =
            matches!(arrival, ArrivalMethod::CompactComplete | ArrivalMethod::CompactRequested);
        let from = from.filter(|_| came_compact);
        let peer = from.and_then(|id| timeline.peers.get(&id));
        let report = timeline.reconstructed.filter(|(time, id, _)| *time <= began_ns && Some(*id) == from);
        let short_ids = peer.and_then(|peer| Some(peer.compact?.1));
        let requested = || peer.and_then(|peer| Some((peer.asked?.1, peer.answered?.1))).unwrap_or_default();
        let (start_ns, reconstructed) = match report {
            Some((time_ns, _, reconstructed)) => (time_ns, Some(reconstructed)),
            None => (began_ns, None),
        };
        BlockArrival {
            timeline,
            arrival,
            start_ns,
            connected_ns: time_ns,
            header_age_ns,
            short_ids,
            // A compact block lists each transaction of the block as a short ID or includes it (prefilled).
            prefilled: match reconstructed {
                Some(from) => Some(from.prefilled.into()),
                None => short_ids.and_then(|ids| (connected.transactions.max(0) as u64).checked_sub(ids)),
            },
            requested: match reconstructed {
                Some(from) => Some((from.requested.into(), from.requested_bytes.into())),
                None => came_compact.then(requested),
            },
            reconstructed,
        }
    }
}
