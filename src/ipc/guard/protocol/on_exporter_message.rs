//! What the exporter says.

use std::time::Duration;

use super::{
    Event, FromExporter, MAX_REJECTED, MAX_THREADS, OWN_NUMBERS, Own, ProtocolState, Purpose, Question,
    SubscriptionState, Watched,
};
use crate::ipc::guard::allow_list::{self, Rejection};
use crate::ipc::guard::message::{self, Call, Capabilities, Message, Target};
use crate::schema::mining_capnp::mining;

impl ProtocolState {
    /// Whether a subscription has this callback, or will have it when the node has answered.
    fn is_subscribed(&self, callback: u32) -> bool {
        let subscribing =
            |it: &Question| matches!(it.purpose, Purpose::Subscribe { callback: its, .. } if its == callback);
        self.subscriptions.iter().any(|it| it.ids.callback == callback)
            || self.questions.values().any(subscribing)
    }

    /// Takes a message of the exporter's into account.
    pub fn on_exporter(&mut self, message: &Message, now: Duration) -> capnp::Result<FromExporter> {
        let verdict = match message {
            Message::Bootstrap { question } => self.ask(*question, Purpose::Handshake, None, now),
            Message::Call(call) => self.on_call(call, now)?,
            Message::Finish { question, releases } => self.on_finish(*question, *releases),
            Message::Release { export, count } => match self.exports.get_mut(export) {
                Some(held) if *held >= *count => {
                    *held -= count;
                    if self.needs(*export) { FromExporter::Keep } else { FromExporter::Forward }
                }
                _ => FromExporter::Refuse("it releases what it does not have"),
            },
            Message::Return(_) => FromExporter::Refuse("it answers what it was not asked"),
            Message::Abort => FromExporter::Refuse("it gives up"),
            Message::Resolve(_) | Message::Other => FromExporter::Refuse("a message that it has no use for"),
        };
        self.let_templates_go();
        Ok(verdict)
    }

    fn on_call(&mut self, call: &Call, now: Duration) -> capnp::Result<FromExporter> {
        let capabilities = call.capabilities()?;
        let known = |target| match target {
            Target::Export(id) => self.exports.get(&id).is_some_and(|&held| held > 0),
            Target::Answer(question) => {
                question < OWN_NUMBERS
                    && self.questions.get(&question).is_some_and(|it| it.finished.is_none())
            }
        };
        let mut targets = vec![call.target];
        targets.extend(capabilities.imported.iter().map(|&id| Target::Export(id)));
        targets.extend(capabilities.promised.iter().map(|&question| Target::Answer(question)));
        if !targets.into_iter().all(known) {
            return Ok(FromExporter::Refuse("it uses a capability that it does not have"));
        }
        if !self.may_pass(call, &capabilities) {
            return Ok(FromExporter::Refuse("it passes a capability that the method does not take"));
        }
        let thread = capabilities.imported.first().copied();
        match self.may_call_template(call.target, call.method) {
            Some(Ok(purpose)) => return Ok(self.ask(call.question, purpose, thread, now)),
            Some(Err(refused)) => return Ok(refused),
            None => {}
        }
        if let Err(rejection) = allow_list::check(call)? {
            return Ok(self.reject(call.question, rejection));
        }
        let purpose = match (call.method, call.target) {
            (message::CONSTRUCT, _) => Purpose::Handshake,
            (message::MAKE_THREAD, Target::Export(thread_map)) => {
                if self.threads_asked >= MAX_THREADS {
                    return Ok(FromExporter::Refuse("it asks for too many threads"));
                }
                self.threads_asked += 1;
                Purpose::MakeThread { thread_map }
            }
            (message::MAKE_THREAD, Target::Answer(_)) => {
                return Ok(FromExporter::Refuse("it asks for a thread before the handshake is over"));
            }
            (message::WAIT_TIP_CHANGED, Target::Export(mining)) => {
                let params: mining::wait_tip_changed_params::Reader = call.parameters()?.get_as()?;
                Purpose::WaitTipChanged(Some(Watched { mining, timeout: params.get_timeout() }))
            }
            (message::WAIT_TIP_CHANGED, Target::Answer(_)) => Purpose::WaitTipChanged(None),
            (method @ (message::HANDLE_NOTIFICATIONS | message::TRACE_UTXO_CACHE), _) => {
                match (capabilities.hosted.first(), capabilities.imported.first()) {
                    // Which of the two is over could not be told when the node releases one.
                    (Some(&callback), _) if self.is_subscribed(callback) => {
                        return Ok(FromExporter::Refuse("it subscribes a callback twice"));
                    }
                    (Some(&callback), Some(&thread)) => {
                        let traces = method == message::TRACE_UTXO_CACHE;
                        Purpose::Subscribe { callback, thread, traces, released: 0 }
                    }
                    // How to end it could not be told.
                    _ => return Ok(FromExporter::Refuse("it subscribes without a callback or a thread")),
                }
            }
            (message::DISCONNECT, Target::Export(handler)) => {
                match self.subscriptions.iter().find(|it| it.ids.handler == handler) {
                    Some(it) if it.state == SubscriptionState::Live => {
                        Purpose::Disconnect { callback: it.ids.callback }
                    }
                    // Done already, and doing it twice can hang the node.
                    _ => return Ok(FromExporter::Answer(call.question)),
                }
            }
            (message::CREATE_NEW_BLOCK, _) => match self.may_create_template() {
                Ok(purpose) => purpose,
                Err(refused) => return Ok(refused),
            },
            _ => Purpose::Other,
        };
        if let Purpose::Disconnect { callback } = purpose
            && self.is_disconnecting(|it| it == callback)
        {
            return Ok(FromExporter::Answer(call.question));
        }
        Ok(self.ask(call.question, purpose, thread, now))
    }

