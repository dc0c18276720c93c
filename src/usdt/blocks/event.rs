//! The events from which the history of a block is made, decoded from P2P messages and from the node's tracepoints.

use crate::bitcoin_core::CONNECTION_TYPES;

/// The hash of a block in the internal byte order of Bitcoin Core, the reverse of the printed order.
pub type RawBlockHash = [u8; 32];

/// A P2P message, or a hit of another tracepoint of the node, from which the block tracker learns how and when a block
/// arrived. Most events concern one block.
pub struct BlockEvent {
    /// Time of the event on the monotonic clock, in nanoseconds.
    pub time_ns: u64,
    /// Hash of the block; zeros for an event that concerns no block.
    pub hash: RawBlockHash,
    pub kind: BlockEventKind,
}

/// The type and the data of a [`BlockEvent`]. `peer` is the node's ID for the peer.
pub enum BlockEventKind {
    /// A peer announced the block with an inv, or with its header in a headers message. `header_time` is the timestamp
    /// in the header, Unix seconds; `None` for an inv.
    Announced { peer: i64, by: Announcement, header_time: Option<u32> },
    /// The node received a cmpctblock message with this number of short IDs. `header_time` is the timestamp in the
    /// block's header, Unix seconds.
    Compact { peer: i64, header_time: u32, short_ids: u64 },
    /// The node sent a getdata message for the block (`is_compact` is false) or its compact block (`is_compact` is
    /// true).
    Requested { peer: i64, is_compact: bool },
    /// The node sent a getblocktxn message, which requests this number of transactions of a compact block.
    TransactionsRequested { peer: i64, transactions: u64 },
    /// The node received a blocktxn message with requested transactions of this total size.
    TransactionsReceived { peer: i64, bytes: u64 },
    /// The node received a block message.
    FullBlock { peer: i64 },
    /// A peer sent a ping, pong or verack message. The tracepoint passes the peer's connection type. The event concerns
    /// no block.
    PeerActive { peer: i64, connection: ConnectionType },
    /// The node reports that it received the block's header from this peer, and that the header is new and valid.
    HeaderAccepted { peer: i64 },
    /// The node reports that it has reconstructed the block from a compact block of this peer.
    Reconstructed { peer: i64, from: Reconstruction },
    /// The node wrote the UTXO cache to disk. The event concerns no block.
    Flushed { duration_ns: u64 },
    /// FIBRE has reconstructed the block from UDP packets. `height` is `None` with older builds of FIBRE, whose
    /// tracepoint does not pass the block's height, and if the node does not have the previous block.
    Fibre { height: Option<i32> },
    /// FIBRE reports which relay mechanism, FIBRE/UDP or compact blocks, delivered the block first.
    RaceWon { height: i32, mechanism: &'static str },
    /// FIBRE reports the result of the race, its comparison of the two relay mechanisms: how many nanoseconds each
    /// mechanism took. The time is `None` for a mechanism that did not take part in the race.
    RaceFinished { height: i32, udp_ns: Option<i64>, compact_ns: Option<i64> },
    /// The node connected the block.
    Connected(ConnectedBlock),
}

/// A block that the node connected, as the tracepoint `validation:block_connected` reports it, and the node's thread
/// that connected the block.
pub struct ConnectedBlock {
    pub height: i32,
    pub transactions: i64,
    pub inputs: i64,
    pub sigops: i64,
    pub duration_ns: i64,
    pub thread: ConnectingThread,
}

impl ConnectedBlock {
    /// Time at which the node began to connect the block that it had connected at `connected_ns`.
    pub fn start_ns(&self, connected_ns: u64) -> u64 {
        connected_ns.saturating_sub(self.duration_ns.max(0) as u64)
    }
}

/// The kind of the node's thread that connected a block. The thread shows whether the connection can be part of a check
/// of the database.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ConnectingThread {
    /// The main thread, which connects blocks only to check the database at startup.
    Main,
    /// The thread that handles P2P messages, or the thread that imports block files. Neither thread checks the
    /// database.
    Validation,
    /// Another thread, for example a thread that serves RPC, which may check the database (`verifychain`).
    Other,
}

impl ConnectingThread {
    /// Classifies a thread by its name, and by whether it is the main thread of its process.
    pub fn from_name(name: &str, is_main: bool) -> Self {
        match name {
            "b-msghand" | "b-initload" => ConnectingThread::Validation,
            // In bitcoin-qt, this thread starts the node and checks the database.
            "b-qt-init" => ConnectingThread::Main,
            _ if is_main => ConnectingThread::Main,
            _ => ConnectingThread::Other,
        }
    }
}

/// The numbers of a reconstructed compact block's transactions by source, as the node reports them. The extra pool has
/// transactions that are not in the mempool, for example replaced transactions. `requested_bytes` is the size of the
/// requested transactions in bytes.
#[derive(Clone, Copy)]
pub struct Reconstruction {
    pub prefilled: u32,
    pub from_mempool: u32,
    pub from_extra_pool: u32,
    pub requested: u32,
    pub requested_bytes: u32,
}

/// The message by which a peer announces a block.
#[derive(Clone, Copy, Default, PartialEq)]
pub enum Announcement {
    Headers,
    /// An inv message, which has only the hash of the block.
    #[default]
    Inv,
    /// A cmpctblock message that the node did not request.
    Compact,
}

impl Announcement {
    /// Values of the metric label for the message type, in the order of the variants.
    pub const LABELS: [&'static str; 3] = ["headers", "inv", "cmpctblock"];

    pub fn label(self) -> &'static str {
        Self::LABELS[self as usize]
    }
}

/// The connection type of a peer, as an index into [`ConnectionType::LABELS`].
#[derive(Clone, Copy, PartialEq)]
pub struct ConnectionType(pub usize);

impl ConnectionType {
    /// Label values: the node's names of the connection types. `other` is a type that this exporter does not support.
    /// `unknown` is used until the peer has sent a message from which the exporter reads the type.
    pub const LABELS: [&'static str; 9] = {
        let [a, b, c, d, e, f, g] = CONNECTION_TYPES;
        [a, b, c, d, e, f, g, "other", "unknown"]
    };
    pub const UNKNOWN: ConnectionType = ConnectionType(8);

    /// The connection type with this name. An empty name, which means that the name could not be read, becomes
    /// `unknown`.
    pub fn from_name(text: &str) -> Self {
        let found = Self::LABELS.iter().position(|label| *label == text);
        ConnectionType(found.unwrap_or(if text.is_empty() { 8 } else { 7 }))
    }

    pub fn label(self) -> &'static str {
        Self::LABELS[self.0]
    }
}
