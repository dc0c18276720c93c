//! The calls that the guard (the process that relays messages between the node and the exporter) itself makes to
//! the node, their timing, and the decision when the guard may close the connection to the node. A replacement guard
//! takes over the connection of a killed guard, ends the subscriptions and disconnects.

use std::time::Duration;

use super::{
    BUSY_RETRY_INTERVAL, CallPurpose, FIRST_GUARD_ID, GuardMessage, ProtocolState, RETRY_INTERVAL,
    SubscriptionIds,
};

/// Minimum time between the node's last message and the guard's close of the connection. During this time the node's
/// worker thread may still be cleaning up after the last call, and a disconnect could crash the node.
pub(super) const SETTLE_TIME: Duration = Duration::from_millis(20);
/// Time without a message from the node after which a replacement guard sends its first message. If the killed guard
/// had a `disconnect` call under way, the `destroy` call that the node makes during a `disconnect` would have arrived
/// within this time. The replacement guard waits because a second `disconnect` during the first `disconnect` would hang
/// the node.
pub(super) const QUIET_TIME: Duration = Duration::from_millis(500);
/// Time since the start of a replacement guard after which the guard sends its first message even if the node was never
/// silent for [`QUIET_TIME`].
pub(super) const MAX_QUIET_WAIT: Duration = Duration::from_secs(5);
/// Time without a message from the node after which a replacement guard closes the connection. The time is longer than
/// a long poll, because the killed guard may have forwarded a long poll that the replacement guard has no record of.
pub(super) const SILENCE_TIMEOUT: Duration = Duration::from_secs(2);
/// Maximum time for which a guard that disconnects cleanly waits for responses, if the process at the other end of the
/// node's socket has not sent any response. A process that has not responded to the handshake cannot have a thread that
/// runs a call, so the guard may close the connection.
pub(super) const MAX_HANDSHAKE_WAIT: Duration = Duration::from_secs(10);

impl ProtocolState {
    /// Takes the next `Finish` or `Release` message from the queue. The guard has to send these messages before any
    /// other message.
    pub fn next_finish(&mut self) -> Option<GuardMessage> {
        self.finishes.pop_front()
    }

    /// Returns the next message that the guard has to send to the node now.
    pub fn next_call(&mut self, now: Duration) -> Option<GuardMessage> {
        self.next_finish().or_else(|| self.next_disconnect(now)).or_else(|| self.next_watch(now))
    }

    fn next_disconnect(&mut self, now: Duration) -> Option<GuardMessage> {
        let (ids, due_at) = self.due_disconnect()?;
        if now < due_at || !self.is_quiet(now) {
            return None;
        }
        let SubscriptionIds { callback, handler, thread } = ids;
        let question = self.next_question;
        self.begin_own_call(CallPurpose::Disconnect { callback }, now);
        Some(GuardMessage::Disconnect { question, handler, thread })
    }

    /// The subscription that the guard has to disconnect next, and the earliest time for the `disconnect` call. The
    /// guard disconnects one subscription at a time, and none during a `disconnect` of the exporter.
    fn due_disconnect(&self) -> Option<(SubscriptionIds, Duration)> {
        let next = self.subscriptions.next_disconnect(self.is_draining(), self.over_budget)?;
        let is_busy =
            self.questions.any_under_way(|_, purpose| matches!(purpose, CallPurpose::Disconnect { .. }));
        (!is_busy).then_some(next)
    }

    /// Time from which the guard makes the next call for its long polls (calls of `waitTipChanged`); `None` if the
    /// guard has no call to make, because a long poll of the exporter or of the guard, or the guard's request for a
    /// thread, is under way.
    fn watch_due_at(&self) -> Option<Duration> {
        let due_at = self.shutdown_watch.due_at()?;
        let is_busy = self.questions.any_under_way(|number, purpose| match purpose {
            CallPurpose::WaitTipChanged(_) => true,
            CallPurpose::MakeThread { .. } => number >= FIRST_GUARD_ID,
            _ => false,
        });
        (!is_busy).then_some(due_at)
    }

    fn next_watch(&mut self, now: Duration) -> Option<GuardMessage> {
        if self.is_draining() || self.watch_due_at()? > now {
            return None;
        }
        let (purpose, call) = self.shutdown_watch.next_call(self.next_question)?;
        self.begin_own_call(purpose, now);
        Some(call)
    }

    /// Records that the guard sends a call of its own, which has the next question ID.
    fn begin_own_call(&mut self, purpose: CallPurpose, now: Duration) {
        let number = self.next_question;
        self.next_question = number.checked_add(1).unwrap_or(FIRST_GUARD_ID);
        self.begin_call(number, purpose, None, now);
    }

    /// Maximum time for which the poll loop may wait for a message, because the guard then has to make a call or to
    /// check whether it may close the connection; `None` for no limit.
    pub fn next_wakeup(&self, now: Duration) -> Option<Duration> {
        if self.is_draining() {
            let waits_for_node = self.questions.any_unanswered();
            return Some(if waits_for_node { RETRY_INTERVAL } else { BUSY_RETRY_INTERVAL });
        }
        let disconnect = self.due_disconnect().map(|(_, due_at)| due_at);
        let due_at = [self.watch_due_at(), disconnect].into_iter().flatten().min()?;
        Some(due_at.saturating_sub(now))
    }

    /// Whether the guard may close the connection to the node.
    pub fn may_close(&self, now: Duration) -> bool {
        let Some(since) = self.draining_since else { return false };
        let no_node = !self.has_answered && now.saturating_sub(since) >= MAX_HANDSHAKE_WAIT;
        // A replacement guard does not require the release of the callback objects, because the node may have released
        // them before the replacement started.
        let (is_over, silence) = if self.replacing_since.is_some() {
            (self.subscriptions.are_disconnected(), SILENCE_TIMEOUT)
        } else {
            (self.active_subscriptions().next().is_none(), SETTLE_TIME)
        };
        is_over
            && (no_node || !self.questions.any_unanswered())
            && self.finishes.is_empty()
            && self.is_quiet(now)
            && now.saturating_sub(self.last_message_at) >= silence
    }

    /// Whether a replacement guard may send messages, because the node was silent for [`QUIET_TIME`] or the replacement
    /// has waited for [`MAX_QUIET_WAIT`]. Always true for a guard that is not a replacement.
    fn is_quiet(&self, now: Duration) -> bool {
        let Some(since) = self.replacing_since else { return true };
        now.saturating_sub(self.last_message_at) >= QUIET_TIME || now.saturating_sub(since) >= MAX_QUIET_WAIT
    }
}
