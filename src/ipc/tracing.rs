//! The Tracing interface: the UTXO cache trace. The node makes one call per coin while it holds its main lock.

use serde::{Deserialize, Serialize};

use super::connection::{BoundCapability, call};
use super::subscription::{CallbackObject, Subscription};
use super::{CallError, NodeThread};
use crate::schema::tracing_capnp::{tracing, utxo_cache_trace};

/// A change of a coin in a UTXO cache, with the coin's value in satoshis.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum CoinEvent {
    /// The coin was added to a cache.
    Added(i64),
    /// The coin was spent from a cache.
    Spent(i64),
    /// The coin was dropped from a cache, unspent.
    Uncached(i64),
}

/// A node's Tracing interface, with the thread that runs its calls.
pub struct Tracing(pub(super) BoundCapability<tracing::Client>);

impl Tracing {
    /// The same interface, with calls that run on another thread.
    pub fn on_thread(&self, thread: &NodeThread) -> Self {
        Tracing(self.0.on_thread(thread))
    }

    /// Subscribes to the trace. The guard answers its callbacks and passes them on as events.
    ///
    /// From here on the connection must not be closed before [`Subscription::end`] has returned.
    pub async fn subscribe(&self) -> Result<Subscription, CallError> {
        let (callback, released) = CallbackObject::new();
        let callback: utxo_cache_trace::Client = capnp_rpc::new_client(callback);
        let answer = call!(self.0, trace_utxo_cache_request, |params| params.set_callback(callback))?;
        Ok(self.0.subscription(answer.get()?.get_result()?, released))
    }
}

/// Has no methods, because the guard answers the node's calls to this object.
impl utxo_cache_trace::Server for CallbackObject {}
