//! What the guard says itself, and when.

use std::time::Duration;

use super::{
    BUSY_RETRY_INTERVAL, MAX_HANDSHAKE_WAIT, OWN_NUMBERS, Own, ProtocolState, Purpose, RETRY_INTERVAL,
    SETTLE, SILENCE, Subscription, SubscriptionIds, SubscriptionState, WatchThread, Watched,
};

impl ProtocolState {
    /// A `Finish` that has to be sent before anything else.
    pub fn next_finish(&mut self) -> Option<Own> {
        self.finishes.pop_front()
    }

    /// What has to be said to the node.
    pub fn next_call(&mut self, now: Duration) -> Option<Own> {
        if self.leaving.is_none() && self.finishes.is_empty() && now < self.watch_at && !self.over_budget {
            return None;
        }
        self.next_finish().or_else(|| self.next_disconnect(now)).or_else(|| self.next_watch(now))
    }

    fn next_disconnect(&mut self, now: Duration) -> Option<Own> {
        if !(self.leaving.is_some() || self.over_budget)
            || now < self.disconnect_at
            || !self.has_settled(now)
            || self.is_disconnecting(|_| true)
        {
            return None;
        }
        let due =
            |it: &&Subscription| it.state == SubscriptionState::Live && (self.leaving.is_some() || it.traces);
        let SubscriptionIds { callback, handler, thread } = self.subscriptions.iter().find(due)?.ids;
        let question = self.own_question(Purpose::Disconnect { callback }, now);
        Some(Own::Disconnect { question, handler, thread })
    }

    fn next_watch(&mut self, now: Duration) -> Option<Own> {
        if self.leaving.is_some() || now < self.watch_at {
            return None;
        }
        let Watched { mining, timeout } = self.watched?;
        match self.watch_thread {
            WatchThread::None => {
                let thread_map = self.thread_map?;
                self.watch_thread = WatchThread::Asked;
                let question = self.own_question(Purpose::MakeThread { thread_map }, now);
                Some(Own::MakeThread { question, thread_map })
            }
            WatchThread::Asked => None,
            WatchThread::Made(thread) => {
                let question = self.own_question(Purpose::WaitTipChanged(None), now);
                Some(Own::WaitTipChanged { question, mining, thread, tip: self.tip.clone(), timeout })
            }
        }
    }

    fn own_question(&mut self, purpose: Purpose, now: Duration) -> u32 {
        let number = self.next_question;
        self.next_question = number.checked_add(1).unwrap_or(OWN_NUMBERS);
        self.insert(number, purpose, None, now);
        number
    }

    /// When something is due that no message announces.
    pub fn wait_at_most(&self, now: Duration) -> Option<Duration> {
        if self.leaving.is_some() {
            let waits_for_node = self.questions.values().any(|it| !it.answered);
            return Some(if waits_for_node { RETRY_INTERVAL } else { BUSY_RETRY_INTERVAL });
        }
        let can_watch = match self.watch_thread {
            WatchThread::None => self.thread_map.is_some(),
            WatchThread::Asked => false,
            WatchThread::Made(_) => true,
        };
        let watch =
            self.watched.filter(|_| can_watch && self.watch_at < Duration::MAX).map(|_| self.watch_at);
        let traces = |it: &Subscription| it.traces && it.state == SubscriptionState::Live;
        let disconnects =
            self.over_budget && self.subscriptions.iter().any(traces) && !self.is_disconnecting(|_| true);
        let disconnect = disconnects.then_some(self.disconnect_at);
        [watch, disconnect].into_iter().flatten().min().map(|at| at.saturating_sub(now))
    }

    /// Whether the connection to the node may be closed.
    pub fn may_close(&self, now: Duration) -> bool {
        let Some(since) = self.leaving else { return false };
        let silent = now.saturating_sub(self.heard_at);
        let unanswered = self.questions.values().any(|it| !it.answered);
        let no_node = !self.ever_answered && now.saturating_sub(since) >= MAX_HANDSHAKE_WAIT;
        let unanswered = unanswered && !no_node;
        // Whether the callback of a replaced guard's subscription was released before, nobody has heard.
        let over = match self.replacing {
            Some(_) => self.subscriptions.iter().all(|it| it.state == SubscriptionState::Disconnected),
            None => self.subscriptions.is_empty(),
        };
        over && !unanswered
            && self.finishes.is_empty()
            && self.has_settled(now)
            && silent >= if self.replacing.is_some() { SILENCE } else { SETTLE }
    }
}
