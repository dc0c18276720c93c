//! The guard's own calls, when they are due, and when the connection may be closed.

use std::time::Duration;

use super::{
    BUSY_RETRY_INTERVAL, CallPurpose, GuardMessage, OWN_NUMBERS, ProtocolState, RETRY_INTERVAL,
    SubscriptionIds,
};

/// From the node's last message to the close: the node's worker thread may still be cleaning up after the last call.
pub(super) const SETTLE_TIME: Duration = Duration::from_millis(20);
/// A guard that replaces a killed one sends nothing before the node was silent for this long: the `destroy` of a
/// disconnect under way would have come. A second disconnect in the middle of it hangs the node.
pub(super) const QUIET_TIME: Duration = Duration::from_millis(500);
/// But if the node is never silent, the guard starts to send after this time.
pub(super) const MAX_QUIET_WAIT: Duration = Duration::from_secs(5);
/// And the guard closes when the node was silent for this long, longer than a long poll: it is unknown which calls the killed guard
/// had forwarded.
pub(super) const SILENCE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long to wait for a peer that has not answered anything: no call can be running on a thread of its.
pub(super) const MAX_HANDSHAKE_WAIT: Duration = Duration::from_secs(10);

impl ProtocolState {
    /// A `Finish` or `Release` that has to be sent before anything else.
    pub fn next_finish(&mut self) -> Option<GuardMessage> {
        self.finishes.pop_front()
    }

    /// The next message to the node.
    pub fn next_call(&mut self, now: Duration) -> Option<GuardMessage> {
        self.next_finish().or_else(|| self.next_disconnect(now)).or_else(|| self.next_watch(now))
    }

    fn next_disconnect(&mut self, now: Duration) -> Option<GuardMessage> {
        let (ids, due_at) = self.subscriptions.next_disconnect(self.is_draining())?;
        if now < due_at || !self.is_quiet(now) {
            return None;
        }
        let SubscriptionIds { callback, handler, thread } = ids;
        let question = self.next_question;
        self.begin_own_call(CallPurpose::Disconnect { callback }, now);
        Some(GuardMessage::Disconnect { question, handler, thread })
    }

    fn next_watch(&mut self, now: Duration) -> Option<GuardMessage> {
        if self.is_draining() {
            return None;
        }
        let (purpose, call) = self.shutdown_watch.next_call(self.next_question, now)?;
        self.begin_own_call(purpose, now);
        Some(call)
    }

    /// The call of the next number is sent.
    fn begin_own_call(&mut self, purpose: CallPurpose, now: Duration) {
        let number = self.next_question;
        self.next_question = number.checked_add(1).unwrap_or(OWN_NUMBERS);
        self.begin_call(number, purpose, None, now);
    }

    /// How long the loop may wait for a message.
    pub fn next_wakeup(&self, now: Duration) -> Option<Duration> {
        if self.is_draining() {
            let waits_for_node = self.questions.any_unanswered();
            return Some(if waits_for_node { RETRY_INTERVAL } else { BUSY_RETRY_INTERVAL });
        }
        let disconnect = self.subscriptions.next_disconnect(false).map(|(_, due_at)| due_at);
        let due_at = [self.shutdown_watch.due_at(), disconnect].into_iter().flatten().min()?;
        Some(due_at.saturating_sub(now))
    }

    /// Whether the connection to the node may be closed.
    pub fn may_close(&self, now: Duration) -> bool {
        let Some(since) = self.draining_since else { return false };
        let no_node = !self.has_answered && now.saturating_sub(since) >= MAX_HANDSHAKE_WAIT;
        // It is unknown whether the callback of a killed guard's subscription was released before.
        let (is_over, silence) = if self.replacing_since.is_some() {
            (self.subscriptions.are_disconnected(), SILENCE_TIMEOUT)
        } else {
            (self.subscriptions.is_empty(), SETTLE_TIME)
        };
        is_over
            && (no_node || !self.questions.any_unanswered())
            && self.finishes.is_empty()
            && self.is_quiet(now)
            && now.saturating_sub(self.last_message_at) >= silence
    }

    /// Whether the last calls of a killed guard have had their effect.
    fn is_quiet(&self, now: Duration) -> bool {
        let Some(since) = self.replacing_since else { return true };
        now.saturating_sub(self.last_message_at) >= QUIET_TIME || now.saturating_sub(since) >= MAX_QUIET_WAIT
    }
}
