//! The protocol rules of the guard (the process that relays messages between the node and the exporter), and the
//! state that the rules need: the calls, capabilities and subscriptions of a connection. The code in this module does
//! no I/O, and its callers pass the current time. In Cap'n Proto, a *question ID* identifies a call, and an *export ID*
//! identifies an object that one side of the connection hosts for the other side.
//!
//! A node can crash if a client disconnects in the middle of a call or with an active subscription. A node disconnects
//! or aborts if a client breaks Cap'n Proto's RPC protocol. Therefore the guard applies these rules to every message of
//! the node and of the exporter:
//!
//! - The guard forwards a message of the exporter only if it is valid in the current state of the connection. The guard
//!   drops an invalid message and starts a clean disconnect. The guard never cancels a call: if the exporter sends
//!   `Finish` before the node's response, the guard forwards the `Finish` only after the response.
//! - The guard responds to the node's calls, even if the exporter has exited.
//! - The node announces its shutdown in the response to a long poll (`waitTipChanged`, to which the node responds when
//!   the tip changes or a timeout passes). Therefore the guard makes a long poll if the exporter has no long poll under
//!   way.
//! - At most one call on a block template is under way at a time, and the guard releases the template before it closes
//!   the connection.
//! - To drain (disconnect cleanly) means: disconnect one subscription after the other, wait until the node has released
//!   each callback object, and wait for the response to each call.
//!
//! The state is divided into modules. `questions` is the only record of the calls to the node that are under way.
//! `capabilities` contains the exporter's references to the node's capabilities, `shutdown_watch` the long poll,
//! `template` the rules for a block template, and `subscriptions` the subscriptions. `on_node_message` and
//! `on_exporter_message` handle messages. `own_calls` makes the guard's own calls, and decides when the guard may close
//! the connection.

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
use super::events::GuardEvent;
use super::outgoing::GuardMessage;
use super::subscription_store::SubscriptionIds;
use super::trace_budget::TraceBudget;
use capabilities::NodeCapabilities;
use questions::{CallPurpose, Questions};
use shutdown_watch::ShutdownWatch;
use subscriptions::SubscriptionTable;
use template::Template;

/// First question ID of the guard's own calls, and first export ID of the guard's own objects. The exporter allocates
/// its IDs from zero, so the IDs of the guard and of the exporter differ.
const FIRST_GUARD_ID: u32 = 0x7000_0000;
/// First ID that a replacement guard allocates. The number differs from [`FIRST_GUARD_ID`], because late responses to
/// the killed guard's calls must not match a call of the replacement guard.
const REPLACEMENT_NUMBERS: u32 = FIRST_GUARD_ID + (1 << 20);
/// Interval between the guard's `disconnect` calls while the node's thread is busy with another call.
const BUSY_RETRY_INTERVAL: Duration = Duration::from_millis(2);
/// Interval after which the guard repeats one of its own calls that failed.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// The action that the relay (the guard's loop that reads and writes the sockets) takes for a message from the node.
#[derive(Debug, PartialEq)]
pub enum NodeMessageAction {
    /// Send an empty response to the callback, and send the callback to the exporter as an event.
    AnswerCallback,
    /// Respond to a call of `makeThread`. The numbers are the question ID of the call, and the export ID of the thread
    /// that the guard hosts.
    AnswerThread(u32, u32),
    /// Respond with an error that the method is not implemented. The number is the question ID of the call.
    AnswerUnimplemented(u32),
    /// Forward the message to the exporter.
    Forward,
    /// Do not forward the message, because the exporter does not need it.
    Keep,
}

/// The action that the relay (the guard's loop that reads and writes the sockets) takes for a message from the
/// exporter.
#[derive(Debug, PartialEq)]
pub enum ExporterMessageAction {
    /// Forward the message to the node.
    Forward,
    /// Do not forward the message, because the node does not need it, or because the guard sends it later.
    Keep,
    /// Do not forward the call, and send an empty response to the exporter. The number is the question ID of the call.
    Answer(u32),
    /// Do not forward the call, because it is not permitted, and send an error response to the exporter. The fields are
    /// the question ID of the call, and the reason.
    Reject(u32, Rejection),
    /// Drop the message and start the clean disconnect, because the message breaks the protocol. The text is the
    /// reason.
    Violation(&'static str),
}

impl From<&'static str> for ExporterMessageAction {
    fn from(reason: &'static str) -> Self {
        ExporterMessageAction::Violation(reason)
    }
}

impl From<capnp::Error> for ExporterMessageAction {
    fn from(_: capnp::Error) -> Self {
        ExporterMessageAction::Violation("invalid encoding")
    }
}

