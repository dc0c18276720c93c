//! Decides how the guard (the process that relays messages between the node and the exporter) handles each message
//! from the exporter.

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

/// The value that a rule returns for a permitted message, or the action that replaces forwarding the message.
type Checked<T> = Result<T, ExporterMessageAction>;

impl ProtocolState {
    /// Returns the guard's action for a message from the exporter, and updates the protocol state.
    pub fn on_exporter(&mut self, message: &Message, now: Duration) -> ExporterMessageAction {
        let (Ok(action) | Err(action)) = self.check_message(message, now);
        self.release_unused_template();
        action
    }

    fn check_message(&mut self, message: &Message, now: Duration) -> Checked<ExporterMessageAction> {
        match message {
            Message::Bootstrap { question } => self.start_call(*question, CallPurpose::Handshake, None, now),
            Message::Call(call) => {
                let passed = self.check_capabilities(call)?;
                let purpose = self.purpose(call, passed)?;
                self.start_call(call.question, purpose, passed.thread, now)
            }
            Message::Finish { question, releases } => self.on_finish(*question, *releases),
            Message::Release { export, count } if self.capabilities.release(*export, *count) => {
                let is_kept = self.is_pinned(*export);
                Ok(if is_kept { ExporterMessageAction::Keep } else { ExporterMessageAction::Forward })
            }
            Message::Release { .. } => Err("release of a capability that the exporter does not have".into()),
            Message::Return(_) => Err("response without a request".into()),
            Message::Abort => Err("abort message".into()),
            Message::Resolve(_) | Message::Other => Err("unsupported message".into()),
        }
    }

    /// Checks that the exporter has the capability on which the call is made, and that the call passes no capabilities
    /// except a thread of the node, and a callback or the exporter's thread map if the method takes one.
    fn check_capabilities(&self, call: &Call) -> Checked<PassedCapabilities> {
        let has_target = match call.target {
            CallTarget::Export(id) => self.capabilities.has(id),
            CallTarget::Answer(question) => self.questions.is_open(question),
        };
        if call.has_options()? {
            return Err("call with an option".into());
        }
        let passed = call.passed()?.ok_or(UNEXPECTED_CAPABILITY)?;
        if !has_target || passed.thread.is_some_and(|id| !self.capabilities.has(id)) {
            return Err("use of a capability that the exporter does not have".into());
        }
        let is_thread = passed.thread.is_none_or(|id| self.capabilities.is_thread(id));
        if is_thread { Ok(passed) } else { Err(UNEXPECTED_CAPABILITY.into()) }
    }

    /// Returns the purpose of a call of the exporter if the guard may forward the call to the node.
    fn purpose(&mut self, call: &Call, passed: PassedCapabilities) -> Checked<CallPurpose> {
        if let Some(template) = &self.template
            && call.target == CallTarget::Export(template.export)
        {
            let destroys = self.may_call(template, call.method)?;
            return Ok(CallPurpose::CallTemplate { destroys });
        }
        // The exporter may address a template only by its export ID, because the guard cannot determine the template of
        // a `CallTarget::Answer`.
        if message::is_of_template(call.method) {
            return Err("call on an unknown block template".into());
        }
        if let Err(rejection) = allow_list::check(call)? {
            return Err(self.reject(call.question, rejection));
        }
        Ok(match (call.method, call.target) {
            // The exporter must pass a thread map, because the node calls the thread map before it makes a callback.
            (message::CONSTRUCT, _) => {
                passed.hosted.ok_or("handshake without a thread map")?;
                CallPurpose::Handshake
            }
            (message::MAKE_THREAD, target) => self.on_make_thread(target)?,
            (message::WAIT_TIP_CHANGED, _) => CallPurpose::WaitTipChanged(LongPoll::read(call)?),
            (message::HANDLE_NOTIFICATIONS | message::TRACE_UTXO_CACHE, _) => {
                self.on_subscribe(call, passed)?
            }
            (message::DISCONNECT, CallTarget::Export(handler)) => {
                let callback = self.disconnectable_callback(handler);
                // `None` means that no subscription has this handler, that the subscription is already disconnected, or
                // that a `disconnect` is under way. The guard then responds itself, because a second `disconnect` can
                // hang the node.
                let callback = callback.ok_or(ExporterMessageAction::Answer(call.question))?;
                CallPurpose::Disconnect { callback }
            }
            (message::DISCONNECT, CallTarget::Answer(_)) => {
                return Err("end of a subscription before its beginning".into());
            }
            (message::CREATE_NEW_BLOCK, _) => {
                self.may_create_template()?;
                CallPurpose::CreateNewBlock
            }
            _ => CallPurpose::Other,
        })
    }

