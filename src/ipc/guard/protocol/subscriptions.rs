//! The callbacks that the node may call, from the request for a subscription until the node has released them.
//!
//! A subscription is over when its `disconnect` was answered and its callback released. Two disconnects at once on one thread are
//! rejected by the node, and a second one of the same subscription hangs it.

use std::time::Duration;

use super::{BUSY_RETRY_INTERVAL, RETRY_INTERVAL, SubscriptionIds};
use crate::ipc::guard::trace_budget::TraceBudget;
use crate::ipc::is_thread_busy;

/// The node has not answered yet.
#[derive(Debug)]
struct RequestedSubscription {
    callback: u32,
    thread: u32,
    /// The node has dropped the callback already.
    released: bool,
}

/// A callback object of the exporter's that the node may call.
#[derive(Debug)]
struct ActiveSubscription {
    ids: SubscriptionIds,
    /// References that the node has.
    references: u32,
    traces: bool,
    disconnected: bool,
}

/// A `disconnect` that the node has not answered.
#[derive(Debug)]
struct PendingDisconnect {
    callback: u32,
    /// The guard's own.
    own: bool,
}

/// All subscriptions of a connection, and the budget of the UTXO cache trace among them.
pub(super) struct SubscriptionTable {
    requested: Vec<RequestedSubscription>,
    all: Vec<ActiveSubscription>,
    disconnects: Vec<PendingDisconnect>,
    /// When the guard may try to disconnect again.
    retry_at: Duration,
    budget: TraceBudget,
    over_budget: bool,
}

impl SubscriptionTable {
    pub fn new(budget: TraceBudget) -> Self {
        SubscriptionTable {
            requested: Vec::new(),
            all: Vec::new(),
            disconnects: Vec::new(),
            retry_at: Duration::ZERO,
            budget,
            over_budget: false,
        }
    }

    /// Those that a killed guard left.
    pub fn inherited(ids: &[SubscriptionIds]) -> Self {
        let inherited = |&ids| ActiveSubscription { ids, references: 1, traces: false, disconnected: false };
        SubscriptionTable { all: ids.iter().map(inherited).collect(), ..Self::new(TraceBudget::new(None)) }
    }

    /// Whether the guard needs this capability of the node's.
    pub fn is_pinned(&self, id: u32) -> bool {
        self.all.iter().any(|subscription| [subscription.ids.handler, subscription.ids.thread].contains(&id))
            || self.requested.iter().any(|requested| requested.thread == id)
    }

    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Whether the node has answered the disconnect of each.
    pub fn are_disconnected(&self) -> bool {
        self.all.iter().all(|subscription| subscription.disconnected)
    }

    /// Whether a subscription has this callback, or will have it when the node has answered.
    pub fn has_callback(&self, callback: u32) -> bool {
        self.all.iter().any(|subscription| subscription.ids.callback == callback)
            || self.requested.iter().any(|requested| requested.callback == callback)
    }

    pub fn on_request(&mut self, callback: u32, thread: u32) {
        self.requested.push(RequestedSubscription { callback, thread, released: false });
    }

    /// The node has answered the request, with a handler if it subscribed. Returns a subscription that began.
    pub fn on_answer(
        &mut self,
        callback: u32,
        handler: Option<u32>,
        traces: bool,
    ) -> Option<SubscriptionIds> {
        let at = self.requested.iter().position(|requested| requested.callback == callback)?;
        let RequestedSubscription { thread, released, .. } = self.requested.swap_remove(at);
        // One that was released already is over.
        let ids = SubscriptionIds { callback, handler: handler.filter(|_| !released)?, thread };
        self.all.push(ActiveSubscription { ids, references: 1, traces, disconnected: false });
        Some(ids)
    }

    /// The node drops references to a callback. Returns whether its subscription is over.
    pub fn on_release(&mut self, callback: u32, count: u32) -> bool {
        for requested in self.requested.iter_mut().filter(|requested| requested.callback == callback) {
            requested.released |= count > 0;
        }
        for subscription in self.all.iter_mut().filter(|subscription| subscription.ids.callback == callback) {
            subscription.references = subscription.references.saturating_sub(count);
        }
        let before = self.all.len();
        self.all.retain(|subscription| subscription.references > 0);
        self.all.len() < before
    }

    /// The node calls back for the UTXO cache trace. Returns whether that exceeds the budget for the first time.
    pub fn on_trace(&mut self, now: Duration) -> bool {
        self.budget.on_call(now) && !std::mem::replace(&mut self.over_budget, true)
    }

    /// See [`TraceBudget::add_run_delay`].
    pub fn add_run_delay(&mut self, total: Duration) {
        self.budget.add_run_delay(total);
    }

    /// The callback of the subscription that the exporter may disconnect by this handler. `None` if it has been, is being, or
    /// never was one.
    pub fn disconnectable_callback(&self, handler: u32) -> Option<u32> {
        let subscription = self.all.iter().find(|subscription| subscription.ids.handler == handler)?;
        let callback = subscription.ids.callback;
        let under_way = self.disconnects.iter().any(|disconnect| disconnect.callback == callback);
        (!subscription.disconnected && !under_way).then_some(callback)
    }

