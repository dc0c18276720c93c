//! The guard's rules: what the node owes and is owed. Without I/O, and without a clock of its own.
//!
//! A node must not be left in the middle of a call or of a subscription, and it hangs up on (or aborts over) what breaks
//! the protocol. So every message of either side passes through here:
//!
//! - what the exporter sends is forwarded only if it is a well-formed part of the conversation; otherwise it is swallowed,
//!   and leave is taken. A call is never cancelled: a `Finish` before the answer is kept until the answer;
//! - what the node asks is answered by the guard, whether the exporter lives or not;
//! - a long poll tells when the node is shutting down: the exporter's, and the guard's own where there is none;
//! - a block template of the node's is called by one call at a time, and let go before the end;
//! - to take leave is to disconnect each subscription, one after the other, wait until its callback was released, and wait
//!   for the answer to each call.
//!
//! `on_node_message` and `on_exporter_message` take a message of either side into account, `own_calls` has the guard's own
//! calls, `templates` the life of a block template.

mod on_exporter_message;
mod on_node_message;
mod own_calls;
mod templates;

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use super::allow_list::Rejection;
use super::budget::Budget;
use super::events::{Event, SubscriptionIds};
use super::written::Own;
use templates::Template;

/// The guard's own numbers for questions and exports start here; the exporter counts from zero.
const OWN_NUMBERS: u32 = 0x7000_0000;
/// A guard that replaces a killed one starts here: that one's questions may still be answered.
const REPLACEMENT_NUMBERS: u32 = OWN_NUMBERS + (1 << 20);
/// Between attempts to unsubscribe while the node's thread is busy with another call.
const BUSY_RETRY_INTERVAL: Duration = Duration::from_millis(2);
/// Between attempts at a call that fails.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// Between the starts of two long polls, however fast the node answers: it does not wait at all while it reorganizes.
const MIN_POLL_INTERVAL: Duration = Duration::from_millis(50);
/// The same while there are subscriptions, which have to end within a shutdown of the node: 40 to 90 ms on regtest.
const MIN_SUBSCRIBED_POLL_INTERVAL: Duration = Duration::from_millis(10);
/// From the end of the exporter's long poll to the guard's own, if the exporter does not ask again. Shorter than a
/// shutdown of the node, too.
const TAKE_OVER: Duration = Duration::from_millis(10);
/// From the node's last message to the close: the thread that ran the last call is still putting its tools away.
const SETTLE: Duration = Duration::from_millis(20);
/// A guard that replaces a killed one says nothing before the node was silent for this long: the `destroy` of a
/// disconnect under way would have come. A second disconnect in the middle of it hangs the node.
const QUIET: Duration = Duration::from_millis(500);
/// But a node that never is silent is spoken to after this time.
const MAX_QUIET_WAIT: Duration = Duration::from_secs(5);
/// And the node is left when it was silent for this long, longer than a long poll: which calls the killed guard had passed
/// on is not known.
const SILENCE: Duration = Duration::from_secs(2);
/// Threads of the node that the exporter may have. It has five at most.
const MAX_THREADS: u32 = 16;
/// Rejected calls after which the connection ends. The exporter makes none.
const MAX_REJECTED: u32 = 16;
/// How long a peer is waited for that has not answered anything: no call can be running on a thread of its.
const MAX_HANDSHAKE_WAIT: Duration = Duration::from_secs(10);

