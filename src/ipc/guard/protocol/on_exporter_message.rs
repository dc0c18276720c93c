//! What the exporter says.

use std::time::Duration;

use super::questions::Finished;
use super::shutdown_watch::LongPoll;
use super::{Event, FromExporter, OWN_NUMBERS, Own, ProtocolState, Purpose};
use crate::ipc::guard::allow_list::{self, Rejection};
use crate::ipc::guard::message::{self, Call, Capabilities, Message, Target};

/// Threads of the node that the exporter may have. It has five at most.
pub(super) const MAX_THREADS: u32 = 16;
/// Rejected calls after which the connection ends. The exporter makes none.
pub(super) const MAX_REJECTED: u32 = 16;

impl ProtocolState {
    /// Takes a message of the exporter's into account.
    pub fn on_exporter(&mut self, message: &Message, now: Duration) -> capnp::Result<FromExporter> {
        let verdict = match message {
            Message::Bootstrap { question } => self.ask(*question, Purpose::Handshake, None, now),
            Message::Call(call) => self.on_call(call, now)?,
            Message::Finish { question, releases } => self.on_finish(*question, *releases),
            Message::Release { export, count } if self.capabilities.release(*export, *count) => {
                if self.is_pinned(*export) { FromExporter::Keep } else { FromExporter::Forward }
            }
            Message::Release { .. } => FromExporter::Refuse("it releases what it does not have"),
            Message::Return(_) => FromExporter::Refuse("it answers what it was not asked"),
            Message::Abort => FromExporter::Refuse("it gives up"),
            Message::Resolve(_) | Message::Other => FromExporter::Refuse("a message that it has no use for"),
        };
        self.release_unused_template();
        Ok(verdict)
    }

    fn on_call(&mut self, call: &Call, now: Duration) -> capnp::Result<FromExporter> {
        let capabilities = call.capabilities()?;
        if let Err(why) = self.check_capabilities(call, &capabilities) {
            return Ok(FromExporter::Refuse(why));
        }
        let purpose = match self.on_template_call(call) {
            Some(purpose) => purpose.map_err(FromExporter::Refuse),
            None => self.purpose(call, &capabilities)?,
        };
        let thread = capabilities.imported.first().copied();
        Ok(purpose.map_or_else(|verdict| verdict, |purpose| self.ask(call.question, purpose, thread, now)))
    }

