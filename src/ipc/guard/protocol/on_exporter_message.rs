//! Decides how the guard handles each message from the exporter.

use std::time::Duration;

use super::questions::FinishAction;
use super::shutdown_watch::LongPoll;
use super::{CallPurpose, ExporterMessageAction, GuardEvent, GuardMessage, OWN_NUMBERS, ProtocolState};
use crate::ipc::guard::allow_list::{self, Rejection};
use crate::ipc::guard::message::{self, Call, CallTarget, Message, MessageCapabilities};

/// Maximum number of threads of the node that the exporter may request. The exporter requests at most five threads.
pub(super) const MAX_THREADS: u32 = 16;
/// Number of rejected calls after which the guard disconnects. The exporter makes such calls only if it has a bug.
pub(super) const MAX_REJECTED: u32 = 16;

impl ProtocolState {
    /// Returns the action for a message from the exporter, and updates the state.
    pub fn on_exporter(&mut self, message: &Message, now: Duration) -> capnp::Result<ExporterMessageAction> {
        let action = match message {
            Message::Bootstrap { question } => self.start_call(*question, CallPurpose::Handshake, None, now),
            Message::Call(call) => self.on_call(call, now)?,
            Message::Finish { question, releases } => self.on_finish(*question, *releases),
            Message::Release { export, count } if self.capabilities.release(*export, *count) => {
                if self.is_pinned(*export) {
                    ExporterMessageAction::Keep
                } else {
                    ExporterMessageAction::Forward
                }
            }
            Message::Release { .. } => {
                ExporterMessageAction::Violation("release of a capability that the exporter does not have")
            }
            Message::Return(_) => ExporterMessageAction::Violation("response without a request"),
            Message::Abort => ExporterMessageAction::Violation("abort message"),
            Message::Resolve(_) | Message::Other => ExporterMessageAction::Violation("unsupported message"),
        };
        self.release_unused_template();
        Ok(action)
    }

    fn on_call(&mut self, call: &Call, now: Duration) -> capnp::Result<ExporterMessageAction> {
        let capabilities = call.capabilities()?;
        if let Err(why) = self.check_capabilities(call, &capabilities) {
            return Ok(ExporterMessageAction::Violation(why));
        }
        let purpose = match self.on_template_call(call) {
            Some(purpose) => purpose.map_err(ExporterMessageAction::Violation),
            None => self.purpose(call, &capabilities)?,
        };
        let thread = capabilities.imported.first().copied();
        Ok(purpose
            .map_or_else(|action| action, |purpose| self.start_call(call.question, purpose, thread, now)))
    }

