//! What is remembered of a node from one connection to the next, so that a reconnect neither counts twice nor misses
//! anything.

use std::cell::RefCell;
use std::rc::Rc;

use super::peers::Peers;
use crate::ipc::BlockRef;

/// Belongs to the collector; the poller and the tip watch of the present connection share it.
pub type SharedMemory = Rc<RefCell<Memory>>;

/// What was counted already.
#[derive(Default)]
pub struct Memory {
    /// Traffic by peer.
    pub peers: Peers,
    /// The last tip that the node told.
    pub seen_tip: Option<BlockRef>,
    /// The tip up to which blocks are counted.
    pub counted_tip: Option<BlockRef>,
}
