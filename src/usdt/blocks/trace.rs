//! The timeline of one block, and how it arrived.

use std::collections::VecDeque;

use super::event::{
    Announcement, BlockEventKind, CompactBlock, ConnectedBlock, RawBlockHash, Reconstruction,
};

/// Limit on peers that are remembered of one block.
pub const MAX_PEERS: usize = 256;
/// Limit on complete deliveries, or what looks like one, that are remembered of one block.
pub const MAX_DELIVERIES: usize = 32;

/// How a connected block arrived.
#[derive(Clone, Copy, PartialEq)]
pub enum ArrivalMethod {
    CompactComplete,
    CompactRequested,
    FullBlock,
    Fibre,
    Other,
}

impl ArrivalMethod {
    pub const LABELS: [&'static str; 5] =
        ["compact_complete", "compact_requested", "full_block", "fibre", "other"];

    pub fn label(self) -> &'static str {
        Self::LABELS[self as usize]
    }
}

/// `mode` of a compact block: sent as the announcement, or requested.
pub const MODES: [&str; 2] = ["high_bandwidth", "low_bandwidth"];

/// A peer's messages about a block.
pub struct PeerActivity {
    pub id: i64,
    /// When it announced the block, and how.
    pub announced: Option<(u64, Announcement)>,
    /// A compact block was requested from it and has not arrived yet.
    pub owes_compact: bool,
    /// Its compact block, and when it came.
    pub compact: Option<(u64, CompactBlock)>,
    /// When transactions were requested from it, and how many.
    pub asked: Option<(u64, u64)>,
    /// When these came, and their bytes.
    pub answered: Option<(u64, u64)>,
}

/// The events of a block.
pub struct Timeline {
    pub hash: RawBlockHash,
    /// How the clocks were related when it was announced: see `clock`.
    pub epoch_ns: i64,
    pub first_ns: u64,
    pub first_peer: i64,
    pub first_by: Announcement,
    pub header_time: Option<u32>,
    pub peers: Vec<PeerActivity>,
    pub announcements: [u64; Announcement::LABELS.len()],
    pub compact_blocks: [u64; MODES.len()],
    /// Messages after which the block may have been complete: when, from whom, and how it came.
    pub deliveries: VecDeque<(u64, i64, ArrivalMethod)>,
    /// The node has requested it or parts of it, or has found its header or its chunks valid: no peer has invented it.
    pub is_wanted: bool,
    /// The node has reported whose header it accepted.
    pub has_header: bool,
    /// When the node had reconstructed a compact block, of which peer, and its report.
    pub reconstructed: Option<(u64, i64, Reconstruction)>,
    pub fibre_ns: Option<u64>,
    pub race_winner: Option<&'static str>,
    pub connected_ns: Option<u64>,
}

impl Timeline {
    /// Of a block that this peer is the first to announce.
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

    /// When the first compact block came, since it was announced.
    pub fn first_compact_ns(&self) -> Option<u64> {
        let came = self.peers.iter().filter_map(|peer| Some(peer.compact?.0));
        came.filter(|time| *time >= self.first_ns).min()
    }

    /// `None` if too many are remembered.
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

    /// Applies an event before the block was connected. `reports_reconstruction`: the node reports when it has reconstructed a compact
    /// block.
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
            // Handled by the tracker, or of no block.
            BlockEventKind::Announced { .. }
            | BlockEventKind::Compact { .. }
            | BlockEventKind::Connected(_)
            | BlockEventKind::PeerActive { .. }
            | BlockEventKind::Flushed { .. }
            | BlockEventKind::RaceFinished { .. } => {}
        }
    }

    /// The node reports whose header it accepted. Earlier headers of other peers were not usable: they did not announce the block.
    /// A peer that announced only the hash before was still the first.
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

    pub fn deliver(&mut self, time_ns: u64, peer: i64, arrival: ArrivalMethod) {
        if self.deliveries.len() == MAX_DELIVERIES {
            self.deliveries.pop_front();
        }
        self.deliveries.push_back((time_ns, peer, arrival));
    }

    /// The message that completed the block, and its peer: the last one before the node began to connect it. The node handles one
    /// message after the other. FIBRE works beside them, and continues as soon as it has a block.
    fn arrival(&self, start_ns: u64) -> (ArrivalMethod, Option<i64>) {
        let reconstructed_ns = self.reconstructed.map_or(u64::MAX, |(time, ..)| time);
        if self.fibre_ns.is_some_and(|time| time <= start_ns.min(reconstructed_ns)) {
            return (ArrivalMethod::Fibre, None);
        }
        // After the reconstruction the node has the block, whatever else arrives.
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
            // Transactions were missing, and the block came from elsewhere first, for example submitted by RPC.
            return (ArrivalMethod::Other, None);
        }
        (arrival, Some(id))
    }
}

/// The arrival of a connected block, derived from its timeline.
pub struct BlockArrival {
    pub arrival: ArrivalMethod,
    /// When all transactions were there: as the node reports it of a compact block, else when it began to connect the block.
    pub start_ns: u64,
    pub connected_ns: u64,
    /// How old the header's time was at the first announcement; `None` if it was in the future.
    pub header_age_ns: Option<u64>,
    /// The compact block that brought the block.
    pub compact: Option<CompactBlock>,
    pub prefilled: Option<u64>,
    /// Transactions that were requested to complete it, and their bytes.
    pub requested: Option<(u64, u64)>,
    /// The node's report, if it makes one.
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
            // A compact block has all transactions of the block, as short ids or whole.
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
