//! Decides how the guard (the process that relays messages between the node and the exporter) handles each message
//! from the node.

use std::time::Duration;

use super::questions::Question;
use super::shutdown_watch::LongPollResult;
use super::template::Template;
use super::{CallPurpose, FIRST_GUARD_ID, GuardEvent, GuardMessage, NodeMessageAction, ProtocolState};
use crate::ipc::guard::message::{self, Message, Outcome, Return};

impl ProtocolState {
    /// Returns the guard's action for a message from the node, and updates the protocol state.
    ///
    /// # Errors
    /// The results of a response have an invalid encoding.
    pub fn on_node(&mut self, message: &Message, now: Duration) -> capnp::Result<NodeMessageAction> {
        self.last_message_at = now;
        Ok(match message {
            Message::Call(call) if message::is_callback(call.method) => {
                if message::is_of_trace(call.method) && self.trace_budget.on_call(now) && !self.over_budget {
                    self.over_budget = true;
                    self.events.push_back(GuardEvent::OverBudget);
                }
                NodeMessageAction::AnswerCallback
            }
            Message::Call(call) if call.method == message::MAKE_THREAD => {
                self.last_thread = self.last_thread.checked_add(1).unwrap_or(FIRST_GUARD_ID);
                NodeMessageAction::AnswerThread(call.question, self.last_thread)
            }
            Message::Call(call) => NodeMessageAction::AnswerUnimplemented(call.question),
            Message::Bootstrap { question } => NodeMessageAction::AnswerUnimplemented(*question),
            // A `Finish` of the node refers to a response that the guard sent, so the exporter does not need it.
            Message::Finish { .. } => NodeMessageAction::Keep,
            Message::Return(answer) => self.on_answer(answer, now)?,
            Message::Release { export, .. } if *export >= FIRST_GUARD_ID => NodeMessageAction::Keep,
            Message::Release { export, count } => {
                self.subscriptions.on_release(*export, *count);
                NodeMessageAction::Forward
            }
            Message::Resolve(hosted) => {
                self.capabilities.add_refs(hosted.as_slice());
                NodeMessageAction::Forward
            }
            Message::Abort => NodeMessageAction::Forward,
            // The guard does not forward this message, because the exporter would respond to the node with an
            // `Unimplemented` message.
            Message::Other => NodeMessageAction::Keep,
        })
    }

    fn on_answer(&mut self, answer: &Return, now: Duration) -> capnp::Result<NodeMessageAction> {
        self.has_answered = true;
        let hosted = answer.outcome.hosted();
        let answered = self.questions.answered(answer.question, hosted, answer.no_finish_needed);
        let Some(answered) = answered else { return Ok(NodeMessageAction::Keep) };
        let (own, finished) = (answer.question >= FIRST_GUARD_ID, answered.finished);
        if (own || finished.is_some()) && !answer.no_finish_needed {
            let releases = finished.unwrap_or(false);
            self.finishes.push_back(GuardMessage::Finish { question: answer.question, releases });
        }
        let is_kept = !own && finished != Some(true);
        if is_kept {
            self.capabilities.add_refs(hosted);
        }
        let are_threads = !own && matches!(answered.purpose, CallPurpose::MakeThread { .. });
        self.capabilities.set_threads(hosted, are_threads);
        let first = hosted.first().copied();
        if let CallPurpose::CreateNewBlock = answered.purpose {
            // The node keeps no template if its response contains none, or if the exporter has already sent a `Finish`
            // that releases the template.
            self.template = first.filter(|_| is_kept).map(|export| Template { export, destroyed: false });
        }
        self.release_unused_template();
        self.apply_outcome(answered, own, &answer.outcome, now)?;
        Ok(if own { NodeMessageAction::Keep } else { NodeMessageAction::Forward })
    }

    /// Updates the protocol state according to the purpose and the outcome of a call to the node. `own` is whether the
    /// guard itself made the call.
    fn apply_outcome(
        &mut self,
        answered: Question,
        own: bool,
        outcome: &Outcome,
        now: Duration,
    ) -> capnp::Result<()> {
        let first = outcome.hosted().first().copied();
        match answered.purpose {
            CallPurpose::MakeThread { .. } if own => self.shutdown_watch.on_thread(first, now),
            CallPurpose::MakeThread { thread_map } if matches!(outcome, Outcome::Results(..)) => {
                self.shutdown_watch.thread_map = Some(thread_map)
            }
            CallPurpose::WaitTipChanged(poll) => {
                let end = LongPollResult::read(outcome)?;
                let shuts_down = end == LongPollResult::ShutsDown;
                if own {
                    let is_subscribed = self.active_subscriptions().next().is_some();
                    self.shutdown_watch.on_own_poll_end(end, answered.asked_at, is_subscribed, now);
                } else {
                    self.shutdown_watch.on_exporter_poll_end(poll, end, now);
                }
                if shuts_down {
                    self.shut_down(now);
                }
            }
            CallPurpose::Subscribe { callback, .. } => self.subscriptions.on_answer(callback, first),
            CallPurpose::Disconnect { callback } => {
                let ended = match outcome {
                    Outcome::Results(..) => Ok(()),
                    Outcome::Exception(why) => Err(*why),
                    Outcome::Other => Err(""),
                };
                self.subscriptions.on_disconnect_end(callback, ended, now);
            }
            CallPurpose::Handshake
            | CallPurpose::MakeThread { .. }
            | CallPurpose::CreateNewBlock
            | CallPurpose::CallTemplate { .. }
            | CallPurpose::Other => {}
        }
        Ok(())
    }
}
