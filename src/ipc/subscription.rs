//! The life of a subscription, up to its end through the node's Handler interface.
//!
//! The order of the last steps matters: a node aborts at the next event if it has lost a callback object that it has not destroyed yet.
//! After the response to `disconnect` the node still calls `destroy`, and then releases the callback. Only then is the subscription
//! over.

use std::time::Duration;

use tokio::sync::oneshot;

use super::connection::{BoundCapability, call};
use super::{CallError, is_thread_busy};
use crate::schema::handler_capnp::handler;

/// An object for the node's callbacks; dropped when the node has released it.
pub(super) struct CallbackObject {
    _released: oneshot::Sender<()>,
}

impl CallbackObject {
    pub(super) fn new() -> (Self, oneshot::Receiver<()>) {
        let (sender, receiver) = oneshot::channel();
        (CallbackObject { _released: sender }, receiver)
    }
}

/// An active subscription to notifications or to the UTXO cache trace.
pub struct Subscription {
    handler: BoundCapability<handler::Client>,
    released: oneshot::Receiver<()>,
}

impl<C> BoundCapability<C> {
    /// Creates the subscription of a handler that this capability returned. The subscription is ended on the same thread.
    pub fn subscription(&self, client: handler::Client, released: oneshot::Receiver<()>) -> Subscription {
        Subscription { handler: BoundCapability { client, thread: self.thread.clone() }, released }
    }
}

impl Subscription {
    /// Ends the subscription while the connection stays open: disconnects it, and waits until the node has destroyed and released the
    /// callback, as long as that takes. (When the connection is closed, the guard ends the subscription.)
    pub async fn end(self) -> Result<(), CallError> {
        /// Time between two attempts while the thread is busy with another call.
        const BUSY_RETRY_INTERVAL: Duration = Duration::from_millis(2);
        while let Err(error) = call!(self.handler, disconnect_request) {
            match error {
                CallError::Failed(why) if is_thread_busy(&why) => {
                    tokio::time::sleep(BUSY_RETRY_INTERVAL).await
                }
                error => return Err(error),
            }
        }
        // An error means that the callback was dropped.
        let _ = self.released.await;
        Ok(())
    }
}
