//! The timeline of one block, and how the block arrived.

use std::collections::VecDeque;

use super::event::{
    Announcement, BlockEventKind, CompactBlock, ConnectedBlock, RawBlockHash, Reconstruction,
};

/// Limit on peers that are remembered for one block.
pub const MAX_PEERS: usize = 256;
/// Limit on deliveries that are remembered for one block: messages after which the block may have been complete.
pub const MAX_DELIVERIES: usize = 32;

/// How a connected block arrived at the node.
#[derive(Clone, Copy, PartialEq)]
pub enum ArrivalMethod {
    /// As a compact block, without requests for transactions.
    CompactComplete,
    /// As a compact block whose missing transactions were requested.
    CompactRequested,
    /// As a block message, in full.
    FullBlock,
    /// Over FIBRE/UDP.
    Fibre,
    /// By other means, for example submitted by RPC, or without an announcement.
    Other,
}

impl ArrivalMethod {
    /// Labels, in the order of the variants.
    pub const LABELS: [&'static str; 5] =
        ["compact_complete", "compact_requested", "full_block", "fibre", "other"];

    pub fn label(self) -> &'static str {
        Self::LABELS[self as usize]
    }
}

/// Values of the label `mode` of compact blocks: sent as the announcement, or requested by the node.
pub const MODES: [&str; 2] = ["high_bandwidth", "low_bandwidth"];

/// The messages that the node and one peer have exchanged about one block.
pub struct PeerActivity {
    /// The node's ID for the peer.
    pub id: i64,
    /// Time and message of the peer's announcement.
    pub announced: Option<(u64, Announcement)>,
    /// Whether the node has requested a compact block that has not arrived yet.
    pub owes_compact: bool,
    /// Arrival time and properties of the peer's first compact block.
    pub compact: Option<(u64, CompactBlock)>,
    /// Time of the request for transactions (getblocktxn), and their number.
    pub asked: Option<(u64, u64)>,
    /// Arrival time of the requested transactions (blocktxn), and their bytes.
    pub answered: Option<(u64, u64)>,
}

/// The history of one announced block: its announcements, messages about it, and the node's reports.
/// Times are nanoseconds on the monotonic clock.
pub struct Timeline {
    pub hash: RawBlockHash,
    /// Value of `clock::epoch_ns` when the block was announced.
    pub epoch_ns: i64,
    /// Time, peer and message of the first announcement.
    pub first_ns: u64,
    pub first_peer: i64,
    pub first_by: Announcement,
    /// Time in the block's header, Unix seconds.
    pub header_time: Option<u32>,
    /// Time of the first message with the header. It is before the first announcement if the node could not use that header.
    pub header_ns: Option<u64>,
    pub peers: Vec<PeerActivity>,
    /// Announcements before the connection, by message.
    pub announcements: [u64; Announcement::LABELS.len()],
    /// Compact blocks before the connection, by mode.
    pub compact_blocks: [u64; MODES.len()],
    /// Messages after which the block may have been complete: time, peer, and method of arrival.
    pub deliveries: VecDeque<(u64, i64, ArrivalMethod)>,
    /// Whether the node has requested the block or parts of it, or has found its header or its chunks valid. A peer cannot have invented
    /// such a block.
    pub is_wanted: bool,
    /// Whether the node has reported from which peer it accepted the header.
    pub has_header: bool,
    /// Time of the node's report that it has reconstructed a compact block, the peer that sent the compact block, and the report.
    pub reconstructed: Option<(u64, i64, Reconstruction)>,
    /// Time at which FIBRE had reconstructed the block.
    pub fibre_ns: Option<u64>,
    pub race_winner: Option<&'static str>,
    /// Time at which the node had connected the block.
    pub connected_ns: Option<u64>,
}

impl Timeline {
    /// The timeline of a block that this peer is the first to announce.
    pub fn new(
        hash: RawBlockHash,
        first_ns: u64,
        first_peer: i64,
        first_by: Announcement,
        epoch_ns: i64,
    ) -> Self {
        Timeline {
            hash,
            epoch_ns,
            first_ns,
            first_peer,
            first_by,
            header_time: None,
            header_ns: None,
            peers: Vec::new(),
            announcements: Default::default(),
            compact_blocks: Default::default(),
            deliveries: VecDeque::new(),
            is_wanted: false,
            has_header: false,
            reconstructed: None,
            fibre_ns: None,
            race_winner: None,
            connected_ns: None,
        }
    }

    /// Arrival time of the first compact block that arrived with or after the first announcement.
    pub fn first_compact_ns(&self) -> Option<u64> {
        let came = self.peers.iter().filter_map(|peer| Some(peer.compact?.0));
        came.filter(|time| *time >= self.first_ns).min()
    }

