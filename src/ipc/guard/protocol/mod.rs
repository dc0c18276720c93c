//! The guard's protocol rules: the state of the calls, capabilities and subscriptions of a connection. No I/O, and no clock of its own.
//!
//! A client must not disconnect from a node in the middle of a call or of a subscription. A node disconnects, or aborts, if a client breaks
//! the protocol. Therefore every message of the node and of the exporter passes through these rules:
//!
//! - A message of the exporter is forwarded only if it is valid in the present state. Otherwise it is dropped, and a clean disconnect
//!   starts. A call is never cancelled: a `Finish` before the response is kept until the response arrives.
//! - The guard responds to the node's calls, with or without an exporter.
//! - A long poll is under way to report the node's shutdown: the exporter's long poll, or the guard's own if the exporter has none.
//! - A block template of the node has one call at a time, and is released before the connection is closed.
//! - To drain is to disconnect one subscription after the other, wait until the node has released each callback, and wait for the response
//!   to each call.
//!
//! The state is split into parts with methods and tests of their own. `questions` has the unfinished calls to the node, `capabilities` the
//! node's capabilities that the exporter has, `shutdown_watch` the long poll, `template` the state of a block template, and `subscriptions`
//! the callbacks. `on_node_message` and `on_exporter_message` handle messages. `own_calls` has the guard's own calls, and decides when the
//! connection may be closed.

mod capabilities;
mod on_exporter_message;
mod on_node_message;
mod own_calls;
mod questions;
mod shutdown_watch;
mod subscriptions;
mod template;

use std::collections::VecDeque;
use std::time::Duration;

use super::allow_list::Rejection;
use super::events::{GuardEvent, SubscriptionIds};
use super::outgoing::GuardMessage;
use super::trace_budget::TraceBudget;
use capabilities::NodeCapabilities;
use questions::{CallPurpose, Questions};
use shutdown_watch::ShutdownWatch;
use subscriptions::SubscriptionTable;
use template::TemplateState;

/// First question ID and export ID that the guard allocates. The exporter's IDs start at zero.
const OWN_NUMBERS: u32 = 0x7000_0000;
/// First ID that a replacement guard allocates. Responses to the killed guard's calls may still arrive, and must not match a call of the
/// replacement.
const REPLACEMENT_NUMBERS: u32 = OWN_NUMBERS + (1 << 20);
/// Interval between attempts to unsubscribe while the node's thread is busy with another call.
const BUSY_RETRY_INTERVAL: Duration = Duration::from_millis(2);
/// Interval between attempts to repeat a failed call.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// How the relay handles a message of the node.
#[derive(Debug, PartialEq)]
pub enum NodeMessageAction {
    /// Send an empty response to the callback, and forward the callback to the exporter as an event.
    AnswerCallback,
    /// Respond to a call of `makeThread`: the question ID, and the export ID of the thread that the guard hosts.
    AnswerThread(u32, u32),
    /// Respond with an error that the method is not implemented: the question ID.
    AnswerUnimplemented(u32),
    /// Forward the message to the exporter.
    Forward,
    /// Do not forward the message: it was for the guard.
    Keep,
}

/// How the relay handles a message of the exporter.
#[derive(Debug, PartialEq)]
pub enum ExporterMessageAction {
    /// Forward the message to the node.
    Forward,
    /// Do not forward the message: the node does not need it, or not yet.
    Keep,
    /// Send an empty response in the node's place: the question ID.
    Answer(u32),
    /// Send an error response in the node's place, because the call is not permitted: the question ID, and the reason.
    Reject(u32, Rejection),
    /// Drop the message and start to drain, because the message would make the node disconnect. The text is the reason.
    Violation(&'static str),
}

/// The protocol state of one connection, which decides how each message is handled and which messages the guard sends.
#[derive(Default)]
pub struct ProtocolState {
    questions: Questions,
    capabilities: NodeCapabilities,
    shutdown_watch: ShutdownWatch,
    template: TemplateState,
    subscriptions: SubscriptionTable,
    /// Question ID of the guard's next call.
    next_question: u32,
    /// Export ID of the last thread that the guard hosted for the node.
    last_thread: u32,
    /// Number of `makeThread` calls of the exporter.
    threads_requested: u32,
    /// Number of calls of the exporter that were rejected.
    rejected: u32,
    /// `Finish` and `Release` messages to send.
    finishes: VecDeque<GuardMessage>,
    events: VecDeque<GuardEvent>,
    /// When draining started, if it has.
    draining_since: Option<Duration>,
    /// When this guard replaced a killed one, if it is a replacement.
    replacing_since: Option<Duration>,
    last_message_at: Duration,
    has_answered: bool,
}

impl ProtocolState {
    /// The state of a connection without any message.
    pub fn new(budget: TraceBudget, now: Duration) -> Self {
        ProtocolState {
            subscriptions: SubscriptionTable::new(budget),
            next_question: OWN_NUMBERS,
            last_thread: OWN_NUMBERS,
            last_message_at: now,
            ..ProtocolState::default()
        }
    }