/// What to do with a message of the node's.
#[derive(Debug, PartialEq)]
pub enum FromNode {
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

/// What to do with a message of the exporter's.
#[derive(Debug, PartialEq)]
pub enum FromExporter {
    /// Pass it on to the node.
    Forward,
    /// Not for the node, or not yet.
    Keep,
    /// Answer the call with nothing in the node's place.
    Answer(u32),
    /// Not permitted: answer the call with an error in the node's place.
    Reject(u32, Rejection),
    /// It would make the node drop the connection, for this reason: swallow it and take leave.
    Refuse(&'static str),
}

/// What a question is for.
#[derive(Debug)]
enum Purpose {
    /// Runs on the node's event loop: bootstrap, `construct`.
    Handshake,
    MakeThread {
        thread_map: u32,
    },
    WaitTipChanged(Option<Watched>),
    Subscribe {
        callback: u32,
        thread: u32,
        traces: bool,
        /// References to the callback that the node dropped before it answered.
        released: u32,
    },
    Disconnect {
        callback: u32,
    },
    CreateNewBlock,
    CallTemplate(u32),
    Other,
}

/// A question that the node was asked and that is not finished.
#[derive(Debug)]
struct Question {
    purpose: Purpose,
    /// The node's thread that runs it, of the exporter's calls.
    thread: Option<u32>,
    answered: bool,
    /// The capabilities that came with the answer.
    results: Vec<u32>,
    /// The exporter finished with it before the answer. The value says whether the capabilities of the answer go with it.
    finished: Option<bool>,
    asked_at: Duration,
}

/// What to long-poll, as the exporter's own call had it.
#[derive(Clone, Copy, Debug)]
struct Watched {
    mining: u32,
    timeout: f64,
}

/// How the node's thread for the long poll comes about.
#[derive(Debug)]
enum WatchThread {
    None,
    Asked,
    Made(u32),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum SubscriptionState {
    Live,
    Disconnected,
}

/// A callback object of the exporter's that the node may call.
#[derive(Debug)]
struct Subscription {
    ids: SubscriptionIds,
    /// References that the node has.
    references: u32,
    traces: bool,
    state: SubscriptionState,
}

/// The state of a connection.
pub struct ProtocolState {
    /// Questions to the node, the exporter's and the guard's.
    questions: HashMap<u32, Question>,
    /// The exporter's numbers of answered questions that need no `Finish`. It may have sent one before it had the answer.
    finished_by_node: HashSet<u32>,
    next_question: u32,
    next_thread: u32,
    /// The node's capabilities, with the references that the exporter has to each.
    exports: HashMap<u32, u32>,
    /// Those among them that are threads, which calls may pass to the node. No others are passed.
    threads: HashSet<u32>,
    /// Calls of `makeThread` by the exporter.
    threads_asked: u32,
    /// Calls of the exporter that were rejected.
    rejected: u32,
    subscriptions: Vec<Subscription>,
    templates: Vec<Template>,
    /// `Finish` and `Release` messages to send.
    finishes: VecDeque<Own>,
    events: VecDeque<Event<'static>>,
    budget: Budget,
    over_budget: bool,
    thread_map: Option<u32>,
    watched: Option<Watched>,
    watch_thread: WatchThread,
    /// The last that a long poll told.
    tip: Vec<u8>,
    /// When the guard's own long poll is due; never while one is under way.
    watch_at: Duration,
    disconnect_at: Duration,
    /// Since when leave is taken.
    leaving: Option<Duration>,
    /// Since when this guard stands in for one that was killed.
    replacing: Option<Duration>,
    heard_at: Duration,
    ever_answered: bool,
}

impl ProtocolState {
    /// A connection on which nothing was said yet.
    pub fn new(budget: Budget, now: Duration) -> Self {
        ProtocolState {
            questions: HashMap::new(),
            finished_by_node: HashSet::new(),
            next_question: OWN_NUMBERS,
            next_thread: OWN_NUMBERS,
            exports: HashMap::new(),
            threads: HashSet::new(),
            threads_asked: 0,
            rejected: 0,
            subscriptions: Vec::new(),
            templates: Vec::new(),
            finishes: VecDeque::new(),
            events: VecDeque::new(),
            budget,
            over_budget: false,
            thread_map: None,
            watched: None,
            watch_thread: WatchThread::None,
            tip: Vec::new(),
            watch_at: Duration::ZERO,
            disconnect_at: Duration::ZERO,
            leaving: None,
            replacing: None,
            heard_at: now,
            ever_answered: false,
        }
    }

