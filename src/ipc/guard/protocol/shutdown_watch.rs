//! The long poll through which a node announces its shutdown: a call of `waitTipChanged`, to which the node responds
//! when the tip changes, a timeout passes, or the node shuts down. The guard, the process that relays all messages
//! between the node and the exporter, makes this call if the exporter has no long poll under way.

use std::time::Duration;

use super::{CallPurpose, GuardMessage, RETRY_INTERVAL};
use crate::ipc::guard::message::{Call, CallTarget, Outcome};
use crate::schema::common_capnp::block_ref;
use crate::schema::mining_capnp::mining;

/// Minimum time between the starts of two long polls of the guard. During a reorganization a node responds to a long
/// poll immediately, so without this minimum the guard would repeat the call in a tight loop.
pub(super) const MIN_POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Minimum time between the starts of two long polls of the guard while there are subscriptions. The guard has to end
/// the subscriptions before the node has shut down. A node on regtest shuts down within 40 to 90 ms.
pub(super) const MIN_SUBSCRIBED_POLL_INTERVAL: Duration = Duration::from_millis(10);
/// Time after the end of the exporter's long poll after which the guard starts a long poll, if the exporter has not
/// started another long poll. The delay is shorter than a shutdown of the node, so the guard's long poll can still
/// announce the shutdown.
pub(super) const TAKEOVER_DELAY: Duration = Duration::from_millis(10);

/// Parameters of the exporter's last long poll to which the node responded with a tip. The guard uses these parameters
/// for its own long polls.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct LongPoll {
    mining: u32,
    timeout: f64,
}

impl LongPoll {
    /// Reads the parameters of a `waitTipChanged` call; `None` if the target of the call is not an export ID but a
    /// result of another call.
    ///
    /// # Errors
    /// The parameters of the call have an invalid encoding.
    pub fn read(call: &Call) -> capnp::Result<Option<Self>> {
        let CallTarget::Export(mining) = call.target else { return Ok(None) };
        let params: mining::wait_tip_changed_params::Reader = call.parameters()?.get_as()?;
        Ok(Some(LongPoll { mining, timeout: params.get_timeout() }))
    }
}

/// The node's response to a long poll of `waitTipChanged`.
#[derive(Debug, PartialEq)]
pub(super) enum LongPollResult {
    /// Hash of the tip; the node responded because the tip changed or the timeout passed.
    Tip(Vec<u8>),
    /// The response has no tip, which means that the node is shutting down.
    ShutsDown,
    Failed,
}

impl LongPollResult {
    /// Reads the node's response to a `waitTipChanged` call.
    ///
    /// # Errors
    /// The results have an invalid encoding.
    pub fn read(outcome: &Outcome) -> capnp::Result<Self> {
        let Outcome::Results(_, content) = outcome else { return Ok(LongPollResult::Failed) };
        let results: mining::wait_tip_changed_results::Reader = content.get_as()?;
        if !results.has_result() {
            return Ok(LongPollResult::ShutsDown);
        }
        let tip: block_ref::Reader = results.get_result()?;
        Ok(LongPollResult::Tip(tip.get_hash()?.to_vec()))
    }
}

/// Schedule of the guard's own long polls on one connection, with which the guard detects the shutdown of the node. The
/// guard makes no long poll before the node has returned a tip to a long poll of the exporter, because only this
/// response shows that the node has loaded its chain state.
#[derive(Default)]
pub(super) struct ShutdownWatch {
    /// Export ID of the node's thread map, the object with which the exporter created a thread of the node.
    pub thread_map: Option<u32>,
    long_poll: Option<LongPoll>,
    /// Export ID of the node's thread that runs the guard's long polls.
    thread: Option<u32>,
    /// Hash of the tip that the last successful long poll returned.
    tip: Vec<u8>,
    /// Time at which the guard makes a long poll if none is under way.
    due_at: Duration,
}

impl ShutdownWatch {
    /// Whether this capability of the node is the thread map or the Mining interface, which the guard needs for its
    /// long polls.
    pub fn is_pinned(&self, id: u32) -> bool {
        self.thread_map == Some(id) || self.long_poll.is_some_and(|poll| poll.mining == id)
    }

    /// Records the node's response to the guard's `makeThread` call. `thread` is `None` if the call failed.
    pub fn on_thread(&mut self, thread: Option<u32>, now: Duration) {
        self.thread = thread;
        if thread.is_none() {
            self.due_at = now + RETRY_INTERVAL;
        }
    }

