//! Client of the node's Chain interface: height of the tip, initial block download, pruning, and Core's validation
//! notifications (`CValidationInterface`). The node sends the notifications to the [guard](super::guard), the process
//! that relays messages between the node and the exporter.

use serde::{Deserialize, Serialize};

use super::connection::{BoundCapability, call, plain};
use super::error::ok_if_offered;
use super::subscription::{CallbackObject, Subscription};
use super::{BlockContents, CallError};
use crate::schema::chain_capnp::{chain, chain_notifications};

/// A notification that the node sent through its Chain interface, reduced to the values that the exporter uses.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub enum ChainEvent {
    /// `transactionAddedToMempool`: a transaction entered the mempool.
    AddedToMempool,
    /// `transactionRemovedFromMempool`: a transaction left the mempool. The number is the reason, a value of Core's
    /// `MemPoolRemovalReason`.
    RemovedFromMempool(i32),
    /// `blockConnected`: a block was connected to a chainstate.
    BlockConnected {
        /// The block's hash, in wire byte order; `None` if the notification contains no hash of 32 bytes.
        hash: Option<[u8; 32]>,
        /// The block's height.
        height: i32,
        /// Whether the block was connected to the background chainstate of an assumeutxo node, far below the tip.
        historical: bool,
        /// Size of the serialized block in bytes; 0 if the node omitted the block from the notification.
        bytes: usize,
        /// Totals of the block's transactions. `None` if the block cannot be parsed, or if it is `historical`: the
        /// contents of historical blocks are not counted.
        contents: Option<BlockContents>,
    },
    /// `blockDisconnected`: a block was disconnected from the active chain.
    BlockDisconnected {
        /// The block's height.
        height: i32,
    },
    /// `updatedBlockTip`: the tip has changed.
    UpdatedTip,
    /// `chainStateFlushed`: the node has written its chainstate to disk.
    Flushed,
}

/// Client of a node's Chain interface, with the node's thread that runs the calls.
pub type Chain = BoundCapability<chain::Client>;

impl Chain {
    plain! {
        /// Whether the node is in initial block download.
        is_initial_block_download = is_initial_block_download_request -> bool;
        /// Whether the node has pruned any blocks.
        have_pruned = have_pruned_request -> bool;
    }

    /// Whether the node's Chain interface has the method ordinals of the exporter's schema; `None` if the capability
    /// does not implement the Chain interface. The ordinals differ between public branches of Bitcoin Core. On a branch
    /// with the exporter's schema, the call that this function makes runs `relayMinFee`, which returns bytes. On the
    /// public branches with another schema and with the Mining interface, the same ordinal is `estimateMaxBlocks`,
    /// which returns a number. Both methods are safe to call at any time, and change nothing.
    pub(super) async fn has_our_schema(&self) -> Result<Option<bool>, CallError> {
        let answer = ok_if_offered(call!(self, relay_min_fee_request))?;
        Ok(answer.map(|answer| {
            let bytes = answer.get().and_then(|answer| answer.get_result());
            bytes.is_ok_and(|bytes| !bytes.is_empty())
        }))
    }

    /// Whether the node is shutting down; `None` if the capability does not implement the Chain interface. The call is
    /// safe even while the node starts or shuts down.
    pub(super) async fn shutdown_requested(&self) -> Result<Option<bool>, CallError> {
        let answer = ok_if_offered(call!(self, shutdown_requested_request))?;
        Ok(answer.map(|answer| answer.get().map(|answer| answer.get_result())).transpose()?)
    }

    /// Height of the tip; `None` if the node has no tip yet.
    ///
    /// # Errors
    /// The node does not respond in time, returns an error, or closes the connection ([`CallError`]).
    pub async fn height(&self) -> Result<Option<i32>, CallError> {
        let answer = call!(self, get_height_request)?;
        let answer = answer.get()?;
        Ok(answer.get_has_result().then(|| answer.get_result()))
    }

    /// Height of the last pruned block; `None` if no block was pruned.
    ///
    /// # Errors
    /// The node does not respond in time, returns an error, or closes the connection ([`CallError`]).
    pub async fn prune_height(&self) -> Result<Option<i32>, CallError> {
        let answer = call!(self, get_prune_height_request)?;
        let answer = answer.get()?;
        Ok(answer.get_has_result().then(|| answer.get_result()))
    }

    /// Subscribes to the node's chain notifications. The guard responds to each notification, and sends the
    /// notification to the exporter as an event.
    ///
    /// [`Subscription::end`] ends the subscription. If the exporter closes its connection without this call, the guard
    /// ends the subscription before the guard closes the connection to the node.
    ///
    /// # Errors
    /// The node does not respond in time, returns an error, or closes the connection ([`CallError`]).
    pub async fn subscribe(&self) -> Result<Subscription, CallError> {
        let (callback, released) = CallbackObject::new();
        let callback: chain_notifications::Client = capnp_rpc::new_client(callback);
        let answer = call!(self, handle_notifications_request, |params| params.set_notifications(callback))?;
        Ok(self.subscription(answer.get()?.get_result()?, released))
    }
}

/// This implementation of the callback interface has no methods, because the guard process, not the exporter, responds
/// to the node's callbacks.
impl chain_notifications::Server for CallbackObject {}