    /// Checks that the exporter has the capability whose method it calls, and that it may pass the capabilities in the
    /// parameters to the node. The exporter may pass threads of the node, and a callback object or thread map of its
    /// own if the method has such a parameter.
    fn check_capabilities(
        &self,
        call: &Call,
        capabilities: &MessageCapabilities,
    ) -> Result<(), &'static str> {
        let MessageCapabilities { hosted, imported, promised } = capabilities;
        let has_target = match call.target {
            CallTarget::Export(id) => self.capabilities.has(id),
            CallTarget::Answer(question) => self.questions.is_open(question),
        };
        let has = imported.iter().all(|id| self.capabilities.has(*id))
            && promised.iter().all(|question| self.questions.is_open(*question));
        if !has_target || !has {
            return Err("use of a capability that the exporter does not have");
        }
        let may_pass = hosted.len() <= allow_list::hosted_capabilities(call.method)
            && imported.iter().all(|id| self.capabilities.is_thread(*id))
            && promised.iter().all(|question| self.questions.makes_thread(*question));
        if may_pass { Ok(()) } else { Err("unexpected capability in a call") }
    }

    /// Returns the purpose of a call on a block template; `None` if the target of the call is not a template. The
    /// exporter may address a template only by its export ID, not as the result of an unanswered `createNewBlock`.
    fn on_template_call(&self, call: &Call) -> Option<Result<CallPurpose, &'static str>> {
        match call.target {
            CallTarget::Export(id) if self.template.export() == Some(id) => {
                let checked = self.template.may_be_called(call.method);
                Some(checked.map(|destroys| CallPurpose::CallTemplate { destroys }))
            }
            CallTarget::Answer(question)
                if self.questions.gives_template(question, self.template.export()) =>
            {
                Some(Err("call on a block template before its creation"))
            }
            _ => None,
        }
    }

    /// Returns the purpose of a call that may be forwarded. For any other call, returns the action instead of
    /// forwarding.
    fn purpose(
        &mut self,
        call: &Call,
        capabilities: &MessageCapabilities,
    ) -> capnp::Result<Result<CallPurpose, ExporterMessageAction>> {
        if let Err(rejection) = allow_list::check(call)? {
            return Ok(Err(self.reject(call.question, rejection)));
        }
        Ok(match (call.method, call.target) {
            (message::CONSTRUCT, _) => Ok(CallPurpose::Handshake),
            (message::MAKE_THREAD, target) => {
                self.on_make_thread(target).map_err(ExporterMessageAction::Violation)
            }
            (message::WAIT_TIP_CHANGED, _) => Ok(CallPurpose::WaitTipChanged(LongPoll::read(call)?)),
            (message::HANDLE_NOTIFICATIONS | message::TRACE_UTXO_CACHE, _) => {
                self.on_subscribe(call, capabilities).map_err(ExporterMessageAction::Violation)
            }
            (message::DISCONNECT, CallTarget::Export(handler)) => {
                let callback = self.subscriptions.disconnectable_callback(handler);
                // `None` means that the subscription is already disconnected, or a `disconnect` is under way. The guard
                // then responds itself, because a second `disconnect` can hang the node.
                callback
                    .map(|callback| CallPurpose::Disconnect { callback })
                    .ok_or(ExporterMessageAction::Answer(call.question))
            }
            (message::DISCONNECT, CallTarget::Answer(_)) => {
                Err(ExporterMessageAction::Violation("end of a subscription before its beginning"))
            }
            (message::CREATE_NEW_BLOCK, _) => {
                let checked = self.template.may_be_created();
                checked.map(|()| CallPurpose::CreateNewBlock).map_err(ExporterMessageAction::Violation)
            }
            _ => Ok(CallPurpose::Other),
        })
    }

    fn on_make_thread(&mut self, target: CallTarget) -> Result<CallPurpose, &'static str> {
        let CallTarget::Export(thread_map) = target else {
            return Err("request for a thread before the end of the handshake");
        };
        if self.threads_requested >= MAX_THREADS {
            return Err("request for too many threads");
        }
        self.threads_requested += 1;
        Ok(CallPurpose::MakeThread { thread_map })
    }

    fn on_subscribe(
        &self,
        call: &Call,
        capabilities: &MessageCapabilities,
    ) -> Result<CallPurpose, &'static str> {
        let callback = capabilities.hosted.first().copied();
        // If two subscriptions had the same callback object, its release would not show which subscription has ended.
        if callback.is_some_and(|callback| self.subscriptions.has_callback(callback)) {
            return Err("second subscription of a callback");
        }
        // The guard needs the callback's ID and the thread's ID to end the subscription.
        let (Some(callback), Some(&thread)) = (callback, capabilities.imported.first()) else {
            return Err("subscription without a callback or a thread");
        };
        Ok(CallPurpose::Subscribe { callback, thread, traces: call.method == message::TRACE_UTXO_CACHE })
    }

    fn reject(&mut self, question: u32, rejection: Rejection) -> ExporterMessageAction {
        if !self.is_free(question) {
            return ExporterMessageAction::Violation(NUMBER_IN_USE);
        }
        self.rejected += 1;
        let Rejection { call, reason } = rejection.clone();
        self.events.push_back(GuardEvent::Rejected { call, reason });
        match self.rejected {
            MAX_REJECTED.. => ExporterMessageAction::Violation("too many calls that are not permitted"),
            _ => ExporterMessageAction::Reject(question, rejection),
        }
    }

    /// Records a call of the exporter that is to be forwarded. `thread` is the node's thread that runs the call, if the
    /// parameters name one.
    fn start_call(
        &mut self,
        number: u32,
        purpose: CallPurpose,
        thread: Option<u32>,
        now: Duration,
    ) -> ExporterMessageAction {
        // Bitcoin Core 30 aborts when it has to queue a second call on a thread.
        if thread.is_some_and(|thread| self.questions.is_running_on(thread)) {
            return ExporterMessageAction::Violation("two concurrent calls on one thread");
        }
        if !self.is_free(number) {
            return ExporterMessageAction::Violation(NUMBER_IN_USE);
        }
        self.begin_call(number, purpose, thread, now);
        ExporterMessageAction::Forward
    }

    fn is_free(&self, number: u32) -> bool {
        number < OWN_NUMBERS && !self.questions.is_used(number)
    }

    fn on_finish(&mut self, number: u32, releases: bool) -> ExporterMessageAction {
        let results = match self.questions.finish(number, releases) {
            Err(why) => return ExporterMessageAction::Violation(why),
            Ok(FinishAction::Later | FinishAction::NotNeeded) => return ExporterMessageAction::Keep,
            Ok(FinishAction::Now(_)) if !releases => return ExporterMessageAction::Forward,
            Ok(FinishAction::Now(results)) => results,
        };
        for &id in &results {
            self.capabilities.release(id, 1);
        }
        if !results.iter().any(|&id| self.is_pinned(id)) {
            return ExporterMessageAction::Forward;
        }
        self.finishes.push_back(GuardMessage::Finish { question: number, releases: false });
        ExporterMessageAction::Keep
    }
}

const NUMBER_IN_USE: &str = "question number that is in use";
