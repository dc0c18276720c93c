//! The subscriptions of a connection. To subscribe, the exporter passes a callback object to the node, and the node
//! calls this object for each event. The guard, the process that relays messages between the node and the exporter,
//! responds to these callbacks.
//!
//! A subscription has ended when the node has responded to `disconnect` and has released the callback object. A node
//! rejects two concurrent `disconnect` calls on one thread, and hangs on a second `disconnect` of the same
//! subscription.

use std::time::Duration;

use super::{BUSY_RETRY_INTERVAL, RETRY_INTERVAL, SubscriptionIds};
use crate::ipc::is_thread_busy;

/// A subscription of the exporter, from the exporter's request until the node releases the callback object.
#[derive(Debug)]
struct TrackedSubscription {
    callback: u32,
    thread: u32,
    /// Export ID of the node's handler, which the node returned when it accepted the subscription; `None` until then.
    /// The node may make callbacks of an accepted subscription.
    handler: Option<u32>,
    /// Number of references that the node has to the callback object.
    references: u32,
    traces: bool,
    disconnected: bool,
}

impl TrackedSubscription {
    /// The IDs with which the guard can end the subscription; `None` until the node has accepted the subscription.
    fn ids(&self) -> Option<SubscriptionIds> {
        let &TrackedSubscription { callback, thread, handler, .. } = self;
        handler.map(|handler| SubscriptionIds { callback, handler, thread })
    }
}

/// Table of the subscriptions of a connection that have not ended.
#[derive(Default)]
pub(super) struct SubscriptionTable {
    all: Vec<TrackedSubscription>,
    /// Earliest time of the guard's next `disconnect` call.
    retry_at: Duration,
}

impl SubscriptionTable {
    /// Creates the table of a replacement guard, with the subscriptions that the killed guard had.
    pub fn inherited(ids: &[SubscriptionIds]) -> Self {
        let mut table = SubscriptionTable::default();
        for &SubscriptionIds { callback, handler, thread } in ids {
            table.on_request(callback, thread, false);
            table.on_answer(callback, Some(handler));
        }
        table
    }

    /// The subscriptions that the node has accepted and that have not ended.
    pub fn active(&self) -> impl Iterator<Item = SubscriptionIds> + Clone {
        self.all.iter().filter_map(TrackedSubscription::ids)
    }

    /// Whether this capability of the node is the handler or the thread of a subscription, which the guard needs to end
    /// the subscription.
    pub fn is_pinned(&self, id: u32) -> bool {
        self.all.iter().any(|subscription| subscription.handler == Some(id) || subscription.thread == id)
    }

    /// Whether the node has answered the `disconnect` of every subscription.
    pub fn are_disconnected(&self) -> bool {
        self.all.iter().all(|subscription| subscription.disconnected)
    }

    /// Whether an accepted or requested subscription has the callback object with this export ID.
    pub fn has_callback(&self, callback: u32) -> bool {
        self.all.iter().any(|subscription| subscription.callback == callback)
    }

    fn with_callback(&mut self, callback: u32) -> impl Iterator<Item = &mut TrackedSubscription> {
        self.all.iter_mut().filter(move |subscription| subscription.callback == callback)
    }

    pub fn on_request(&mut self, callback: u32, thread: u32, traces: bool) {
        let (handler, references, disconnected) = (None, 1, false);
        self.all.push(TrackedSubscription { callback, thread, handler, references, traces, disconnected });
    }

    /// Records the node's response to the request for a subscription. `handler` is `None` if the node rejected the
    /// request. If the node has already released the callback object, the subscription has already ended.
    pub fn on_answer(&mut self, callback: u32, handler: Option<u32>) {
        self.with_callback(callback).for_each(|subscription| subscription.handler = handler);
        self.all.retain(|it| it.callback != callback || it.handler.is_some() && it.references > 0);
    }

    /// Records that the node released `count` references to a callback object, which can end a subscription.
    pub fn on_release(&mut self, callback: u32, count: u32) {
        for subscription in self.with_callback(callback) {
            subscription.references = subscription.references.saturating_sub(count);
        }
        self.all.retain(|subscription| subscription.references > 0 || subscription.handler.is_none());
    }