    /// Whether the exporter has what the call uses, and the node may be passed these capabilities: its own threads, and
    /// callbacks where the method takes one.
    fn check_capabilities(&self, call: &Call, capabilities: &Capabilities) -> Result<(), &'static str> {
        let Capabilities { hosted, imported, promised } = capabilities;
        let has_target = match call.target {
            Target::Export(id) => self.capabilities.has(id),
            Target::Answer(question) => self.questions.is_open(question),
        };
        let has = imported.iter().all(|id| self.capabilities.has(*id))
            && promised.iter().all(|question| self.questions.is_open(*question));
        if !has_target || !has {
            return Err("it uses a capability that it does not have");
        }
        let may_pass = hosted.len() <= allow_list::hosted_capabilities(call.method)
            && imported.iter().all(|id| self.capabilities.is_thread(*id))
            && promised.iter().all(|question| self.questions.makes_thread(*question));
        if may_pass { Ok(()) } else { Err("it passes a capability that the method does not take") }
    }

    /// The purpose of a call on a block template; `None` for a call on anything else. Templates are called by their own
    /// numbers only.
    fn on_template_call(&self, call: &Call) -> Option<Result<Purpose, &'static str>> {
        match call.target {
            Target::Export(id) if self.template.export() == Some(id) => {
                let checked = self.template.may_be_called(call.method);
                Some(checked.map(|destroys| Purpose::CallTemplate { destroys }))
            }
            Target::Answer(question) if self.questions.gives_template(question, self.template.export()) => {
                Some(Err("it calls a block template before it is there"))
            }
            _ => None,
        }
    }

    /// The purpose of a call that may be forwarded, else what to do instead.
    fn purpose(
        &mut self,
        call: &Call,
        capabilities: &Capabilities,
    ) -> capnp::Result<Result<Purpose, FromExporter>> {
        if let Err(rejection) = allow_list::check(call)? {
            return Ok(Err(self.reject(call.question, rejection)));
        }
        Ok(match (call.method, call.target) {
            (message::CONSTRUCT, _) => Ok(Purpose::Handshake),
            (message::MAKE_THREAD, target) => self.on_make_thread(target).map_err(FromExporter::Refuse),
            (message::WAIT_TIP_CHANGED, _) => Ok(Purpose::WaitTipChanged(LongPoll::read(call)?)),
            (message::HANDLE_NOTIFICATIONS | message::TRACE_UTXO_CACHE, _) => {
                self.on_subscribe(call, capabilities).map_err(FromExporter::Refuse)
            }
            (message::DISCONNECT, Target::Export(handler)) => {
                let callback = self.subscriptions.disconnectable(handler);
                // Done already, and doing it twice can hang the node.
                callback
                    .map(|callback| Purpose::Disconnect { callback })
                    .ok_or(FromExporter::Answer(call.question))
            }
            (message::DISCONNECT, Target::Answer(_)) => {
                Err(FromExporter::Refuse("it ends a subscription before it has begun"))
            }
            (message::CREATE_NEW_BLOCK, _) => {
                let checked = self.template.may_be_created();
                checked.map(|()| Purpose::CreateNewBlock).map_err(FromExporter::Refuse)
            }
            _ => Ok(Purpose::Other),
        })
    }

    fn on_make_thread(&mut self, target: Target) -> Result<Purpose, &'static str> {
        let Target::Export(thread_map) = target else {
            return Err("it asks for a thread before the handshake is over");
        };
        if self.threads_requested >= MAX_THREADS {
            return Err("it asks for too many threads");
        }
        self.threads_requested += 1;
        Ok(Purpose::MakeThread { thread_map })
    }

    fn on_subscribe(&self, call: &Call, capabilities: &Capabilities) -> Result<Purpose, &'static str> {
        let callback = capabilities.hosted.first().copied();
        // Which of the two is over could not be told when the node releases one.
        if callback.is_some_and(|callback| self.subscriptions.has_callback(callback)) {
            return Err("it subscribes a callback twice");
        }
        // How to end it could not be told.
        let (Some(callback), Some(&thread)) = (callback, capabilities.imported.first()) else {
            return Err("it subscribes without a callback or a thread");
        };
        Ok(Purpose::Subscribe { callback, thread, traces: call.method == message::TRACE_UTXO_CACHE })
    }

    fn reject(&mut self, question: u32, rejection: Rejection) -> FromExporter {
        if !self.is_free(question) {
            return FromExporter::Refuse(NUMBER_IN_USE);
        }
        self.rejected += 1;
        let Rejection { call, reason } = rejection.clone();
        self.events.push_back(Event::Rejected { call, reason });
        match self.rejected {
            MAX_REJECTED.. => FromExporter::Refuse("it makes calls that are not permitted"),
            _ => FromExporter::Reject(question, rejection),
        }
    }

    /// A question of the exporter's, on a thread of the node.
    fn ask(&mut self, number: u32, purpose: Purpose, thread: Option<u32>, now: Duration) -> FromExporter {
        // Bitcoin Core 30 aborts when it has to queue a second call on a thread.
        if thread.is_some_and(|thread| self.questions.is_running_on(thread)) {
            return FromExporter::Refuse("it makes two calls at once on one thread");
        }
        if !self.is_free(number) {
            return FromExporter::Refuse(NUMBER_IN_USE);
        }
        self.begin(number, purpose, thread, now);
        FromExporter::Forward
    }

    fn is_free(&self, number: u32) -> bool {
        number < OWN_NUMBERS && !self.questions.is_used(number)
    }

    fn on_finish(&mut self, number: u32, releases: bool) -> FromExporter {
        let results = match self.questions.finish(number, releases) {
            Err(why) => return FromExporter::Refuse(why),
            Ok(Finished::Later | Finished::NotNeeded) => return FromExporter::Keep,
            Ok(Finished::Now(_)) if !releases => return FromExporter::Forward,
            Ok(Finished::Now(results)) => results,
        };
        for &id in &results {
            self.capabilities.release(id, 1);
        }
        if !results.iter().any(|&id| self.is_pinned(id)) {
            return FromExporter::Forward;
        }
        self.finishes.push_back(Own::Finish { question: number, releases: false });
        FromExporter::Keep
    }
}

const NUMBER_IN_USE: &str = "it uses a question's number twice";