    /// Whether a disconnect of the guard's own is under way.
    pub fn has_own_disconnect(&self) -> bool {
        self.disconnects.iter().any(|disconnect| disconnect.own)
    }

    pub fn on_disconnect_start(&mut self, callback: u32, own: bool) {
        self.disconnects.push(PendingDisconnect { callback, own });
    }

    /// The node has answered; the text is why it failed.
    pub fn on_disconnect_end(&mut self, callback: u32, ended: Result<(), &str>, now: Duration) {
        self.disconnects.retain(|disconnect| disconnect.callback != callback);
        self.retry_at = match ended {
            Ok(()) => {
                for subscription in self.all.iter_mut().filter(|it| it.ids.callback == callback) {
                    subscription.disconnected = true;
                }
                now
            }
            Err(why) if is_thread_busy(why) => now + BUSY_RETRY_INTERVAL,
            Err(_) => now + RETRY_INTERVAL,
        };
    }

    /// The subscription that the guard has to disconnect, and when: each if it leaves, the trace if it is over its budget.
    pub fn next_disconnect(&self, leaves: bool) -> Option<(SubscriptionIds, Duration)> {
        let is_next = |subscription: &&ActiveSubscription| {
            !subscription.disconnected && (leaves || self.over_budget && subscription.traces)
        };
        let next = self.all.iter().find(is_next).filter(|_| self.disconnects.is_empty())?;
        Some((next.ids, self.retry_at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(1);

    /// Notifications with callback 70 and handler 5, the trace with callback 71 and handler 6.
    fn two() -> SubscriptionTable {
        let mut subscriptions = SubscriptionTable::new(TraceBudget::new(Some(Duration::ZERO)));
        for (callback, handler, traces) in [(70, 5, false), (71, 6, true)] {
            subscriptions.on_request(callback, 2);
            assert!(subscriptions.on_answer(callback, Some(handler), traces).is_some());
        }
        subscriptions
    }

    #[test]
    fn callback_and_thread_are_known_from_the_request_on() {
        let mut subscriptions = SubscriptionTable::new(TraceBudget::new(None));
        subscriptions.on_request(70, 2);
        assert!(subscriptions.has_callback(70) && subscriptions.is_pinned(2));
        assert_eq!(subscriptions.on_answer(70, None, false), None, "refused by the node");
        assert!(!subscriptions.has_callback(70) && !subscriptions.is_pinned(2));
        subscriptions.on_request(70, 2);
        subscriptions.on_release(70, 1);
        assert_eq!(subscriptions.on_answer(70, Some(5), false), None, "released before the answer");
        assert!(subscriptions.is_empty());
    }

    #[test]
    fn one_disconnect_is_under_way_at_a_time() {
        let mut subscriptions = two();
        assert_eq!(subscriptions.next_disconnect(false), None);
        let (first, at) = subscriptions.next_disconnect(true).unwrap();
        assert_eq!((first.handler, at), (5, Duration::ZERO));
        assert_eq!(subscriptions.disconnectable_callback(5), Some(70));
        subscriptions.on_disconnect_start(70, true);
        assert!(subscriptions.has_own_disconnect());
        assert_eq!(
            (subscriptions.next_disconnect(true), subscriptions.disconnectable_callback(5)),
            (None, None)
        );
        for (why, retry_at) in
            [("std::exception: thread busy", NOW + BUSY_RETRY_INTERVAL), ("other", NOW + RETRY_INTERVAL)]
        {
            subscriptions.on_disconnect_end(70, Err(why), NOW);
            assert_eq!(subscriptions.next_disconnect(true), Some((first, retry_at)));
            subscriptions.on_disconnect_start(70, true);
        }
        subscriptions.on_disconnect_end(70, Ok(()), NOW);
        assert_eq!(subscriptions.disconnectable_callback(5), None);
        let (second, at) = subscriptions.next_disconnect(true).unwrap();
        assert_eq!((second.handler, at), (6, NOW));
        assert!(!subscriptions.are_disconnected());
        assert!(subscriptions.on_release(70, 1) && subscriptions.has_callback(71));
    }

    #[test]
    fn trace_over_budget_is_disconnected_and_the_rest_kept() {
        let mut subscriptions = two();
        assert!(!subscriptions.on_trace(NOW));
        let calls =
            [50, 100].map(|microseconds| subscriptions.on_trace(NOW + Duration::from_micros(microseconds)));
        assert_eq!(calls, [true, false], "reported once");
        assert_eq!(subscriptions.next_disconnect(false).map(|(ids, _)| ids.handler), Some(6));
        subscriptions.on_disconnect_start(71, true);
        subscriptions.on_disconnect_end(71, Ok(()), NOW);
        assert_eq!(subscriptions.next_disconnect(false), None);
    }
}
