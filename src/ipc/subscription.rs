//! A subscription to callbacks of the node. To subscribe, the exporter passes a callback object to the node, and the
//! node calls this object for each event. The guard, the process that relays messages between the exporter and the
//! node, responds to these calls. A call on the node's Handler interface ends the subscription.
//!
//! The subscription is over when three steps have happened in this order: the node has responded to `disconnect`, has
//! called `destroy` on the callback object, and has released the callback object. If the connection closes before the
//! `destroy` call, the node aborts when it has to make its next callback.

use std::time::Duration;

use tokio::sync::oneshot;

use super::connection::{BoundCapability, call};
use super::{CallError, is_thread_busy};
use crate::schema::handler_capnp::handler;

/// The exporter's object for the callbacks of one subscription, to which the guard responds. The object is dropped when
/// the node has released its references to the object.
pub(super) struct CallbackObject {
    _released: oneshot::Sender<()>,
}

impl CallbackObject {
    pub(super) fn new() -> (Self, oneshot::Receiver<()>) {
        let (sender, receiver) = oneshot::channel();
        (CallbackObject { _released: sender }, receiver)
    }
}

/// An active subscription to a node's chain notifications or to the node's UTXO cache trace.
pub struct Subscription {
    handler: BoundCapability<handler::Client>,
    released: oneshot::Receiver<()>,
}

impl<C> BoundCapability<C> {
    /// Creates the subscription for the handler that a call on this capability returned. The call that ends the
    /// subscription runs on the thread of this capability.
    pub fn subscription(&self, client: handler::Client, released: oneshot::Receiver<()>) -> Subscription {
        Subscription { handler: self.thread.bind(client), released }
    }
}

impl Subscription {
    /// Ends the subscription while the connection stays open: calls `disconnect`, and waits without a time limit until
    /// the node has destroyed and released the callback object. If the exporter closes the connection instead, the
    /// guard ends the subscription.
    ///
    /// # Errors
    /// The `disconnect` call failed with an error other than `thread busy`.
    pub async fn end(self) -> Result<(), CallError> {
        /// Interval between two `disconnect` calls while the node's thread is busy with another call.
        const BUSY_RETRY_INTERVAL: Duration = Duration::from_millis(2);
        while let Err(error) = call!(self.handler, disconnect_request) {
            match error {
                CallError::Failed(why) if is_thread_busy(&why) => {
                    tokio::time::sleep(BUSY_RETRY_INTERVAL).await
                }
                error => return Err(error),
            }
        }
        // The sender never sends a value. The wait ends with an error when the callback object, which contains the
        // sender, is dropped.
        let _ = self.released.await;
        Ok(())
    }
}
