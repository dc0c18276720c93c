//! Handler: the life of a subscription.
//!
//! The order of its end matters: a node that loses a callback object before it has destroyed it aborts at the next
//! event. After `disconnect` is answered the node still calls `destroy` and then releases the callback; only then is
//! the subscription gone.

use std::time::Duration;

use tokio::sync::oneshot;

use super::connection::{BoundCapability, call};
use super::{CallError, is_thread_busy};
use crate::schema::handler_capnp::handler;

/// A callback object; dropped when the node has released it.
pub(super) struct CallbackObject {
    _released: oneshot::Sender<()>,
}

impl CallbackObject {
    pub(super) fn new() -> (Self, oneshot::Receiver<()>) {
        let (sender, receiver) = oneshot::channel();
        (CallbackObject { _released: sender }, receiver)
    }
}

/// A live subscription.
pub struct Subscription {
    handler: BoundCapability<handler::Client>,
    released: oneshot::Receiver<()>,
}

impl<C> BoundCapability<C> {
    /// The subscription that this capability gave; it is ended on the same thread.
    pub fn subscription(&self, client: handler::Client, released: oneshot::Receiver<()>) -> Subscription {
        Subscription { handler: BoundCapability { client, thread: self.thread.clone() }, released }
    }
}

impl Subscription {
    /// Ends the subscription while the connection goes on: disconnects it and waits until the node has destroyed and
    /// released the callback, as long as it takes. (When the connection ends, the guard does so.)
    pub async fn end(self) -> Result<(), CallError> {
        /// Between attempts while the thread is busy with another call.
        const BUSY_RETRY_INTERVAL: Duration = Duration::from_millis(2);
        while let Err(error) = call!(self.handler, disconnect_request) {
            match error {
                CallError::Failed(why) if is_thread_busy(&why) => {
                    tokio::time::sleep(BUSY_RETRY_INTERVAL).await
                }
                error => return Err(error),
            }
        }
        // An error is the callback's end, too.
        let _ = self.released.await;
        Ok(())
    }
}