    /// The state of a connection whose guard was killed. It has the subscriptions, to disconnect cleanly.
    pub fn replacement(subscriptions: &[SubscriptionIds], now: Duration) -> Self {
        ProtocolState {
            subscriptions: SubscriptionTable::inherited(subscriptions),
            next_question: REPLACEMENT_NUMBERS,
            last_thread: REPLACEMENT_NUMBERS,
            replacing_since: Some(now),
            last_message_at: now,
            ..ProtocolState::default()
        }
    }

    /// Records that a call is sent to the node. A call of the exporter has the node's `thread` that runs it, if any.
    fn begin_call(&mut self, number: u32, purpose: CallPurpose, thread: Option<u32>, now: Duration) {
        match purpose {
            CallPurpose::WaitTipChanged(_) => self.shutdown_watch.on_poll_start(),
            CallPurpose::Subscribe { callback, thread, .. } => {
                self.subscriptions.on_request(callback, thread)
            }
            CallPurpose::Disconnect { callback } => {
                self.subscriptions.on_disconnect_start(callback, number >= OWN_NUMBERS)
            }
            CallPurpose::CreateNewBlock => self.template.on_create_start(),
            CallPurpose::CallTemplate { destroys } => self.template.on_call_start(destroys),
            CallPurpose::Handshake | CallPurpose::MakeThread { .. } | CallPurpose::Other => {}
        }
        self.questions.insert(number, purpose, thread, now);
    }

    /// Whether the guard needs this capability of the node. The exporter's references to it are then not released.
    fn is_pinned(&self, id: u32) -> bool {
        self.shutdown_watch.is_pinned(id)
            || self.template.export() == Some(id)
            || self.subscriptions.is_pinned(id)
    }

    /// Releases the block template if the exporter no longer uses it.
    fn release_unused_template(&mut self) {
        let is_used = |export| self.draining_since.is_none() && self.capabilities.has(export);
        if let Some(export) = self.template.take_unused(is_used) {
            self.capabilities.remove(export);
            self.finishes.push_back(GuardMessage::Release { export, count: 1 });
        }
    }

    /// Whether the exporter's messages may be read. They are not read while the node handles a `disconnect` of the guard. Another call for
    /// the same subscription would run on the same thread in the middle of the disconnect, wait for a lock that the disconnect holds, and
    /// hang the node.
    pub fn reads_exporter(&self) -> bool {
        self.draining_since.is_none() && !self.subscriptions.has_own_disconnect()
    }

    /// Starts the clean disconnect, because the exporter is gone or broke the protocol.
    pub fn drain(&mut self, now: Duration) {
        if self.draining_since.is_some() {
            return;
        }
        self.draining_since = Some(now);
        // The exporter will send no more `Finish` messages. The node keeps the callback of a subscription until the call that subscribed is
        // finished.
        let answered = self.questions.finish_all().into_iter();
        self.finishes.extend(answered.map(|question| GuardMessage::Finish { question, releases: false }));
        self.release_unused_template();
    }

    /// Whether the clean disconnect has started.
    pub fn is_draining(&self) -> bool {
        self.draining_since.is_some()
    }

    fn shut_down(&mut self, now: Duration) {
        if self.draining_since.is_none() {
            self.events.push_back(GuardEvent::NodeShutsDown);
        }
        self.drain(now);
    }

    /// Whether the peer is a node. It is one if it has sent a response, or if a previous guard used the connection.
    pub fn is_node(&self) -> bool {
        self.has_answered || self.replacing_since.is_some()
    }

    /// Records the guard's run delay since its start. A node that made a callback meanwhile waited for the same time.
    pub fn add_run_delay(&mut self, total: Duration) {
        self.subscriptions.add_run_delay(total);
    }

    /// Takes the next event for the exporter.
    pub fn next_event(&mut self) -> Option<GuardEvent> {
        self.events.pop_front()
    }
}

#[cfg(test)]
mod tests;
