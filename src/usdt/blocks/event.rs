//! The events of a block, from P2P messages and tracepoints.

use crate::bitcoin_core::CONNECTION_TYPES;

/// The hash of a block, in the byte order that the node has in memory.
pub type RawBlockHash = [u8; 32];

/// An event that concerns a block: a P2P message, or a tracepoint of the node.
pub struct BlockEvent {
    /// Time of the event on the monotonic clock, in nanoseconds.
    pub time_ns: u64,
    /// Hash of the block; zeros for an event of no block.
    pub hash: RawBlockHash,
    pub kind: BlockEventKind,
}

/// The type and the data of a [`BlockEvent`]. `peer` is the node's ID for the peer.
pub enum BlockEventKind {
    /// A peer announced the block with an inv, or with its header in a headers message.
    Announced { peer: i64, by: Announcement },
    /// A cmpctblock arrived.
    Compact { peer: i64, compact: CompactBlock },
    /// The node sent a getdata for the block, or for its compact block.
    Requested { peer: i64, is_compact: bool },
    /// The node sent a getblocktxn.
    TransactionsRequested { peer: i64, transactions: u64 },
    /// A blocktxn arrived.
    TransactionsReceived { peer: i64, bytes: u64 },
    /// A block message arrived.
    FullBlock { peer: i64 },
    /// A peer sent a ping, pong or verack, which shows its connection type. Belongs to no block.
    PeerActive { peer: i64, connection: ConnectionType },
    /// The node reports that it accepted the header from this peer: new, and valid.
    HeaderAccepted { peer: i64 },
    /// The node reports that it has reconstructed a compact block.
    Reconstructed { peer: i64, from: Reconstruction },
    /// The node wrote the UTXO cache to disk. Belongs to no block.
    Flushed { duration_ns: u64 },
    /// FIBRE has reconstructed the block. Only newer builds pass the height.
    Fibre { height: Option<i32> },
    /// FIBRE reports which mechanism delivered the block first.
    RaceWon { height: i32, mechanism: &'static str },
    /// FIBRE reports the time until each mechanism had delivered the block, in nanoseconds; `None` for a mechanism that took no part.
    RaceFinished { height: i32, udp_ns: Option<i64>, compact_ns: Option<i64> },
    /// The node connected the block.
    Connected(ConnectedBlock),
}

/// The contents of a block that the node connected, with the duration and the thread of the connection.
pub struct ConnectedBlock {
    pub height: i32,
    pub transactions: i64,
    pub inputs: i64,
    pub sigops: i64,
    pub duration_ns: i64,
    pub thread: ConnectingThread,
}

/// The thread of the node that connected a block. It shows whether the connection can be a check of the database.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ConnectingThread {
    /// The main thread. It checks the database at startup, and connects no block of the active chain.
    Main,
    /// The thread that handles messages of peers, or the one that imports files. They never check the database.
    Validation,
    /// Another thread, for example one that serves RPC.
    Other,
}

impl ConnectingThread {
    /// The thread by its name in the kernel, and by whether it is the main thread of its process.
    pub fn from_name(name: &str, is_main: bool) -> Self {
        match name {
            "b-msghand" | "b-initload" => ConnectingThread::Validation,
            // The thread of bitcoin-qt that starts the node.
            "b-qt-init" => ConnectingThread::Main,
            _ if is_main => ConnectingThread::Main,
            _ => ConnectingThread::Other,
        }
    }
}

/// The number of a reconstructed compact block's transactions by source, as the node reports them.
/// `requested_bytes` is the size of the requested transactions in bytes.
#[derive(Clone, Copy)]
pub struct Reconstruction {
    pub prefilled: u32,
    pub from_mempool: u32,
    pub from_extra_pool: u32,
    pub requested: u32,
    pub requested_bytes: u32,
}

/// The message by which a peer announces a block.
#[derive(Clone, Copy, PartialEq)]
pub enum Announcement {
    /// A headers message, with the time in the header, Unix seconds.
    Headers(u32),
    /// An inv, which has only the hash.
    Inv,
    /// A cmpctblock that was not requested, with the time in its header, Unix seconds.
    Compact(u32),
}

impl Announcement {
    /// Labels, in the order of the variants.
    pub const LABELS: [&'static str; 3] = ["headers", "inv", "cmpctblock"];

    /// Index of the label in [`Announcement::LABELS`].
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

/// A received compact block: the time in its header, and the number of its short IDs.
#[derive(Clone, Copy)]
pub struct CompactBlock {
    /// Time in its header, Unix seconds.
    pub header_time: u32,
    /// Number of its short IDs.
    pub short_ids: u64,
}

/// The connection type of a peer, with the names that the node uses.
#[derive(Clone, Copy, PartialEq)]
pub struct ConnectionType(usize);

impl ConnectionType {
    /// Labels. Types of later versions of the node are `other`. `unknown` is a peer that has not sent a message that shows its type yet.
    pub const LABELS: [&'static str; 9] = {
        let [a, b, c, d, e, f, g] = CONNECTION_TYPES;
        [a, b, c, d, e, f, g, "other", "unknown"]
    };
    pub const UNKNOWN: ConnectionType = ConnectionType(8);

    /// The connection type with this name. An empty name, which could not be read, is `unknown`.
    pub fn from_name(text: &str) -> Self {
        let found = Self::LABELS.iter().position(|label| *label == text);
        ConnectionType(found.unwrap_or(if text.is_empty() { 8 } else { 7 }))
    }

    pub fn label(self) -> &'static str {
        Self::LABELS[self.0]
    }

    /// Index of the label in [`ConnectionType::LABELS`].
    pub fn number(self) -> usize {
        self.0
    }
}
