//! The guard's rules: what the node owes and is owed. Without I/O, and without a clock of its own.
//!
//! A node must not be left in the middle of a call or of a subscription, and it hangs up on (or aborts over) what breaks
//! the protocol. So every message of either side passes through here:
//!
//! - what the exporter sends is forwarded only if it is a well-formed part of the conversation; otherwise it is swallowed,
//!   and leave is taken. A call is never cancelled: a `Finish` before the answer is kept until the answer;
//! - what the node asks is answered by the guard, whether the exporter lives or not;
//! - a long poll tells when the node is shutting down: the exporter's, and the guard's own where there is none;
//! - to take leave is to disconnect each subscription, one after the other, wait until its callback was released, and wait
//!   for the answer to each call.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use super::budget::Budget;
use super::events::{Event, SubscriptionIds};
use super::message::{self, Call, Capabilities, Message, Outcome, Own, Return, Target};
use crate::schema::common_capnp::block_ref;
use crate::schema::mining_capnp::mining;

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
    Other,
}

/// A question that the node was asked and that is not finished.
#[derive(Debug)]
struct Question {
    purpose: Purpose,
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
pub struct Ledger {
    /// Questions to the node, the exporter's and the guard's.
    questions: HashMap<u32, Question>,
    next_question: u32,
    next_thread: u32,
    /// The node's capabilities, with the references that the exporter has to each.
    exports: HashMap<u32, u32>,
    subscriptions: Vec<Subscription>,
    /// `Finish` messages to send.
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

impl Ledger {
    /// A connection on which nothing was said yet.
    pub fn new(budget: Budget, now: Duration) -> Self {
        Ledger {
            questions: HashMap::new(),
            next_question: OWN_NUMBERS,
            next_thread: OWN_NUMBERS,
            exports: HashMap::new(),
            subscriptions: Vec::new(),
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
        Ledger {
            subscriptions: subscriptions.iter().map(inherited).collect(),
            next_question: REPLACEMENT_NUMBERS,
            next_thread: REPLACEMENT_NUMBERS,
            replacing: Some(now),
            ..Ledger::new(Budget::new(None), now)
        }
    }

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
        let (finished, asked_at) = (question.finished, question.asked_at);
        let purpose = std::mem::replace(&mut question.purpose, Purpose::Other);
        let hosted = match &answer.outcome {
            Outcome::Results(Capabilities { hosted, .. }, _) => &hosted[..],
            Outcome::Exception(_) | Outcome::Other => &[],
        };
        if own || finished.is_some() || answer.no_finish_needed {
            self.questions.remove(&number);
        } else {
            question.results = hosted.to_vec();
        }
        if (own || finished.is_some()) && !answer.no_finish_needed {
            let releases = finished.unwrap_or(false);
            self.finishes.push_back(Own::Finish { question: number, releases });
        }
        if !own && finished != Some(true) {
            self.hold(hosted);
        }
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
            Purpose::Handshake | Purpose::MakeThread { .. } | Purpose::Other => {}
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
            Message::Bootstrap { question } => self.ask(*question, Purpose::Handshake, now),
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
        let purpose = match (call.method, call.target) {
            (message::CONSTRUCT, _) => Purpose::Handshake,
            (message::MAKE_THREAD, Target::Export(thread_map)) => Purpose::MakeThread { thread_map },
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
            _ => Purpose::Other,
        };
        if let Purpose::Disconnect { callback } = purpose
            && self.is_disconnecting(|it| it == callback)
        {
            return Ok(FromExporter::Answer(call.question));
        }
        Ok(self.ask(call.question, purpose, now))
    }

    /// A question of the exporter's.
    fn ask(&mut self, number: u32, purpose: Purpose, now: Duration) -> FromExporter {
        if number >= OWN_NUMBERS || self.questions.contains_key(&number) {
            return FromExporter::Refuse("it uses a question's number twice");
        }
        self.insert(number, purpose, now);
        FromExporter::Forward
    }

    /// Whether a long poll is under way, the exporter's or the guard's.
    fn is_watched(&self) -> bool {
        self.questions.values().any(|it| matches!(it.purpose, Purpose::WaitTipChanged(_)))
    }

    fn insert(&mut self, number: u32, purpose: Purpose, now: Duration) {
        if matches!(purpose, Purpose::WaitTipChanged(_)) {
            self.watch_at = Duration::MAX;
        }
        let question =
            Question { purpose, answered: false, results: Vec::new(), finished: None, asked_at: now };
        self.questions.insert(number, question);
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
            None => FromExporter::Refuse("it finishes a question that it did not ask"),
        }
    }