    /// The activity of this peer, added if there is none; `None` if [`MAX_PEERS`] other peers are remembered.
    pub fn peer(&mut self, id: i64) -> Option<&mut PeerActivity> {
        let position = match self.peers.iter().position(|peer| peer.id == id) {
            Some(position) => position,
            None if self.peers.len() >= MAX_PEERS => return None,
            None => {
                self.peers.push(PeerActivity {
                    id,
                    announced: None,
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

    /// Applies an event that occurred before the block was connected. `reports_reconstruction` is whether the node reports reconstructed
    /// compact blocks.
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
            BlockEventKind::RaceWon { mechanism, .. } => self.race_winner = Some(mechanism),
            // The tracker handles these events, or they belong to no block.
            BlockEventKind::Announced { .. }
            | BlockEventKind::Compact { .. }
            | BlockEventKind::Connected(_)
            | BlockEventKind::PeerActive { .. }
            | BlockEventKind::Flushed { .. }
            | BlockEventKind::RaceFinished { .. } => {}
        }
    }

    /// Applies the node's report that it accepted the header from this peer. Earlier headers from other peers were not usable, and do not
    /// count as announcements. A peer that announced only the hash before (inv) still counts as the first.
    pub fn header(&mut self, id: i64) {
        if std::mem::replace(&mut self.has_header, true) {
            return;
        }
        let announced = self.peers.iter().filter_map(|peer| Some((peer.announced?, peer.id)));
        let counts = announced.filter(|((_, by), peer)| *peer == id || *by == Announcement::Inv);
        if let Some(((time_ns, by), peer)) = counts.min_by_key(|((time_ns, _), _)| *time_ns) {
            (self.first_ns, self.first_peer, self.first_by) = (time_ns, peer, by);
        }
    }

    /// Remembers a message after which the block may have been complete. The oldest one is dropped if there are too many.
    pub fn deliver(&mut self, time_ns: u64, peer: i64, arrival: ArrivalMethod) {
        if self.deliveries.len() == MAX_DELIVERIES {
            self.deliveries.pop_front();
        }
        self.deliveries.push_back((time_ns, peer, arrival));
    }

    /// How the block arrived, and from which peer. The last message before the node began to connect the block is the one that completed
    /// it, because the node handles one message after the other. FIBRE works in parallel, and continues as soon as it has a block.
    fn arrival(&self, start_ns: u64) -> (ArrivalMethod, Option<i64>) {
        let reconstructed_ns = self.reconstructed.map_or(u64::MAX, |(time, ..)| time);
        if self.fibre_ns.is_some_and(|time| time <= start_ns.min(reconstructed_ns)) {
            return (ArrivalMethod::Fibre, None);
        }
        // After the reconstruction, the node has the block: later messages did not complete it.
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
        let was_asked = || self.peers.iter().any(|peer| peer.id == id && peer.asked.is_some());
        if arrival == ArrivalMethod::CompactComplete && was_asked() {
            // Transactions were missing from the compact block, and the block arrived first by other means, for example submitted by RPC.
            return (ArrivalMethod::Other, None);
        }
        (arrival, Some(id))
    }
}

/// How and when a connected block arrived, derived from its timeline.
pub struct BlockArrival {
    pub arrival: ArrivalMethod,
    /// Time at which all transactions had arrived: that of the node's report for a compact block, otherwise the beginning of the
    /// connection.
    pub start_ns: u64,
    /// Time at which the node had connected the block.
    pub connected_ns: u64,
    /// Age of the header's timestamp at the first announcement. `None` if the timestamp is not known, is in the future, or is too old.
    pub header_age_ns: Option<u64>,
    /// The compact block that the block was completed from.
    pub compact: Option<CompactBlock>,
    /// Number of transactions that were prefilled in the compact block.
    pub prefilled: Option<u64>,
    /// Number and bytes of the transactions that were requested to complete the compact block.
    pub requested: Option<(u64, u64)>,
    /// The node's report of the reconstruction, if the node has that tracepoint.
    pub reconstructed: Option<Reconstruction>,
}

impl BlockArrival {
    pub fn new(
        timeline: &Timeline,
        time_ns: u64,
        connected: &ConnectedBlock,
        header_age_ns: Option<u64>,
    ) -> Self {
        let began_ns = time_ns.saturating_sub(connected.duration_ns.max(0) as u64);
        let (arrival, from) = timeline.arrival(began_ns);
        let came_compact =
            matches!(arrival, ArrivalMethod::CompactComplete | ArrivalMethod::CompactRequested);
        let from = from.filter(|_| came_compact);
        let peer = timeline.peers.iter().find(|peer| Some(peer.id) == from);
        let report = timeline.reconstructed.filter(|(time, id, _)| *time <= began_ns && Some(*id) == from);
        let compact = peer.and_then(|peer| Some(peer.compact?.1));
        let requested = || peer.and_then(|peer| Some((peer.asked?.1, peer.answered?.1))).unwrap_or_default();
        let (start_ns, reconstructed) = match report {
            Some((time_ns, _, reconstructed)) => (time_ns, Some(reconstructed)),
            None => (began_ns, None),
        };
        BlockArrival {
            arrival,
            start_ns,
            connected_ns: time_ns,
            header_age_ns,
            compact,
            // A compact block has all transactions of the block, as short IDs or prefilled.
            prefilled: match reconstructed {
                Some(from) => Some(from.prefilled.into()),
                None => {
                    compact.and_then(|it| (connected.transactions.max(0) as u64).checked_sub(it.short_ids))
                }
            },
            requested: match reconstructed {
                Some(from) => Some((from.requested.into(), from.requested_bytes.into())),
                None => came_compact.then(requested),
            },
            reconstructed,
        }
    }
}
