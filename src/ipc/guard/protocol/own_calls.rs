//! The guard's own calls and their timing, and the decision when the connection may be closed.

use std::time::Duration;

use super::{
    BUSY_RETRY_INTERVAL, CallPurpose, GuardMessage, OWN_NUMBERS, ProtocolState, RETRY_INTERVAL,
    SubscriptionIds,
};

/// Time from the node's last message to the close. The node's worker thread may still be cleaning up after the last call.
pub(super) const SETTLE_TIME: Duration = Duration::from_millis(20);
/// Silence of the node after which a replacement guard starts to send. If a disconnect of the killed guard was under way, its `destroy`
/// would have arrived within this time. A second disconnect in the middle of the first one hangs the node.
pub(super) const QUIET_TIME: Duration = Duration::from_millis(500);
/// Time after which a replacement guard starts to send even if the node is never silent.
pub(super) const MAX_QUIET_WAIT: Duration = Duration::from_secs(5);
/// Silence of the node after which a replacement guard closes the connection. It is longer than a long poll, because the replacement does
/// not know which calls the killed guard had forwarded.
pub(super) const SILENCE_TIMEOUT: Duration = Duration::from_secs(2);
/// Maximum wait for a peer that has not sent any response. None of its threads can be running a call.
pub(super) const MAX_HANDSHAKE_WAIT: Duration = Duration::from_secs(10);

impl ProtocolState {
    /// Takes the next `Finish` or `Release`, which have to be sent before anything else.
    pub fn next_finish(&mut self) -> Option<GuardMessage> {
        self.finishes.pop_front()
    }

    /// Takes the next message to the node.
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

    /// Records that the guard sends a call with the next question ID.
    fn begin_own_call(&mut self, purpose: CallPurpose, now: Duration) {
        let number = self.next_question;
        self.next_question = number.checked_add(1).unwrap_or(OWN_NUMBERS);
        self.begin_call(number, purpose, None, now);
    }

    /// Maximum time that the loop may wait for a message.
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
        // A replacement guard does not know whether the callback of the killed guard's subscription was released before it started.
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

    /// Whether the node has completed the last calls of the killed guard. Always true for a guard that is not a replacement.
    fn is_quiet(&self, now: Duration) -> bool {
        let Some(since) = self.replacing_since else { return true };
        now.saturating_sub(self.last_message_at) >= QUIET_TIME || now.saturating_sub(since) >= MAX_QUIET_WAIT
    }
}
