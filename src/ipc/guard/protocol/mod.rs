//! The guard's rules: which calls are open on both sides. Without I/O, and without a clock of its own.
//!
//! A client must not disconnect from a node in the middle of a call or of a subscription. A node disconnects, or aborts, when a
//! client breaks the protocol. So every message of either side passes through here:
//!
//! - a message of the exporter is forwarded only if it is valid at this point of the protocol; otherwise it is dropped, and a
//!   clean disconnect starts. A call is never cancelled: a `Finish` before the answer is kept until the answer;
//! - the guard answers the node's calls, with or without an exporter;
//! - a long poll reports the node's shutdown: the exporter's, or the guard's own if the exporter has none;
//! - a block template of the node's has one call at a time, and is released before the close;
//! - to drain is to disconnect each subscription, one after the other, wait until its callback was released, and wait for the
//!   answer to each call.
//!
//! The state is in parts with methods and tests of their own: `questions` are the calls that the node has to answer,
//! `capabilities` those of the node's that the exporter has, `shutdown_watch` the long poll, `template` the life of a block template,
//! `subscriptions` the callbacks. `on_node_message` and `on_exporter_message` handle the messages of either side, `own_calls` has the guard's own calls and the end.

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

/// The guard's own numbers for questions and exports start here; the exporter counts from zero.
const OWN_NUMBERS: u32 = 0x7000_0000;
/// A guard that replaces a killed one starts here: that one's questions may still be answered.
const REPLACEMENT_NUMBERS: u32 = OWN_NUMBERS + (1 << 20);
/// Between attempts to unsubscribe while the node's thread is busy with another call.
const BUSY_RETRY_INTERVAL: Duration = Duration::from_millis(2);
/// Between attempts at a call that fails.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// How to handle a message of the node.
#[derive(Debug, PartialEq)]
pub enum NodeMessageAction {
    /// Answer the callback with nothing, and hand it on as an event.
    AnswerCallback,
    /// Answer the question, a `makeThread`, with the thread of the second number.
    AnswerThread(u32, u32),
    /// Answer the question that we have no such thing.
    AnswerUnimplemented(u32),
    /// Pass it on to the exporter.
    Forward,
    /// It was for the guard.
    Keep,
}

/// How to handle a message of the exporter.
#[derive(Debug, PartialEq)]
pub enum ExporterMessageAction {
    /// Pass it on to the node.
    Forward,
    /// Not for the node, or not yet.
    Keep,
    /// Answer the call with nothing in the node's place.
    Answer(u32),
    /// Not permitted: answer the call with an error in the node's place.
    Reject(u32, Rejection),
    /// It would make the node drop the connection, for this reason: drop the message and start to drain.
    Violation(&'static str),
}

/// The protocol's state on a connection.
pub struct ProtocolState {
    questions: Questions,
    capabilities: NodeCapabilities,
    shutdown_watch: ShutdownWatch,
    template: TemplateState,
    subscriptions: SubscriptionTable,
    /// The next number of a call of the guard's.
    next_question: u32,
    /// The last number of a thread that the guard gave the node.
    last_thread: u32,
    /// Calls of `makeThread` by the exporter.
    threads_requested: u32,
    /// Calls of the exporter that were rejected.
    rejected: u32,
    /// `Finish` and `Release` messages to send.
    finishes: VecDeque<GuardMessage>,
    events: VecDeque<GuardEvent>,
    /// When draining started.
    draining_since: Option<Duration>,
    /// When this guard replaced one that was killed.
    replacing_since: Option<Duration>,
    last_message_at: Duration,
    has_answered: bool,
}

impl ProtocolState {
    /// A connection without any message yet.
    pub fn new(budget: TraceBudget, now: Duration) -> Self {
        ProtocolState {
            questions: Questions::default(),
            capabilities: NodeCapabilities::default(),
            shutdown_watch: ShutdownWatch::default(),
            template: TemplateState::default(),
            subscriptions: SubscriptionTable::new(budget),
            next_question: OWN_NUMBERS,
            last_thread: OWN_NUMBERS,
            threads_requested: 0,
            rejected: 0,
            finishes: VecDeque::new(),
            events: VecDeque::new(),
            draining_since: None,
            replacing_since: None,
            last_message_at: now,
            has_answered: false,
        }
    }

    /// A connection whose guard was killed, with its subscriptions: to disconnect cleanly.
    pub fn replacement(subscriptions: &[SubscriptionIds], now: Duration) -> Self {
        ProtocolState {
            subscriptions: SubscriptionTable::inherited(subscriptions),
            next_question: REPLACEMENT_NUMBERS,
            last_thread: REPLACEMENT_NUMBERS,
            replacing_since: Some(now),
            ..ProtocolState::new(TraceBudget::new(None), now)
        }
    }

    /// A call is sent to the node, on this thread of its if it is the exporter's.
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

    /// Whether the guard needs a capability of the node's: then the exporter's references are not released.
    fn is_pinned(&self, id: u32) -> bool {
        self.shutdown_watch.is_pinned(id)
            || self.template.export() == Some(id)
            || self.subscriptions.is_pinned(id)
    }

    /// Releases the block template if the exporter does not use it any more.
    fn release_unused_template(&mut self) {
        let is_used = |export| self.draining_since.is_none() && self.capabilities.has(export);
        if let Some(export) = self.template.take_unused(is_used) {
            self.capabilities.remove(export);
            self.finishes.push_back(GuardMessage::Release { export, count: 1 });
        }
    }

    /// Whether the exporter's messages may be read. Not while the node answers a `disconnect` of the guard's: another call
    /// for the same subscription would run on the same thread in the middle of it, wait for a lock that it holds, and hang
    /// the node.
    pub fn reads_exporter(&self) -> bool {
        self.draining_since.is_none() && !self.subscriptions.has_own_disconnect()
    }

    /// The exporter is gone, or broke the protocol: starts the clean disconnect.
    pub fn drain(&mut self, now: Duration) {
        if self.draining_since.is_some() {
            return;
        }
        self.draining_since = Some(now);
        // The exporter finishes nothing any more, and until a subscription's call is finished the node holds its callback.
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

    /// Whether the peer is a node: it has answered something, or a guard before this one used the connection.
    pub fn is_node(&self) -> bool {
        self.has_answered || self.replacing_since.is_some()
    }

    /// The guard has waited for a CPU this long since it was started, and a node that called back with it.
    pub fn add_run_delay(&mut self, total: Duration) {
        self.subscriptions.add_run_delay(total);
    }

    /// The next event for the exporter.
    pub fn next_event(&mut self) -> Option<GuardEvent> {
        self.events.pop_front()
    }
}

#[cfg(test)]
mod tests;