    /// Records the node's response to a long poll of the exporter.
    pub fn on_exporter_poll_end(&mut self, poll: Option<LongPoll>, end: LongPollResult, now: Duration) {
        self.due_at = now + TAKEOVER_DELAY;
        if let LongPollResult::Tip(tip) = end {
            (self.long_poll, self.tip) = (poll, tip);
        }
    }

    /// Records the node's response to a long poll of the guard.
    pub fn on_own_poll_end(
        &mut self,
        end: LongPollResult,
        asked_at: Duration,
        is_subscribed: bool,
        now: Duration,
    ) {
        self.due_at = now + RETRY_INTERVAL;
        if let LongPollResult::Tip(tip) = end {
            self.tip = tip;
            self.due_at =
                asked_at + if is_subscribed { MIN_SUBSCRIBED_POLL_INTERVAL } else { MIN_POLL_INTERVAL };
        }
    }

    /// Time from which the guard makes its [next call](Self::next_call) if no long poll is under way; `None` if the
    /// guard cannot make a call.
    pub fn due_at(&self) -> Option<Duration> {
        let can_poll = self.long_poll.is_some() && self.thread.or(self.thread_map).is_some();
        can_poll.then_some(self.due_at)
    }

    /// Returns the guard's next call, with the question ID `question`: a long poll, or the request for a thread that
    /// runs the long polls.
    pub fn next_call(&self, question: u32) -> Option<(CallPurpose, GuardMessage)> {
        let LongPoll { mining, timeout } = self.long_poll?;
        if let Some(thread) = self.thread {
            let call =
                GuardMessage::WaitTipChanged { question, mining, thread, tip: self.tip.clone(), timeout };
            return Some((CallPurpose::WaitTipChanged(None), call));
        }
        let thread_map = self.thread_map?;
        Some((CallPurpose::MakeThread { thread_map }, GuardMessage::MakeThread { question, thread_map }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(1);
    const POLL: Option<LongPoll> = Some(LongPoll { mining: 3, timeout: 1000.0 });

    fn tip() -> LongPollResult {
        LongPollResult::Tip(vec![9; 32])
    }

    /// The state after the node's response to a long poll of the exporter, with a thread for the guard's long polls.
    fn ready() -> ShutdownWatch {
        let mut watch = ShutdownWatch { thread_map: Some(1), ..ShutdownWatch::default() };
        watch.on_exporter_poll_end(POLL, tip(), NOW);
        watch.on_thread(Some(8), NOW);
        watch
    }

    #[test]
    fn guard_polls_after_an_answered_poll_on_its_own_thread() {
        let mut watch = ShutdownWatch { thread_map: Some(1), ..ShutdownWatch::default() };
        assert_eq!(watch.due_at(), None, "the node may not have loaded its chain");
        watch.on_exporter_poll_end(POLL, tip(), NOW);
        let due = NOW + TAKEOVER_DELAY;
        assert_eq!(watch.due_at(), Some(due));
        let Some((_, GuardMessage::MakeThread { question: 7, thread_map: 1 })) = watch.next_call(7) else {
            panic!()
        };
        watch.on_thread(Some(8), due);
        let Some((_, GuardMessage::WaitTipChanged { question: 8, mining: 3, thread: 8, tip, timeout })) =
            watch.next_call(8)
        else {
            panic!()
        };
        assert_eq!((tip, timeout), (vec![9; 32], 1000.0));
        assert!(watch.is_pinned(1) && watch.is_pinned(3) && !watch.is_pinned(8));
    }

    #[test]
    fn next_poll_is_due_by_how_the_last_one_ended() {
        let asked = NOW;
        let now = NOW + Duration::from_millis(1);
        for (end, is_subscribed, due) in [
            (tip(), false, asked + MIN_POLL_INTERVAL),
            (tip(), true, asked + MIN_SUBSCRIBED_POLL_INTERVAL),
            (LongPollResult::Failed, true, now + RETRY_INTERVAL),
        ] {
            let mut watch = ready();
            watch.on_own_poll_end(end, asked, is_subscribed, now);
            assert_eq!(watch.due_at(), Some(due));
        }
        let mut watch = ShutdownWatch { thread_map: Some(1), ..ShutdownWatch::default() };
        watch.on_exporter_poll_end(POLL, LongPollResult::Failed, NOW);
        assert_eq!(watch.due_at(), None, "a failed poll shows no loaded chain");
    }

    #[test]
    fn rejected_thread_is_requested_again_later() {
        let mut watch = ready();
        watch.on_thread(None, NOW);
        assert_eq!(watch.due_at(), Some(NOW + RETRY_INTERVAL));
        assert!(matches!(watch.next_call(7), Some((_, GuardMessage::MakeThread { .. }))));
    }
}