/// The protocol state of one connection: unfinished calls, the node's capabilities, the long polls, the block template
/// and the subscriptions. The state determines how the guard handles each message, and which messages the guard itself
/// sends.
#[derive(Default)]
pub struct ProtocolState {
    questions: Questions,
    capabilities: NodeCapabilities,
    shutdown_watch: ShutdownWatch,
    template: Option<Template>,
    subscriptions: SubscriptionTable,
    trace_budget: TraceBudget,
    /// Whether the UTXO cache trace has exceeded its time budget.
    over_budget: bool,
    /// Question ID of the guard's next call.
    next_question: u32,
    /// Export ID of the last thread object that the guard created for a `makeThread` call of the node.
    last_thread: u32,
    /// Number of `makeThread` calls of the exporter.
    threads_requested: u32,
    /// Number of calls of the exporter that were rejected.
    rejected: u32,
    /// `Finish` and `Release` messages that the guard has to send to the node.
    finishes: VecDeque<GuardMessage>,
    events: VecDeque<GuardEvent>,
    /// Time at which the clean disconnect started; `None` before the start.
    draining_since: Option<Duration>,
    /// Time at which this guard was started as a replacement; `None` if this guard is not a replacement.
    replacing_since: Option<Duration>,
    last_message_at: Duration,
    has_answered: bool,
}

impl ProtocolState {
    /// Creates the state of a new connection.
    pub fn new(budget: TraceBudget, now: Duration) -> Self {
        ProtocolState {
            trace_budget: budget,
            next_question: FIRST_GUARD_ID,
            last_thread: FIRST_GUARD_ID,
            last_message_at: now,
            ..ProtocolState::default()
        }
    }

    /// Creates the state of a replacement guard, with the subscriptions of the killed guard, which the replacement has
    /// to end.
    pub fn replacement(subscriptions: &[SubscriptionIds], now: Duration) -> Self {
        ProtocolState {
            subscriptions: SubscriptionTable::inherited(subscriptions),
            next_question: REPLACEMENT_NUMBERS,
            last_thread: REPLACEMENT_NUMBERS,
            replacing_since: Some(now),
            ..ProtocolState::new(TraceBudget::default(), now)
        }
    }

    /// Records that the guard sends a call to the node. For a call of the exporter, `thread` is the node's thread that
    /// runs the call; `None` for calls that run on the node's event loop, and for the guard's own calls.
    fn begin_call(&mut self, number: u32, purpose: CallPurpose, thread: Option<u32>, now: Duration) {
        match purpose {
            CallPurpose::Subscribe { callback, thread, traces } => {
                self.subscriptions.on_request(callback, thread, traces)
            }
            CallPurpose::CallTemplate { destroys: true } => {
                self.template.iter_mut().for_each(|template| template.destroyed = true)
            }
            _ => {}
        }
        self.questions.insert(number, purpose, thread, now);
    }

    /// Whether the guard needs this capability of the node for its long polls or for a clean disconnect. The guard does
    /// not forward the exporter's release of such a capability.
    fn is_pinned(&self, id: u32) -> bool {
        self.shutdown_watch.is_pinned(id)
            || self.template.as_ref().is_some_and(|template| template.export == id)
            || self.subscriptions.is_pinned(id)
    }

    /// Whether the guard reads the exporter's messages at present. The guard reads no messages of the exporter during
    /// the clean disconnect, or while the node handles a `disconnect` call of the guard. During that call, a call of
    /// the exporter for the same subscription would run on the same thread in the middle of the `disconnect`, wait for
    /// a lock that the `disconnect` holds, and hang the node.
    pub fn reads_exporter(&self) -> bool {
        let is_own_disconnect = |number, purpose: &CallPurpose| {
            number >= FIRST_GUARD_ID && matches!(purpose, CallPurpose::Disconnect { .. })
        };
        self.draining_since.is_none() && !self.questions.any_under_way(is_own_disconnect)
    }

    /// Starts the clean disconnect. The relay calls this method if the exporter has closed its connection, has broken
    /// the protocol, or does not read its socket. The clean disconnect also starts when the node announces its
    /// shutdown.
    pub fn drain(&mut self, now: Duration) {
        if self.draining_since.is_some() {
            return;
        }
        self.draining_since = Some(now);
        // The guard no longer reads `Finish` messages of the exporter, and therefore sends them itself. The node
        // releases the callback object of a subscription only after it has received the `Finish` for the call that
        // created the subscription.
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

    /// Whether the process at the other end of the node's socket is known to be a node: the process has sent a
    /// response, or this guard is a replacement for a guard that used the connection.
    pub fn is_node(&self) -> bool {
        self.has_answered || self.replacing_since.is_some()
    }

    /// Records the guard's run delay (time for which the guard waited for a CPU) since the guard's start. See
    /// [`TraceBudget::add_run_delay`].
    pub fn add_run_delay(&mut self, total: Duration) {
        self.trace_budget.add_run_delay(total);
    }

    /// The subscriptions that a replacement guard would have to end.
    pub fn active_subscriptions(&self) -> impl Iterator<Item = SubscriptionIds> + Clone {
        self.subscriptions.active()
    }

    /// Takes the next event for the exporter.
    pub fn next_event(&mut self) -> Option<GuardEvent> {
        self.events.pop_front()
    }
}

#[cfg(test)]
mod tests;