    /// A connection whose guard was killed, with the subscriptions that it left: to take leave of the node.
    pub fn replacement(subscriptions: &[SubscriptionIds], now: Duration) -> Self {
        let inherited =
            |&ids| Subscription { ids, references: 1, traces: false, state: SubscriptionState::Live };
        ProtocolState {
            subscriptions: subscriptions.iter().map(inherited).collect(),
            next_question: REPLACEMENT_NUMBERS,
            next_thread: REPLACEMENT_NUMBERS,
            replacing: Some(now),
            ..ProtocolState::new(Budget::new(None), now)
        }
    }

    /// Whether a long poll is under way, the exporter's or the guard's.
    fn is_watched(&self) -> bool {
        self.questions.values().any(|it| matches!(it.purpose, Purpose::WaitTipChanged(_)))
    }

    fn insert(&mut self, number: u32, purpose: Purpose, thread: Option<u32>, now: Duration) {
        if matches!(purpose, Purpose::WaitTipChanged(_)) {
            self.watch_at = Duration::MAX;
        }
        let question =
            Question { purpose, thread, answered: false, results: Vec::new(), finished: None, asked_at: now };
        self.questions.insert(number, question);
    }

    /// Whether the guard needs a capability of the node's, so that the exporter's references are not released.
    fn needs(&self, export: u32) -> bool {
        let subscribed = |it: &Subscription| [it.ids.handler, it.ids.thread].contains(&export);
        let subscribing =
            |it: &Question| matches!(it.purpose, Purpose::Subscribe { thread, .. } if thread == export);
        self.thread_map == Some(export)
            || self.watched.is_some_and(|it| it.mining == export)
            || self.templates.iter().any(|it| it.export == export)
            || self.subscriptions.iter().any(subscribed)
            || self.questions.values().any(subscribing)
    }

    /// Whether the exporter's messages may be read. Not while the node answers a `disconnect` of the guard's: another call
    /// for the same subscription would run on the same thread in the middle of it, wait for a lock that it holds, and hang
    /// the node.
    pub fn may_hear_exporter(&self) -> bool {
        let disconnects = |(&number, question): (&u32, &Question)| {
            number >= OWN_NUMBERS && matches!(question.purpose, Purpose::Disconnect { .. })
        };
        self.leaving.is_none() && !self.questions.iter().any(disconnects)
    }

    /// The exporter is gone, or is as good as gone.
    pub fn leave(&mut self, now: Duration) {
        if self.leaving.is_some() {
            return;
        }
        self.leaving = Some(now);
        // The exporter finishes nothing any more, and until a subscription's call is finished the node holds its callback.
        for question in self.questions.values_mut() {
            question.finished.get_or_insert(false);
        }
        let answered = self.questions.extract_if(|_, it| it.answered);
        self.finishes.extend(answered.map(|(question, _)| Own::Finish { question, releases: false }));
        self.let_templates_go();
    }

    /// Whether leave is being taken.
    pub fn is_leaving(&self) -> bool {
        self.leaving.is_some()
    }

    fn shut_down(&mut self, now: Duration) {
        if self.leaving.is_none() {
            self.events.push_back(Event::NodeShutsDown);
        }
        self.leave(now);
    }

    /// Whether the peer is a node: it has answered something, or a guard before this one spoke to it.
    pub fn is_node(&self) -> bool {
        self.ever_answered || self.replacing.is_some()
    }

    /// The guard has waited for a CPU this long since it was started, and a node that called back with it.
    pub fn run_delay(&mut self, total: Duration) {
        self.budget.run_delay(total);
    }

    /// What the exporter has to be told.
    pub fn next_event(&mut self) -> Option<Event<'static>> {
        self.events.pop_front()
    }

    fn is_disconnecting(&self, of: impl Fn(u32) -> bool) -> bool {
        self.questions
            .values()
            .any(|it| matches!(it.purpose, Purpose::Disconnect { callback } if !it.answered && of(callback)))
    }

    /// Whether a replaced guard's last calls have shown whatever they do.
    fn has_settled(&self, now: Duration) -> bool {
        let Some(since) = self.replacing else { return true };
        now.saturating_sub(self.heard_at) >= QUIET || now.saturating_sub(since) >= MAX_QUIET_WAIT
    }
}

#[cfg(test)]
mod tests;