    fn on_make_thread(&mut self, target: CallTarget) -> Checked<CallPurpose> {
        let CallTarget::Export(thread_map) = target else {
            return Err("request for a thread before the end of the handshake".into());
        };
        if self.threads_requested >= MAX_THREADS {
            return Err("request for too many threads".into());
        }
        self.threads_requested += 1;
        Ok(CallPurpose::MakeThread { thread_map })
    }

    fn disconnectable_callback(&self, handler: u32) -> Option<u32> {
        let callback = self.subscriptions.connected_callback(handler)?;
        let is_ending = |_, purpose: &CallPurpose| matches!(purpose, CallPurpose::Disconnect { callback: it } if *it == callback);
        (!self.questions.any_under_way(is_ending)).then_some(callback)
    }

    fn on_subscribe(&self, call: &Call, passed: PassedCapabilities) -> Checked<CallPurpose> {
        // If two subscriptions had the same callback, the guard could not determine which subscription ends when the
        // node releases the callback.
        if passed.hosted.is_some_and(|callback| self.subscriptions.has_callback(callback)) {
            return Err("second subscription of a callback".into());
        }
        // The guard needs the callback and the thread to end the subscription.
        let (Some(callback), Some(thread)) = (passed.hosted, passed.thread) else {
            return Err("subscription without a callback or a thread".into());
        };
        Ok(CallPurpose::Subscribe { callback, thread, traces: call.method == message::TRACE_UTXO_CACHE })
    }

    fn reject(&mut self, question: u32, rejection: Rejection) -> ExporterMessageAction {
        if !self.is_free(question) {
            return NUMBER_IN_USE.into();
        }
        self.rejected += 1;
        self.events.push_back(GuardEvent::Rejected(rejection.clone()));
        match self.rejected {
            MAX_REJECTED.. => "too many calls that are not permitted".into(),
            _ => ExporterMessageAction::Reject(question, rejection),
        }
    }

    /// Records a call of the exporter that is to be forwarded. `thread` is the node's thread that runs the call, if the
    /// parameters name a thread.
    fn start_call(
        &mut self,
        number: u32,
        purpose: CallPurpose,
        thread: Option<u32>,
        now: Duration,
    ) -> Checked<ExporterMessageAction> {
        // Bitcoin Core 30 aborts when it has to queue a second call on a thread.
        if thread.is_some_and(|thread| self.questions.is_running_on(thread)) {
            return Err("two concurrent calls on one thread".into());
        }
        if !self.is_free(number) {
            return Err(NUMBER_IN_USE.into());
        }
        if self.questions.count() >= MAX_CALLS || self.capabilities.references() >= MAX_REFERENCES {
            return Err("too many unfinished calls or unreleased capabilities".into());
        }
        self.begin_call(number, purpose, thread, now);
        Ok(ExporterMessageAction::Forward)
    }

    fn is_free(&self, number: u32) -> bool {
        number < FIRST_GUARD_ID && !self.questions.is_used(number)
    }

    fn on_finish(&mut self, number: u32, releases: bool) -> Checked<ExporterMessageAction> {
        let Some(results) = self.questions.finish(number, releases)? else {
            return Ok(ExporterMessageAction::Keep);
        };
        if !releases {
            return Ok(ExporterMessageAction::Forward);
        }
        for &id in &results {
            self.capabilities.release(id, 1);
        }
        if !results.iter().any(|&id| self.is_pinned(id)) {
            return Ok(ExporterMessageAction::Forward);
        }
        self.finishes.push_back(GuardMessage::Finish { question: number, releases: false });
        Ok(ExporterMessageAction::Keep)
    }
}

const NUMBER_IN_USE: &str = "question number that is in use";
const UNEXPECTED_CAPABILITY: &str = "unexpected capability in a call";
