//! Events of a block.

use crate::bitcoin_core::CONNECTION_TYPES;

/// The hash of a block, as the node has it in memory.
pub type RawBlockHash = [u8; 32];

/// An event of a block.
pub struct BlockEvent {
    /// When, on the monotonic clock, in nanoseconds.
    pub time_ns: u64,
    pub hash: RawBlockHash,
    pub kind: BlockEventKind,
}

/// The kind of an event. `peer` is the node's number for it.
pub enum BlockEventKind {
    /// An inv, or a header in headers.
    Announced { peer: i64, by: Announcement },
    /// A cmpctblock came.
    Compact { peer: i64, compact: CompactBlock },
    /// A getdata was sent.
    Requested { peer: i64, is_compact: bool },
    /// A getblocktxn was sent.
    TransactionsRequested { peer: i64, transactions: u64 },
    /// A blocktxn came.
    TransactionsReceived { peer: i64, bytes: u64 },
    /// A block came.
    FullBlock { peer: i64 },
    /// A peer has sent a message; of no block.
    PeerActive { peer: i64, connection: ConnectionType },
    /// The node reports whose header it accepted: new, and valid.
    HeaderAccepted { peer: i64 },
    /// The node reports that it has reconstructed a compact block.
    Reconstructed { peer: i64, from: Reconstruction },
    /// The UTXO cache was written to disk; of no block.
    Flushed { duration_ns: u64 },
    /// FIBRE has reconstructed it; newer builds pass the height.
    Fibre { height: Option<i32> },
    /// FIBRE reports which mechanism delivered it first.
    RaceWon { height: i32, mechanism: &'static str },
    /// FIBRE reports how long each mechanism took to have it, in nanoseconds; `None` if it took no part.
    RaceFinished { height: i32, udp_ns: Option<i64>, compact_ns: Option<i64> },
    /// The node connected it.
    Connected(ConnectedBlock),
}

/// A block that was connected.
pub struct ConnectedBlock {
    pub height: i32,
    pub transactions: i64,
    pub inputs: i64,
    pub sigops: i64,
    pub duration_ns: i64,
    pub thread: ConnectingThread,
}

/// Threads of the node that connect blocks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ConnectingThread {
    /// The main thread: it checks the database at startup, and connects no block of the active chain.
    Main,
    /// The thread of peers' messages, or of files that are imported: it never checks the database.
    Validation,
    /// A thread of RPC, for example.
    Other,
}

impl ConnectingThread {
    /// By its name, as the kernel has it.
    pub fn from_name(name: &str, is_main: bool) -> Self {
        match name {
            "b-msghand" | "b-initload" => ConnectingThread::Validation,
            // bitcoin-qt's that begins the node.
            "b-qt-init" => ConnectingThread::Main,
            _ if is_main => ConnectingThread::Main,
            _ => ConnectingThread::Other,
        }
    }
}

/// Where the transactions of a compact block came from.
#[derive(Clone, Copy)]
pub struct Reconstruction {
    pub prefilled: u32,
    pub from_mempool: u32,
    pub from_extra_pool: u32,
    pub requested: u32,
    pub requested_bytes: u32,
}

/// How a block is announced.
#[derive(Clone, Copy, PartialEq)]
pub enum Announcement {
    /// With the time in the header, Unix seconds.
    Headers(u32),
    Inv,
    /// A cmpctblock that was not requested, with the time in its header.
    Compact(u32),
}

impl Announcement {
    pub const LABELS: [&'static str; 3] = ["headers", "inv", "cmpctblock"];

    pub fn number(self) -> usize {
        match self {
            Announcement::Headers(_) => 0,
            Announcement::Inv => 1,
            Announcement::Compact(_) => 2,
        }
    }

    pub fn label(self) -> &'static str {
        Self::LABELS[self.number()]
    }

    pub fn header_time(self) -> Option<u32> {
        match self {
            Announcement::Headers(time) | Announcement::Compact(time) => Some(time),
            Announcement::Inv => None,
        }
    }
}

/// A compact block.
#[derive(Clone, Copy)]
pub struct CompactBlock {
    /// In its header, Unix seconds.
    pub header_time: u32,
    pub short_ids: u64,
}

/// Kinds of connections, as the node calls them.
#[derive(Clone, Copy, PartialEq)]
pub struct ConnectionType(usize);

impl ConnectionType {
    /// Kinds of later versions of the node are `other`; `unknown` is a peer that has sent no message with its kind yet.
    pub const LABELS: [&'static str; 9] = {
        let [a, b, c, d, e, f, g] = CONNECTION_TYPES;
        [a, b, c, d, e, f, g, "other", "unknown"]
    };
    pub const UNKNOWN: ConnectionType = ConnectionType(8);

    /// As the node writes it; empty if that could not be read.
    pub fn from_name(text: &str) -> Self {
        let found = Self::LABELS.iter().position(|label| *label == text);
        ConnectionType(found.unwrap_or(if text.is_empty() { 8 } else { 7 }))
    }

    pub fn number(self) -> usize {
        self.0
    }
}