    /// Returns the export ID of the callback object of the subscription with this handler. `None` if the subscription
    /// is already disconnected, or if no subscription has this handler.
    pub fn connected_callback(&self, handler: u32) -> Option<u32> {
        let subscription = self.all.iter().find(|subscription| subscription.handler == Some(handler))?;
        (!subscription.disconnected).then_some(subscription.callback)
    }

    /// Records the node's response to a `disconnect` call. If the call failed, `ended` contains the node's error
    /// message.
    pub fn on_disconnect_end(&mut self, callback: u32, ended: Result<(), &str>, now: Duration) {
        self.retry_at = match ended {
            Ok(()) => {
                self.with_callback(callback).for_each(|subscription| subscription.disconnected = true);
                now
            }
            Err(why) if is_thread_busy(why) => now + BUSY_RETRY_INTERVAL,
            Err(_) => now + RETRY_INTERVAL,
        };
    }

    /// Returns the subscription that the guard has to disconnect next, and the earliest time for the `disconnect` call.
    /// During the clean disconnect (`leaves`), the guard disconnects every subscription. Before the clean disconnect,
    /// the guard disconnects only a UTXO cache trace that has exceeded its budget (`over_budget`).
    pub fn next_disconnect(&self, leaves: bool, over_budget: bool) -> Option<(SubscriptionIds, Duration)> {
        let is_next = |subscription: &&TrackedSubscription| {
            !subscription.disconnected && (leaves || over_budget && subscription.traces)
        };
        let next = self.all.iter().filter(is_next).find_map(TrackedSubscription::ids)?;
        Some((next, self.retry_at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(1);

    /// A table with two subscriptions: chain notifications with callback 70 and handler 5, and the UTXO cache trace
    /// with callback 71 and handler 6.
    fn two() -> SubscriptionTable {
        let mut subscriptions = SubscriptionTable::default();
        for (callback, handler, traces) in [(70, 5, false), (71, 6, true)] {
            subscriptions.on_request(callback, 2, traces);
            subscriptions.on_answer(callback, Some(handler));
        }
        subscriptions
    }

    #[test]
    fn callback_and_thread_are_known_from_the_request_on() {
        let mut subscriptions = SubscriptionTable::default();
        subscriptions.on_request(70, 2, false);
        assert!(subscriptions.has_callback(70) && subscriptions.is_pinned(2));
        assert_eq!(subscriptions.next_disconnect(true, false), None, "not answered yet");
        subscriptions.on_answer(70, None); // refused by the node
        assert!(!subscriptions.has_callback(70) && !subscriptions.is_pinned(2));
        subscriptions.on_request(70, 2, false);
        subscriptions.on_release(70, 1);
        assert!(subscriptions.has_callback(70), "released before the answer");
        subscriptions.on_answer(70, Some(5));
        assert_eq!(subscriptions.active().next(), None);
        assert!(!subscriptions.has_callback(70) && !subscriptions.is_pinned(2));
    }

    #[test]
    fn subscriptions_are_disconnected_in_turn() {
        let mut subscriptions = two();
        assert_eq!(subscriptions.next_disconnect(false, false), None);
        let (first, at) = subscriptions.next_disconnect(true, false).unwrap();
        assert_eq!((first.handler, at), (5, Duration::ZERO));
        assert_eq!(subscriptions.connected_callback(5), Some(70));
        for (why, retry_at) in
            [("std::exception: thread busy", NOW + BUSY_RETRY_INTERVAL), ("other", NOW + RETRY_INTERVAL)]
        {
            subscriptions.on_disconnect_end(70, Err(why), NOW);
            assert_eq!(subscriptions.next_disconnect(true, false), Some((first, retry_at)));
        }
        subscriptions.on_disconnect_end(70, Ok(()), NOW);
        assert_eq!(subscriptions.connected_callback(5), None);
        let (second, at) = subscriptions.next_disconnect(true, false).unwrap();
        assert_eq!((second.handler, at), (6, NOW));
        assert!(!subscriptions.are_disconnected());
        subscriptions.on_release(70, 1);
        assert!(!subscriptions.has_callback(70) && subscriptions.has_callback(71));
    }

    #[test]
    fn trace_over_budget_is_disconnected_and_the_rest_kept() {
        let mut subscriptions = two();
        assert_eq!(subscriptions.next_disconnect(false, true).map(|(ids, _)| ids.handler), Some(6));
        subscriptions.on_disconnect_end(71, Ok(()), NOW);
        assert_eq!(subscriptions.next_disconnect(false, true), None);
    }
}
