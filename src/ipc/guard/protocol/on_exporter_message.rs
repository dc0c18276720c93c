//! Decides how the guard handles each message from the exporter.

use std::time::Duration;

use super::shutdown_watch::LongPoll;
use super::{CallPurpose, ExporterMessageAction, FIRST_GUARD_ID, GuardEvent, GuardMessage, ProtocolState};
use crate::ipc::guard::allow_list::{self, Rejection};
use crate::ipc::guard::message::{self, Call, CallTarget, Message, PassedCapabilities};

/// Maximum number of threads of the node that the exporter may request. The exporter requests at most five threads.
pub(super) const MAX_THREADS: u32 = 16;
/// Number of rejected calls after which the guard disconnects. The guard rejects a call only if the exporter has a bug.
pub(super) const MAX_REJECTED: u32 = 16;
/// Maximum number of unfinished calls to the node. The number is limited because the node keeps the results of
/// unfinished calls in memory.
pub(super) const MAX_CALLS: usize = 64;
/// Maximum number of the exporter's references to capabilities of the node.
pub(super) const MAX_REFERENCES: usize = 256;

impl ProtocolState {
    /// Returns the action for a message from the exporter, and updates the state.
    ///
    /// # Errors
    /// The parameters or the capability table of a call have an invalid encoding.
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
        let passed = match self.check_capabilities(call)? {
            Ok(passed) => passed,
            Err(why) => return Ok(ExporterMessageAction::Violation(why)),
        };
        let purpose = match self.on_template_call(call) {
            Some(purpose) => purpose.map_err(ExporterMessageAction::Violation),
            None => self.purpose(call, passed)?,
        };
        Ok(purpose.map_or_else(
            |action| action,
            |purpose| self.start_call(call.question, purpose, passed.thread, now),
        ))
    }

    /// Checks that the exporter has the capability on which the call is made, and that the call passes no capabilities
    /// except a thread of the node, and a callback or the exporter's thread map if the method takes one. The inner
    /// error is the rule that the call breaks.
    fn check_capabilities(&self, call: &Call) -> capnp::Result<Result<PassedCapabilities, &'static str>> {
        let has_target = match call.target {
            CallTarget::Export(id) => self.capabilities.has(id),
            CallTarget::Answer(question) => self.questions.is_open(question),
        };
        if call.has_options()? {
            return Ok(Err("call with an option"));
        }
        let Some(passed) = call.passed()? else { return Ok(Err("unexpected capability in a call")) };
        if !has_target || passed.thread.is_some_and(|id| !self.capabilities.has(id)) {
            return Ok(Err("use of a capability that the exporter does not have"));
        }
        let is_thread = passed.thread.is_none_or(|id| self.capabilities.is_thread(id));
        Ok(if is_thread { Ok(passed) } else { Err("unexpected capability in a call") })
    }

    /// The purpose of a call on a block template; `None` for a call on any other capability. The exporter may address a
    /// template only by its export ID, because the guard cannot determine the template of a [`CallTarget::Answer`].
    fn on_template_call(&self, call: &Call) -> Option<Result<CallPurpose, &'static str>> {
        match call.target {
            CallTarget::Export(id) if self.template.export() == Some(id) => {
                let checked = self.template.may_be_called(call.method);
                Some(checked.map(|destroys| CallPurpose::CallTemplate { destroys }))
            }
            _ if message::is_of_template(call.method) => Some(Err("call on an unknown block template")),
            _ => None,
        }
    }

    /// Returns the purpose of a call that may be forwarded. For any other call, the inner error is the action that
    /// replaces forwarding.
    fn purpose(
        &mut self,
        call: &Call,
        passed: PassedCapabilities,
    ) -> capnp::Result<Result<CallPurpose, ExporterMessageAction>> {
        if let Err(rejection) = allow_list::check(call)? {
            return Ok(Err(self.reject(call.question, rejection)));
        }
        Ok(match (call.method, call.target) {
            // The exporter must pass a thread map, because the node calls the thread map before it makes a callback.
            (message::CONSTRUCT, _) => match passed.hosted {
                Some(_) => Ok(CallPurpose::Handshake),
                None => Err(ExporterMessageAction::Violation("handshake without a thread map")),
            },
            (message::MAKE_THREAD, target) => {
                self.on_make_thread(target).map_err(ExporterMessageAction::Violation)
            }
            (message::WAIT_TIP_CHANGED, _) => Ok(CallPurpose::WaitTipChanged(LongPoll::read(call)?)),
            (message::HANDLE_NOTIFICATIONS | message::TRACE_UTXO_CACHE, _) => {
                self.on_subscribe(call, passed).map_err(ExporterMessageAction::Violation)
            }
            (message::DISCONNECT, CallTarget::Export(handler)) => {
                let callback = self.subscriptions.disconnectable_callback(handler);
                // `None` means that no subscription has this handler, that the subscription is already disconnected, or
                // that a `disconnect` is under way. The guard then responds itself, because a second `disconnect` can
                // hang the node.
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

    fn on_subscribe(&self, call: &Call, passed: PassedCapabilities) -> Result<CallPurpose, &'static str> {
        // If two subscriptions had the same callback, the guard could not determine which subscription ends when the
        // node releases the callback.
        if passed.hosted.is_some_and(|callback| self.subscriptions.has_callback(callback)) {
            return Err("second subscription of a callback");
        }
        // The guard needs the callback and the thread to end the subscription.
        let (Some(callback), Some(thread)) = (passed.hosted, passed.thread) else {
            return Err("subscription without a callback or a thread");
        };
        Ok(CallPurpose::Subscribe { callback, thread, traces: call.method == message::TRACE_UTXO_CACHE })
    }

    fn reject(&mut self, question: u32, rejection: Rejection) -> ExporterMessageAction {
        if !self.is_free(question) {
            return ExporterMessageAction::Violation(NUMBER_IN_USE);
        }
        self.rejected += 1;
        self.events.push_back(GuardEvent::Rejected(rejection.clone()));
        match self.rejected {
            MAX_REJECTED.. => ExporterMessageAction::Violation("too many calls that are not permitted"),
            _ => ExporterMessageAction::Reject(question, rejection),
        }
    }

    /// Records a call of the exporter that is to be forwarded, or returns the rule of the protocol that the call
    /// breaks. `thread` is the node's thread that runs the call, if the parameters name a thread.
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
        if self.questions.count() >= MAX_CALLS || self.capabilities.references() >= MAX_REFERENCES {
            return ExporterMessageAction::Violation("too many unfinished calls or unreleased capabilities");
        }
        self.begin_call(number, purpose, thread, now);
        ExporterMessageAction::Forward
    }

    fn is_free(&self, number: u32) -> bool {
        number < FIRST_GUARD_ID && !self.questions.is_used(number)
    }

    fn on_finish(&mut self, number: u32, releases: bool) -> ExporterMessageAction {
        let results = match self.questions.finish(number, releases) {
            Err(why) => return ExporterMessageAction::Violation(why),
            Ok(None) => return ExporterMessageAction::Keep,
            Ok(Some(_)) if !releases => return ExporterMessageAction::Forward,
            Ok(Some(results)) => results,
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
