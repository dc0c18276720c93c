//! Chain: height, and the notifications of the validation queue.

use std::rc::Rc;

use super::handler::{Lifetime, Subscription};
use super::{CallError, Thread, call};
use crate::schema::chain_capnp::{chain, chain_notifications};

/// A notification.
#[derive(Debug)]
pub enum ChainEvent {
    /// `transactionAddedToMempool`
    AddedToMempool,
    /// `transactionRemovedFromMempool`, with Core's number for the reason.
    RemovedFromMempool(i32),
    /// `blockConnected`
    BlockConnected {
        /// The block's height.
        height: i32,
        /// Connected to the background chainstate of an assumeutxo node, far below the tip.
        historical: bool,
        /// The whole block, empty if the node left it out.
        data: Vec<u8>,
    },
    /// `blockDisconnected`
    BlockDisconnected {
        /// The block's height.
        height: i32,
    },
    /// `updatedBlockTip`
    UpdatedTip,
    /// `chainStateFlushed`
    Flushed,
}

/// The Chain interface.
pub struct Chain(chain::Client);

impl Chain {
    pub(super) fn new(client: chain::Client) -> Self {
        Chain(client)
    }

    /// Whether the node is shutting down; `None` if the capability is no Chain. Safe to ask from the node's first
    /// moment to its last.
    pub(super) async fn shutdown_requested(&self, on: &Thread) -> Result<Option<bool>, CallError> {
        let answer = super::optional(call!(self.0, shutdown_requested_request, on))?;
        Ok(answer.map(|answer| answer.get().map(|answer| answer.get_result())).transpose()?)
    }

    /// Height of the tip; `None` without one.
    pub async fn height(&self, on: &Thread) -> Result<Option<i32>, CallError> {
        let answer = call!(self.0, get_height_request, on)?;
        let answer = answer.get()?;
        Ok(answer.get_has_result().then(|| answer.get_result()))
    }

    /// Whether the node is in initial block download.
    pub async fn is_initial_block_download(&self, on: &Thread) -> Result<bool, CallError> {
        Ok(call!(self.0, is_initial_block_download_request, on)?.get()?.get_result())
    }

    /// Whether blocks were pruned.
    pub async fn have_pruned(&self, on: &Thread) -> Result<bool, CallError> {
        Ok(call!(self.0, have_pruned_request, on)?.get()?.get_result())
    }

    /// Height of the last pruned block.
    pub async fn prune_height(&self, on: &Thread) -> Result<Option<i32>, CallError> {
        let answer = call!(self.0, get_prune_height_request, on)?;
        let answer = answer.get()?;
        Ok(answer.get_has_result().then(|| answer.get_result()))
    }

    /// Subscribes to the notifications; `sink` gets each before the node gets its answer, so it must be quick.
    ///
    /// From here on the connection must not be closed before [`Subscription::end`] returned.
    pub async fn subscribe(
        &self,
        on: &Thread,
        sink: impl Fn(ChainEvent) + 'static,
    ) -> Result<Subscription, CallError> {
        let (lifetime, end) = Lifetime::new();
        let callback: chain_notifications::Client =
            capnp_rpc::new_client(Notifications { sink, _lifetime: lifetime });
        let answer =
            call!(self.0, handle_notifications_request, on, |params| params.set_notifications(callback))?;
        Ok(Subscription::new(answer.get()?.get_result()?, end))
    }
}

struct Notifications<F> {
    sink: F,
    _lifetime: Lifetime,
}

impl<F: Fn(ChainEvent) + 'static> chain_notifications::Server for Notifications<F> {
    /// The node's last call; it releases us right after the answer.
    async fn destroy(
        self: Rc<Self>,
        _: chain_notifications::DestroyParams,
        _: chain_notifications::DestroyResults,
    ) -> Result<(), capnp::Error> {
        Ok(())
    }

    async fn transaction_added_to_mempool(
        self: Rc<Self>,
        _: chain_notifications::TransactionAddedToMempoolParams,
        _: chain_notifications::TransactionAddedToMempoolResults,
    ) -> Result<(), capnp::Error> {
        (self.sink)(ChainEvent::AddedToMempool);
        Ok(())
    }

    async fn transaction_removed_from_mempool(
        self: Rc<Self>,
        params: chain_notifications::TransactionRemovedFromMempoolParams,
        _: chain_notifications::TransactionRemovedFromMempoolResults,
    ) -> Result<(), capnp::Error> {
        (self.sink)(ChainEvent::RemovedFromMempool(params.get()?.get_reason()));
        Ok(())
    }

    async fn block_connected(
        self: Rc<Self>,
        params: chain_notifications::BlockConnectedParams,
        _: chain_notifications::BlockConnectedResults,
    ) -> Result<(), capnp::Error> {
        let params = params.get()?;
        let block = params.get_block()?;
        (self.sink)(ChainEvent::BlockConnected {
            height: block.get_height(),
            historical: params.get_role()?.get_historical(),
            data: block.get_data()?.to_vec(),
        });
        Ok(())
    }

    async fn block_disconnected(
        self: Rc<Self>,
        params: chain_notifications::BlockDisconnectedParams,
        _: chain_notifications::BlockDisconnectedResults,
    ) -> Result<(), capnp::Error> {
        (self.sink)(ChainEvent::BlockDisconnected { height: params.get()?.get_block()?.get_height() });
        Ok(())
    }

    async fn updated_block_tip(
        self: Rc<Self>,
        _: chain_notifications::UpdatedBlockTipParams,
        _: chain_notifications::UpdatedBlockTipResults,
    ) -> Result<(), capnp::Error> {
        (self.sink)(ChainEvent::UpdatedTip);
        Ok(())
    }

    async fn chain_state_flushed(
        self: Rc<Self>,
        _: chain_notifications::ChainStateFlushedParams,
        _: chain_notifications::ChainStateFlushedResults,
    ) -> Result<(), capnp::Error> {
        (self.sink)(ChainEvent::Flushed);
        Ok(())
    }
}
