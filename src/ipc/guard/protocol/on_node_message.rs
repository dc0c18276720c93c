//! What the node says.

use std::time::Duration;

use super::{
    BUSY_RETRY_INTERVAL, Event, FromNode, MIN_POLL_INTERVAL, MIN_SUBSCRIBED_POLL_INTERVAL, OWN_NUMBERS, Own,
    ProtocolState, Purpose, RETRY_INTERVAL, Subscription, SubscriptionIds, SubscriptionState, TAKE_OVER,
    WatchThread,
};
use crate::ipc::guard::message::{self, Capabilities, Message, Outcome, Return};
use crate::schema::common_capnp::block_ref;
use crate::schema::mining_capnp::mining;

impl ProtocolState {
    /// Takes a message of the node's into account.
    pub fn on_node(&mut self, message: &Message, now: Duration) -> capnp::Result<FromNode> {
        self.heard_at = now;
        Ok(match message {
            Message::Call(call) if message::is_callback(call.method) => {
                if message::is_of_trace(call.method) && self.budget.call(now) && !self.over_budget {
                    self.over_budget = true;
                    self.events.push_back(Event::OverBudget);
                }
                FromNode::AnswerCallback
            }
            Message::Call(call) if call.method == message::MAKE_THREAD => {
                self.next_thread = self.next_thread.checked_add(1).unwrap_or(OWN_NUMBERS);
                FromNode::AnswerThread(call.question, self.next_thread)
            }
            Message::Call(call) => FromNode::AnswerUnimplemented(call.question),
            Message::Bootstrap { question } => FromNode::AnswerUnimplemented(*question),
            // All answers that the node gets are the guard's.
            Message::Finish { .. } => FromNode::Keep,
            Message::Return(answer) => self.on_answer(answer, now)?,
            Message::Release { export, .. } if *export >= OWN_NUMBERS => FromNode::Keep,
            Message::Release { export, count } => {
                self.on_release(*export, *count);
                FromNode::Forward
            }
            Message::Resolve(capabilities) => {
                self.hold(&capabilities.hosted);
                FromNode::Forward
            }
            Message::Abort => FromNode::Forward,
            // The exporter would answer that it does not know it, and has nothing else to say to it.
            Message::Other => FromNode::Keep,
        })
    }

    fn on_answer(&mut self, answer: &Return, now: Duration) -> capnp::Result<FromNode> {
        self.ever_answered = true;
        let number = answer.question;
        // Of a replaced guard's, or of no one's.
        let Some(question) = self.questions.get_mut(&number).filter(|it| !it.answered) else {
            return Ok(FromNode::Keep);
        };
        question.answered = true;
        let own = number >= OWN_NUMBERS;
        // The guard ends a subscription with the handler that comes with the answer, whatever the exporter sends.
        if let Purpose::Subscribe { .. } = question.purpose {
            question.finished = question.finished.map(|_| false);
        }
        let (finished, asked_at) = (question.finished, question.asked_at);
        let purpose = std::mem::replace(&mut question.purpose, Purpose::Other);
        let hosted = match &answer.outcome {
            Outcome::Results(Capabilities { hosted, .. }, _) => &hosted[..],
            Outcome::Exception(_) | Outcome::Other => &[],
        };
        if own || finished.is_some() || answer.no_finish_needed {
            self.questions.remove(&number);
            if !own && finished.is_none() {
                self.finished_by_node.insert(number);
            }
        } else {
            question.results = hosted.to_vec();
        }
        if (own || finished.is_some()) && !answer.no_finish_needed {
            let releases = finished.unwrap_or(false);
            self.finishes.push_back(Own::Finish { question: number, releases });
        }
        if !own && finished != Some(true) {
            self.hold(hosted);
            if let (Purpose::CreateNewBlock, Some(&template)) = (&purpose, hosted.first()) {
                self.keep_template(template);
            }
        }
        for id in hosted {
            match purpose {
                Purpose::MakeThread { .. } if !own => self.threads.insert(*id),
                _ => self.threads.remove(id), // the number of one that was released, used again
            };
        }
        self.let_templates_go();
        self.conclude(purpose, own, asked_at, &answer.outcome, hosted.first().copied(), now)?;
        Ok(if own { FromNode::Keep } else { FromNode::Forward })
    }