    /// Whether the node may be passed these capabilities: its own threads, and callbacks where the method takes one.
    fn may_pass(&self, call: &Call, capabilities: &Capabilities) -> bool {
        let is_thread = |question| {
            self.questions.get(question).is_some_and(|it| matches!(it.purpose, Purpose::MakeThread { .. }))
        };
        capabilities.hosted.len() <= allow_list::hosted_capabilities(call.method)
            && capabilities.imported.iter().all(|id| self.threads.contains(id))
            && capabilities.promised.iter().all(is_thread)
    }

    fn reject(&mut self, question: u32, rejection: Rejection) -> FromExporter {
        if question >= OWN_NUMBERS || self.questions.contains_key(&question) {
            return FromExporter::Refuse("it uses a question's number twice");
        }
        self.rejected += 1;
        self.events.push_back(Event::Rejected {
            call: rejection.call.clone().into(),
            reason: rejection.reason.clone().into(),
        });
        match self.rejected {
            MAX_REJECTED.. => FromExporter::Refuse("it makes calls that are not permitted"),
            _ => FromExporter::Reject(question, rejection),
        }
    }

    /// A question of the exporter's, on a thread of the node.
    fn ask(&mut self, number: u32, purpose: Purpose, thread: Option<u32>, now: Duration) -> FromExporter {
        // Bitcoin Core 30 aborts when it has to queue a second call on a thread.
        if thread.is_some() && self.questions.values().any(|it| !it.answered && it.thread == thread) {
            return FromExporter::Refuse("it makes two calls at once on one thread");
        }
        if number >= OWN_NUMBERS || self.questions.contains_key(&number) {
            return FromExporter::Refuse("it uses a question's number twice");
        }
        self.finished_by_node.remove(&number);
        self.insert(number, purpose, thread, now);
        FromExporter::Forward
    }

    fn on_finish(&mut self, number: u32, releases: bool) -> FromExporter {
        if number >= OWN_NUMBERS {
            return FromExporter::Refuse("it finishes a question that it did not ask");
        }
        match self.questions.get_mut(&number) {
            Some(question) if question.finished.is_some() => {
                FromExporter::Refuse("it finishes a question twice")
            }
            Some(question) if !question.answered => {
                question.finished = Some(releases);
                FromExporter::Keep
            }
            Some(_) => {
                let results = self.questions.remove(&number).map(|it| it.results).unwrap_or_default();
                if !releases {
                    return FromExporter::Forward;
                }
                for id in &results {
                    self.exports.entry(*id).and_modify(|held| *held = held.saturating_sub(1));
                }
                if !results.iter().any(|&id| self.needs(id)) {
                    return FromExporter::Forward;
                }
                self.finishes.push_back(Own::Finish { question: number, releases: false });
                FromExporter::Keep
            }
            None if self.finished_by_node.remove(&number) => FromExporter::Keep,
            None => FromExporter::Refuse("it finishes a question that it did not ask"),
        }
    }
}
