//! Handler: the life of a subscription.
//!
//! The order of its end matters: a node that loses a callback object before it has destroyed it aborts at the next
//! event. After `disconnect` is answered the node still calls `destroy` and then releases the callback; only then is
//! the subscription gone.

use std::time::Duration;

use tokio::sync::oneshot;

use super::{CallError, Thread};
use crate::schema::handler_capnp::handler;

/// A callback object; dropped when the node has released it.
pub(super) struct Callback {
    _released: oneshot::Sender<()>,
}

impl Callback {
    pub(super) fn new() -> (Self, oneshot::Receiver<()>) {
        let (sender, receiver) = oneshot::channel();
        (Callback { _released: sender }, receiver)
    }
}

/// A live subscription.
pub struct Subscription {
    handler: handler::Client,
    released: oneshot::Receiver<()>,
}

impl Subscription {
    pub(super) fn new(handler: handler::Client, released: oneshot::Receiver<()>) -> Self {
        Subscription { handler, released }
    }

    /// Ends the subscription: disconnects it and waits until the node has destroyed and released the callback. Waits
    /// as long as it takes, with `impatient` called after each deadline that passed; only a lost connection is an
    /// error.
    pub async fn end(mut self, on: &Thread, mut impatient: impl FnMut(&CallError)) -> Result<(), CallError> {
        /// Between attempts while the thread is busy with another call, and while the node fails to.
        const BUSY: Duration = Duration::from_millis(2);
        const FAILING: Duration = Duration::from_secs(1);
        let mut request = self.handler.disconnect_request();
        loop {
            request.get().init_context().set_thread(on.client.clone());
            let mut answer = std::pin::pin!(request.send().promise);
            let answer = loop {
                match tokio::time::timeout(on.deadline, &mut answer).await {
                    Ok(answer) => break answer,
                    Err(_) => impatient(&CallError::TimedOut(on.deadline)),
                }
            };
            let again = match answer.map_err(CallError::from) {
                Ok(_) => break,
                Err(error @ (CallError::Disconnected(_) | CallError::Unimplemented(_))) => return Err(error),
                Err(CallError::Failed(why)) if why.contains("thread busy") => BUSY,
                Err(error) => {
                    impatient(&error);
                    FAILING
                }
            };
            tokio::time::sleep(again).await;
            request = self.handler.disconnect_request();
        }
        while tokio::time::timeout(on.deadline, &mut self.released).await.is_err() {
            impatient(&CallError::TimedOut(on.deadline));
        }
        Ok(())
    }
}
