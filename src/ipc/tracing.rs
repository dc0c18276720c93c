//! Tracing: the UTXO cache trace, one call per coin while the node holds its main lock.

use serde::{Deserialize, Serialize};

use super::connection::{BoundCapability, call};
use super::subscription::{CallbackObject, Subscription};
use super::{CallError, NodeThread};
use crate::schema::tracing_capnp::{tracing, utxo_cache_trace};

/// A change of a coin, with its satoshis.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum CoinEvent {
    /// Added to a cache.
    Added(i64),
    /// Spent from a cache.
    Spent(i64),
    /// Dropped from a cache, unspent.
    Uncached(i64),
}

/// The Tracing interface.
pub struct Tracing(pub(super) BoundCapability<tracing::Client>);

impl Tracing {
    /// The same interface; its calls run on another thread.
    pub fn on_thread(&self, thread: &NodeThread) -> Self {
        Tracing(self.0.on_thread(thread))
    }

    /// Subscribes to the trace, which the guard answers and hands on.
    ///
    /// From here on the connection must not be closed before [`Subscription::end`] returned.
    pub async fn subscribe(&self) -> Result<Subscription, CallError> {
        let (callback, released) = CallbackObject::new();
        let callback: utxo_cache_trace::Client = capnp_rpc::new_client(callback);
        let answer = call!(self.0, trace_utxo_cache_request, |params| params.set_callback(callback))?;
        Ok(self.0.subscription(answer.get()?.get_result()?, released))
    }
}

/// The guard answers for it.
impl utxo_cache_trace::Server for CallbackObject {}