    /// Whether the guard needs a capability of the node's, so that the exporter's references are not released.
    fn needs(&self, export: u32) -> bool {
        let subscribed = |it: &Subscription| [it.ids.handler, it.ids.thread].contains(&export);
        let subscribing =
            |it: &Question| matches!(it.purpose, Purpose::Subscribe { thread, .. } if thread == export);
        self.thread_map == Some(export)
            || self.watched.is_some_and(|it| it.mining == export)
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

    /// A `Finish` that has to be sent before anything else.
    pub fn next_finish(&mut self) -> Option<Own> {
        self.finishes.pop_front()
    }

    /// What has to be said to the node.
    pub fn next_call(&mut self, now: Duration) -> Option<Own> {
        if self.leaving.is_none() && self.finishes.is_empty() && now < self.watch_at && !self.over_budget {
            return None;
        }
        self.next_finish().or_else(|| self.next_disconnect(now)).or_else(|| self.next_watch(now))
    }

    fn next_disconnect(&mut self, now: Duration) -> Option<Own> {
        if !(self.leaving.is_some() || self.over_budget)
            || now < self.disconnect_at
            || !self.has_settled(now)
            || self.is_disconnecting(|_| true)
        {
            return None;
        }
        let due =
            |it: &&Subscription| it.state == SubscriptionState::Live && (self.leaving.is_some() || it.traces);
        let SubscriptionIds { callback, handler, thread } = self.subscriptions.iter().find(due)?.ids;
        let question = self.own_question(Purpose::Disconnect { callback }, now);
        Some(Own::Disconnect { question, handler, thread })
    }

    fn next_watch(&mut self, now: Duration) -> Option<Own> {
        if self.leaving.is_some() || now < self.watch_at {
            return None;
        }
        let Watched { mining, timeout } = self.watched?;
        match self.watch_thread {
            WatchThread::None => {
                let thread_map = self.thread_map?;
                self.watch_thread = WatchThread::Asked;
                let question = self.own_question(Purpose::MakeThread { thread_map }, now);
                Some(Own::MakeThread { question, thread_map })
            }
            WatchThread::Asked => None,
            WatchThread::Made(thread) => {
                let question = self.own_question(Purpose::WaitTipChanged(None), now);
                Some(Own::WaitTipChanged { question, mining, thread, tip: self.tip.clone(), timeout })
            }
        }
    }

    fn own_question(&mut self, purpose: Purpose, now: Duration) -> u32 {
        let number = self.next_question;
        self.next_question = number.checked_add(1).unwrap_or(OWN_NUMBERS);
        self.insert(number, purpose, now);
        number
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

    /// When something is due that no message announces.
    pub fn wait_at_most(&self, now: Duration) -> Option<Duration> {
        if self.leaving.is_some() {
            let waits_for_node = self.questions.values().any(|it| !it.answered);
            return Some(if waits_for_node { RETRY_INTERVAL } else { BUSY_RETRY_INTERVAL });
        }
        let can_watch = match self.watch_thread {
            WatchThread::None => self.thread_map.is_some(),
            WatchThread::Asked => false,
            WatchThread::Made(_) => true,
        };
        let watch =
            self.watched.filter(|_| can_watch && self.watch_at < Duration::MAX).map(|_| self.watch_at);
        let traces = |it: &Subscription| it.traces && it.state == SubscriptionState::Live;
        let disconnects =
            self.over_budget && self.subscriptions.iter().any(traces) && !self.is_disconnecting(|_| true);
        let disconnect = disconnects.then_some(self.disconnect_at);
        [watch, disconnect].into_iter().flatten().min().map(|at| at.saturating_sub(now))
    }

    /// Whether the connection to the node may be closed.
    pub fn may_close(&self, now: Duration) -> bool {
        let Some(since) = self.leaving else { return false };
        let silent = now.saturating_sub(self.heard_at);
        let unanswered = self.questions.values().any(|it| !it.answered);
        let no_node = !self.ever_answered && now.saturating_sub(since) >= MAX_HANDSHAKE_WAIT;
        let unanswered = unanswered && !no_node;
        // Whether the callback of a replaced guard's subscription was released before, nobody has heard.
        let over = match self.replacing {
            Some(_) => self.subscriptions.iter().all(|it| it.state == SubscriptionState::Disconnected),
            None => self.subscriptions.is_empty(),
        };
        over && !unanswered
            && self.finishes.is_empty()
            && self.has_settled(now)
            && silent >= if self.replacing.is_some() { SILENCE } else { SETTLE }
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

#[cfg(test)]
mod tests;
