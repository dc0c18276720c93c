//! What is remembered of a node from one connection to the next, so that a reconnect neither counts twice nor misses
//! anything.

use super::node_start::NodeStart;
use super::peers::Peers;
use super::thread_times::ThreadTimes;
use super::warnings::Warnings;
use crate::ipc::BlockRef;

/// What was counted already.
#[derive(Default)]
pub struct Memory {
    /// Traffic by peer.
    pub peers: Peers,
    /// Its start and restarts.
    pub node_start: NodeStart,
    /// The warnings that were logged.
    pub warnings: Warnings,
    /// CPU time of the node's threads.
    pub thread_times: ThreadTimes,
    /// The last tip that the node announced.
    pub last_tip: Option<BlockRef>,
    /// The tip up to which blocks are counted.
    pub counted_tip: Option<BlockRef>,
    /// The UTXO cache trace went over its budget once: it stays off for the life of the process.
    pub trace_given_up: bool,
}
