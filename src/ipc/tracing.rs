//! Client of the node's Tracing interface: the UTXO cache trace, a subscription to the changes of coins in the node's
//! UTXO caches. The node makes one callback for each coin that it adds, spends or uncaches, and holds its main lock
//! `cs_main` while it waits for the response. The [guard](super::guard), the process that relays messages between the
//! node and the exporter, sends the response.

use serde::{Deserialize, Serialize};

use super::CallError;
use super::connection::{BoundCapability, call};
use super::subscription::{CallbackObject, Subscription};
use crate::schema::tracing_capnp::{tracing, utxo_cache_trace};

/// A change of one coin in a UTXO cache of the node. The number is the coin's value in satoshis.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum CoinEvent {
    /// The coin was added to a cache.
    Added(i64),
    /// The coin was spent from a cache.
    Spent(i64),
    /// The unspent coin was removed from a cache.
    Uncached(i64),
}

/// Client of a node's Tracing interface, with the node's thread that runs the calls.
pub type Tracing = BoundCapability<tracing::Client>;

impl Tracing {
    /// Subscribes to the UTXO cache trace. The guard responds to each callback, and sends the callback to the exporter
    /// as an event.
    ///
    /// [`Subscription::end`] ends the subscription. If the exporter closes its connection without this call, the guard
    /// ends the subscription before the guard closes the connection to the node.
    ///
    /// # Errors
    /// The node does not respond in time, returns an error, or closes the connection ([`CallError`]).
    pub async fn subscribe(&self) -> Result<Subscription, CallError> {
        let (callback, released) = CallbackObject::new();
        let callback: utxo_cache_trace::Client = capnp_rpc::new_client(callback);
        let answer = call!(self, trace_utxo_cache_request, |params| params.set_callback(callback))?;
        Ok(self.subscription(answer.get()?.get_result()?, released))
    }
}

/// This implementation of the callback interface has no methods, because the guard process, not the exporter, responds
/// to the node's callbacks.
impl utxo_cache_trace::Server for CallbackObject {}