    /// Draws the conclusion from an answer. `hosted` is the first capability that came with it.
    fn conclude(
        &mut self,
        purpose: Purpose,
        own: bool,
        asked_at: Duration,
        outcome: &Outcome,
        hosted: Option<u32>,
        now: Duration,
    ) -> capnp::Result<()> {
        let succeeded = matches!(outcome, Outcome::Results(..));
        match purpose {
            Purpose::MakeThread { thread_map } if !own && succeeded => self.thread_map = Some(thread_map),
            Purpose::MakeThread { .. } if own => match hosted {
                Some(thread) => self.watch_thread = WatchThread::Made(thread),
                None => (self.watch_thread, self.watch_at) = (WatchThread::None, now + RETRY_INTERVAL),
            },
            Purpose::WaitTipChanged(watched) => {
                let tip = match outcome {
                    Outcome::Results(_, content) => Some(tip(content)?),
                    Outcome::Exception(_) | Outcome::Other => None,
                };
                match tip {
                    // No tip is the node's word that it is shutting down, and only that.
                    Some(None) => self.shut_down(now),
                    // A call that was answered: the node has loaded its chain, and this is how to ask it.
                    Some(Some(tip)) if !own => (self.watched, self.tip) = (watched, tip),
                    Some(Some(tip)) => {
                        let interval = match self.subscriptions.is_empty() {
                            true => MIN_POLL_INTERVAL,
                            false => MIN_SUBSCRIBED_POLL_INTERVAL,
                        };
                        self.watch_at = asked_at + interval;
                        self.tip = tip;
                    }
                    None if own => self.watch_at = now + RETRY_INTERVAL,
                    None => {}
                }
                if self.is_watched() {
                    self.watch_at = Duration::MAX;
                } else if !own {
                    self.watch_at = now + TAKE_OVER;
                }
            }
            Purpose::Subscribe { callback, thread, traces, released } => {
                // One that was released already is over.
                if let Some(handler) = hosted
                    && released == 0
                {
                    let ids = SubscriptionIds { callback, handler, thread };
                    self.subscriptions.push(Subscription {
                        ids,
                        references: 1,
                        traces,
                        state: SubscriptionState::Live,
                    });
                    self.events.push_back(Event::Subscribed(ids));
                }
            }
            Purpose::Disconnect { callback } => {
                let of_it = |it: &&mut Subscription| it.ids.callback == callback;
                if succeeded && let Some(it) = self.subscriptions.iter_mut().find(of_it) {
                    it.state = SubscriptionState::Disconnected;
                }
                self.disconnect_at = match outcome {
                    Outcome::Results(..) => now,
                    Outcome::Exception(why) if why.contains("thread busy") => now + BUSY_RETRY_INTERVAL,
                    _ => now + RETRY_INTERVAL,
                };
            }
            Purpose::Handshake
            | Purpose::MakeThread { .. }
            | Purpose::CreateNewBlock
            | Purpose::CallTemplate(_)
            | Purpose::Other => {}
        }
        Ok(())
    }

    /// The exporter has these capabilities of the node's once more.
    fn hold(&mut self, hosted: &[u32]) {
        hosted.iter().for_each(|&id| *self.exports.entry(id).or_default() += 1);
    }

    /// The node drops references to a callback.
    fn on_release(&mut self, export: u32, count: u32) {
        for question in self.questions.values_mut() {
            if let Purpose::Subscribe { callback, released, .. } = &mut question.purpose
                && *callback == export
            {
                *released = released.saturating_add(count);
            }
        }
        self.subscriptions
            .iter_mut()
            .filter(|it| it.ids.callback == export)
            .for_each(|it| it.references = it.references.saturating_sub(count));
        let before = self.subscriptions.len();
        self.subscriptions.retain(|it| it.references > 0);
        if self.subscriptions.len() < before {
            self.events.push_back(Event::Released(export));
        }
    }
}

/// The hash in the answer of `waitTipChanged`; `None` if there is no tip in it.
fn tip(content: &capnp::any_pointer::Reader) -> capnp::Result<Option<Vec<u8>>> {
    let results: mining::wait_tip_changed_results::Reader = content.get_as()?;
    if !results.has_result() {
        return Ok(None);
    }
    let tip: block_ref::Reader = results.get_result()?;
    Ok(Some(tip.get_hash()?.to_vec()))
}
