//! Tracing: the UTXO cache trace, one call per coin while the node holds its main lock.

use std::rc::Rc;

use super::handler::{Lifetime, Subscription};
use super::{CallError, Thread, call};
use crate::schema::tracing_capnp::{tracing, utxo_cache_trace};

/// What happened to a coin of how many satoshis.
#[derive(Clone, Copy, Debug)]
pub enum CoinEvent {
    /// Added to a cache.
    Added(i64),
    /// Spent from a cache.
    Spent(i64),
    /// Dropped from a cache, unspent.
    Uncached(i64),
}

/// The Tracing interface.
pub struct Tracing(tracing::Client);

impl Tracing {
    pub(super) fn new(client: tracing::Client) -> Self {
        Tracing(client)
    }

    /// Subscribes to the trace; `sink` gets each event before the node gets its answer.
    ///
    /// From here on the connection must not be closed before [`Subscription::end`] returned.
    pub async fn subscribe(
        &self,
        on: &Thread,
        sink: impl Fn(CoinEvent) + 'static,
    ) -> Result<Subscription, CallError> {
        let (lifetime, end) = Lifetime::new();
        let callback: utxo_cache_trace::Client = capnp_rpc::new_client(Trace { sink, _lifetime: lifetime });
        let answer = call!(self.0, trace_utxo_cache_request, on, |params| params.set_callback(callback))?;
        Ok(Subscription::new(answer.get()?.get_result()?, end))
    }
}

struct Trace<F> {
    sink: F,
    _lifetime: Lifetime,
}

impl<F: Fn(CoinEvent) + 'static> utxo_cache_trace::Server for Trace<F> {
    /// The node's last call; it releases us right after the answer.
    async fn destroy(
        self: Rc<Self>,
        _: utxo_cache_trace::DestroyParams,
        _: utxo_cache_trace::DestroyResults,
    ) -> Result<(), capnp::Error> {
        Ok(())
    }

    async fn add(
        self: Rc<Self>,
        params: utxo_cache_trace::AddParams,
        _: utxo_cache_trace::AddResults,
    ) -> Result<(), capnp::Error> {
        (self.sink)(CoinEvent::Added(params.get()?.get_utxo_info()?.get_value()));
        Ok(())
    }

    async fn spend(
        self: Rc<Self>,
        params: utxo_cache_trace::SpendParams,
        _: utxo_cache_trace::SpendResults,
    ) -> Result<(), capnp::Error> {
        (self.sink)(CoinEvent::Spent(params.get()?.get_utxo_info()?.get_value()));
        Ok(())
    }

    async fn uncache(
        self: Rc<Self>,
        params: utxo_cache_trace::UncacheParams,
        _: utxo_cache_trace::UncacheResults,
    ) -> Result<(), capnp::Error> {
        (self.sink)(CoinEvent::Uncached(params.get()?.get_utxo_info()?.get_value()));
        Ok(())
    }
}
