//! The guard's own loop: node, exporter, and the rules for taking leave.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use capnp::capability::FromClientHook;
use capnp::message::ReaderOptions;
use capnp::serialize::{read_message_from_flat_slice_no_alloc, write_message_to_words};
use capnp::traits::{HasTypeId, ImbueMut};
use capnp_rpc::rpc_capnp::{call, cap_descriptor, message, message_target, payload, return_};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::time::{ClockId, clock_gettime};

use super::budget::Budget;
use super::event::{Event, Held, Notice};
use super::frame::{Frames, LARGEST, Outgoing};
use crate::ipc::{ChainEvent, CoinEvent};
use crate::priority;
use crate::schema::chain_capnp::{chain, chain_notifications};
use crate::schema::handler_capnp::handler;
use crate::schema::tracing_capnp::{tracing, utxo_cache_trace};

/// Events that may wait for the exporter, in bytes: half a million small ones.
const EVENTS: usize = 16 << 20;
/// Beyond this a block is announced without its contents, so that it can still be counted.
const CONTENTS: usize = 8 << 20;
/// So much is kept for a node that does not read, in bytes.
const UNREAD: usize = 1 << 20;
/// Of so many questions at once the node's word that they are finished is kept from the exporter, which would ignore it.
const SPARED: usize = 1024;
/// Events are collected for so long before they are handed on: a write for each would slow the next answer.
const COLLECT: Duration = Duration::from_millis(1);
/// Callbacks that follow each other closer than this are a burst: a block's coins, or transactions sent over RPC. The next
/// is then looked for so long before going to sleep, because waking up takes longer than answering.
const BURST: Duration = Duration::from_micros(300);
/// Whoever is given way to and runs for so long is neither the node nor the exporter taking events.
const TAKEN: Duration = Duration::from_micros(80);
/// Then the next callbacks are slept for, for so long: who wakes up comes before whoever runs, who gave way after them.
const CROWDED: Duration = Duration::from_millis(1);
/// Between attempts to unsubscribe on a thread that is busy.
const RETRY: Duration = Duration::from_millis(2);
/// For the answers of a peer that has not shown to be a node with callbacks. Such a node is waited for without end.
const UNKNOWN: Duration = Duration::from_secs(1);
/// Longer than a long poll.
const SILENCE: Duration = Duration::from_secs(2);
/// Our own questions, far from the exporter's, which count from zero.
const OUR_QUESTIONS: u32 = 0x7000_0000;

/// The ordinals of the methods that make and end a subscription.
const HANDLE_NOTIFICATIONS: (u64, u16) = (chain::Client::TYPE_ID, 39);
const TRACE_UTXO_CACHE: (u64, u16) = (tracing::Client::TYPE_ID, 0);
const DISCONNECT: (u64, u16) = (handler::Client::TYPE_ID, 1);

/// Runs a guard: the node on descriptor 0, the exporter on 1, events to `events`. Returns when it has taken leave.
/// `held` is what a guard that was killed has left behind.
pub fn main(events: OwnedFd, trace_budget: Option<Duration>, held: &[Held]) -> anyhow::Result<()> {
    // Whoever wants us gone tells the exporter; we end after it.
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGUSR2]
        .into_iter()
        .collect::<SigSet>()
        .thread_block()?;
    // When memory runs out, anything but us: the lowest score that we may have. Without a privilege that is what the
    // service was given, which is below the exporter's own.
    let _ = (-10..=0)
        .find(|hundreds| std::fs::write("/proc/self/oom_score_adj", (hundreds * 100).to_string()).is_ok());
    priority::answer_soon();
    let node = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let exporter = UnixStream::from(io::stdout().as_fd().try_clone_to_owned()?);
    // 0 and 1 stay open as duplicates: shutting down, not closing, is what tells the others.
    Ok(relay(node, exporter, events.into(), trace_budget, held)?)
}

/// Relays until the node is gone, or the exporter is and leave of the node was taken. An error says what was wrong with
/// the node's messages.
pub fn relay(
    node: UnixStream,
    exporter: UnixStream,
    events: UnixStream,
    trace_budget: Option<Duration>,
    held: &[Held],
) -> io::Result<()> {
    for socket in [&node, &exporter, &events] {
        socket.set_nonblocking(true)?;
    }
    let mut relay = Relay::new(node, exporter, events, Budget::new(trace_budget));
    if !held.is_empty() {
        relay.inherit(held);
    }
    let ended = relay.run();
    relay.close();
    ended
}

/// A callback object of the exporter's that the node may call.
struct Subscription {
    /// What it is, and how often the node holds it.
    held: Held,
    times: u32,
    traces: bool,
    disconnected: bool,
}

/// A subscribing call that the node has not answered.
struct Subscribing {
    callback: u32,
    thread: u32,
    traces: bool,
    /// The node let go of the callback before it answered: it refused.
    released: u32,
}

struct Relay {
    node: UnixStream,
    exporter: UnixStream,
    events: UnixStream,
    from_node: Frames,
    from_exporter: Frames,
    to_node: Outgoing,
    to_exporter: Outgoing,
    to_events: Outgoing,
    events_blocked: bool,
    dropped: u64,
    answer: Answer,
    /// The node's questions that we answered, and that it may still finish.
    answered: HashSet<u32>,
    /// When the last callback arrived, and whether closely after the one before.
    called: Duration,
    burst: bool,
    /// Until when others are taken to need the processor.
    crowded_until: Duration,
    /// Questions, the exporter's and ours, that the node has not answered.
    asked: HashSet<u32>,
    subscribing: HashMap<u32, Subscribing>,
    disconnecting: HashMap<u32, u32>,
    subscriptions: Vec<Subscription>,
    /// Of the UTXO cache trace, and whether the exporter was told that it is exceeded.
    budget: Budget,
    over_budget: bool,
    /// Calls of Chain or Tracing that the node has not answered, and whether it ever answered one: then it is a node
    /// that aborts when it is left during a call.
    telling: HashSet<u32>,
    calls_back: bool,
    /// The exporter is gone, since when.
    leaving: bool,
    left_at: Option<Duration>,
    next_question: u32,
    /// When the node last said something, and how long it has to be silent before it is left.
    heard: Duration,
    silence: Duration,
}

impl Relay {
    fn new(node: UnixStream, exporter: UnixStream, events: UnixStream, budget: Budget) -> Self {
        Relay {
            node,
            exporter,
            events,
            from_node: Frames::new(),
            from_exporter: Frames::new(),
            to_node: Outgoing::default(),
            to_exporter: Outgoing::default(),
            to_events: Outgoing::default(),
            events_blocked: false,
            dropped: 0,
            answer: Answer::new(),
            answered: HashSet::new(),
            called: Duration::ZERO,
            burst: false,
            crowded_until: Duration::ZERO,
            asked: HashSet::new(),
            subscribing: HashMap::new(),
            disconnecting: HashMap::new(),
            subscriptions: Vec::new(),
            budget,
            over_budget: false,
            telling: HashSet::new(),
            calls_back: false,
            leaving: false,
            left_at: None,
            next_question: OUR_QUESTIONS,
            heard: now(),
            silence: Duration::ZERO,
        }
    }

    /// Takes the place of a guard that was killed. Which calls it had passed on is not known: what the node still has to
    /// answer, long polls mostly, it has answered when it is silent for long.
    fn inherit(&mut self, held: &[Held]) {
        let inherited = |&held| Subscription { held, times: 1, traces: false, disconnected: false };
        self.subscriptions.extend(held.iter().map(inherited));
        self.calls_back = true;
        self.silence = SILENCE;
        self.next_question += 1 << 20;
    }

    fn run(&mut self) -> io::Result<()> {
        loop {
            if self.leaving && self.take_leave()? {
                return Ok(());
            }
            let (node, exporter) = self.wait()?;
            if !node.is_empty() && !self.node_speaks(node)? {
                return Ok(());
            }
            if !self.linger()? {
                return Ok(());
            }
            if !exporter.is_empty() && !self.leaving && self.exporter_speaks(exporter).is_err() {
                self.leaving = true;
            }
            if node.is_empty() && !self.to_events.is_empty() && !self.events_blocked {
                self.flush_events();
            }
        }
    }

    /// In a burst of callbacks, answers them for as long as events may be collected; `false` when the node is gone. Gives
    /// way to whatever else wants the processor.
    fn linger(&mut self) -> io::Result<bool> {
        let mut at = now();
        let at_most = at + COLLECT;
        while self.burst && at >= self.crowded_until && at < at_most.min(self.called + BURST) {
            if !self.node_speaks(PollFlags::POLLIN)? {
                return Ok(false);
            }
            let gave_way = now();
            std::thread::yield_now();
            at = now();
            if at - gave_way > TAKEN {
                self.crowded_until = at + CROWDED;
            }
        }
        Ok(true)
    }

    /// Waits for either side; with events to hand on, only for a moment.
    fn wait(&mut self) -> io::Result<(PollFlags, PollFlags)> {
        let interest = |pending: &Outgoing| {
            let mut interest = PollFlags::empty();
            interest.set(PollFlags::POLLIN, self.node_reads());
            interest.set(PollFlags::POLLOUT, !pending.is_empty());
            interest
        };
        let mut sockets = Vec::with_capacity(3);
        sockets.push(PollFd::new(self.node.as_fd(), interest(&self.to_node)));
        let hears_exporter = self.hears_exporter();
        if hears_exporter {
            sockets.push(PollFd::new(self.exporter.as_fd(), interest(&self.to_exporter)));
        }
        if !self.leaving && self.events_blocked {
            sockets.push(PollFd::new(self.events.as_fd(), PollFlags::POLLOUT));
        }
        let at_most = match (self.leaving, !self.to_events.is_empty() && !self.events_blocked) {
            (true, _) => Some(RETRY),
            (false, true) => Some(COLLECT),
            (false, false) => None,
        };
        let timeout = at_most.map_or(PollTimeout::NONE, |time| PollTimeout::try_from(time).expect("short"));
        match poll(&mut sockets, timeout) {
            Err(nix::errno::Errno::EINTR) => return Ok((PollFlags::empty(), PollFlags::empty())),
            result => result?,
        };
        let ready = |at: usize| sockets.get(at).and_then(PollFd::revents).unwrap_or(PollFlags::empty());
        let exporter = if hears_exporter { ready(1) } else { PollFlags::empty() };
        let (node, events) = (ready(0), ready(1 + usize::from(hears_exporter)));
        if !events.is_empty() {
            self.events_blocked = false;
        }
        Ok((node, exporter))
    }

    /// Not while the node answers our own `disconnect`: another one of the same handler, from the exporter, would run on the
    /// same thread in the middle of the first, wait for a lock that this one holds, and hang the node.
    fn hears_exporter(&self) -> bool {
        !self.leaving && self.disconnecting.keys().all(|&question| question < OUR_QUESTIONS)
    }

    /// Whether the node takes what it is sent. If it does not, more is neither heard from it nor passed on to it.
    fn node_reads(&self) -> bool {
        self.to_node.len() < UNREAD
    }

    /// `false` when the node is gone.
    fn node_speaks(&mut self, ready: PollFlags) -> io::Result<bool> {
        let at = now();
        self.to_node.flush(&self.node)?;
        if !self.node_reads()
            || !ready.intersects(PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR)
        {
            return Ok(true);
        }
        let mut frames = std::mem::replace(&mut self.from_node, Frames::empty());
        let open = frames.fill(&self.node)?;
        while let Some(frame) = frames.next()? {
            self.heard = at;
            self.node_sent(frame, at)?;
        }
        self.from_node = frames;
        Ok(open)
    }

    /// One message of the node's: a callback is answered, anything else passed on.
    fn node_sent(&mut self, frame: &[u8], at: Duration) -> io::Result<()> {
        let message = read(frame)?;
        match message.get_root::<message::Reader>().and_then(|root| Ok(root.which()?)).map_err(wrong)? {
            message::Call(call) => {
                let call = call.map_err(wrong)?;
                let (interface, question) = (call.get_interface_id(), call.get_question_id());
                if [chain_notifications::Client::TYPE_ID, utxo_cache_trace::Client::TYPE_ID]
                    .contains(&interface)
                {
                    self.to_node.send(&self.node, self.answer.to(question))?;
                    let kept = now() - at;
                    if self.answered.len() < SPARED {
                        self.answered.insert(question);
                    }
                    self.burst = at - self.called < BURST;
                    self.called = at;
                    self.hand_on(call, at, kept);
                    return self.watch_budget(interface, at);
                }
                // A number that is used again was finished without a word.
                self.answered.remove(&question);
            }
            message::Finish(finish) => {
                let ours = self.answered.remove(&finish.map_err(wrong)?.get_question_id());
                if ours {
                    return Ok(());
                }
            }
            message::Return(answer) => {
                let answer = answer.map_err(wrong)?;
                self.node_answered(answer).map_err(wrong)?;
                if answer.get_answer_id() >= OUR_QUESTIONS {
                    return Ok(());
                }
            }
            message::Release(release) => {
                let release = release.map_err(wrong)?;
                self.released(release.get_id(), release.get_reference_count());
            }
            _ => {}
        }
        if !self.leaving {
            let stuck = self.to_exporter.len() > LARGEST;
            self.leaving = stuck || self.to_exporter.send(&self.exporter, frame).is_err();
        }
        Ok(())
    }

    fn node_answered(&mut self, answer: return_::Reader) -> capnp::Result<()> {
        let question = answer.get_answer_id();
        self.asked.remove(&question);
        let subscribing = self.subscribing.remove(&question);
        let disconnecting = self.disconnecting.remove(&question);
        let telling = self.telling.remove(&question);
        let return_::Results(results) = answer.which()? else { return Ok(()) };
        self.calls_back |= telling;
        if let Some(callback) = disconnecting {
            self.subscriptions
                .iter_mut()
                .filter(|it| it.held.callback == callback)
                .for_each(|it| it.disconnected = true);
        }
        if let Some(Subscribing { callback, thread, traces, released }) = subscribing
            && let Some(handler) = capabilities(results?)?.hosted.first()
        {
            let held = Held { callback, handler: *handler, thread };
            let times = 1u32.saturating_sub(released);
            self.subscriptions.push(Subscription { held, times, traces, disconnected: false });
            self.tell(Event::Held(held));
        }
        Ok(())
    }

    fn released(&mut self, export: u32, count: u32) {
        self.subscribing.values_mut().filter(|it| it.callback == export).for_each(|it| it.released += count);
        self.subscriptions
            .iter_mut()
            .filter(|it| it.held.callback == export)
            .for_each(|it| it.times = it.times.saturating_sub(count));
        let before = self.subscriptions.len();
        self.subscriptions.retain(|it| it.times > 0);
        if self.subscriptions.len() < before {
            self.tell(Event::Released(export));
        }
    }

    /// Tells the exporter what is no callback, at once.
    fn tell(&mut self, event: Event) {
        let notice = Notice { event, at: now(), kept: Duration::ZERO };
        self.to_events.queue(|queue| notice.encode(queue));
        if !self.events_blocked {
            self.flush_events();
        }
    }

    fn exporter_speaks(&mut self, ready: PollFlags) -> io::Result<()> {
        if ready.contains(PollFlags::POLLOUT) {
            self.to_exporter.flush(&self.exporter)?;
        }
        if !ready.intersects(PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR) {
            return Ok(());
        }
        let mut frames = std::mem::replace(&mut self.from_exporter, Frames::empty());
        let open = frames.fill(&self.exporter)?;
        while let Some(frame) = frames.next()? {
            self.exporter_sent(frame)?;
            // An error here would be the node's, and the node is looked at next.
            let _ = self.to_node.send(&self.node, frame);
        }
        self.from_exporter = frames;
        if open { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }

    /// Remembers what of a message of the exporter's has to be ended when it is gone.
    fn exporter_sent(&mut self, frame: &[u8]) -> io::Result<()> {
        let message = read(frame)?;
        match message.get_root::<message::Reader>().and_then(|root| Ok(root.which()?)).map_err(wrong)? {
            message::Bootstrap(bootstrap) => {
                self.asked.insert(bootstrap.map_err(wrong)?.get_question_id());
            }
            message::Call(call) => self.exporter_calls(call.map_err(wrong)?).map_err(wrong)?,
            _ => {}
        }
        Ok(())
    }

    fn exporter_calls(&mut self, call: call::Reader) -> capnp::Result<()> {
        let question = call.get_question_id();
        self.asked.insert(question);
        let method = (call.get_interface_id(), call.get_method_id());
        if [HANDLE_NOTIFICATIONS.0, TRACE_UTXO_CACHE.0].contains(&method.0) {
            self.telling.insert(question);
        }
        if [HANDLE_NOTIFICATIONS, TRACE_UTXO_CACHE].contains(&method) {
            let capabilities = capabilities(call.get_params()?)?;
            if let (Some(&callback), Some(&thread)) =
                (capabilities.hosted.first(), capabilities.imported.first())
            {
                let traces = method == TRACE_UTXO_CACHE;
                self.subscribing.insert(question, Subscribing { callback, thread, traces, released: 0 });
            }
        } else if method == DISCONNECT
            && let message_target::ImportedCap(handler) = call.get_target()?.which()?
            && let Some(subscription) = self.subscriptions.iter().find(|it| it.held.handler == handler)
        {
            self.disconnecting.insert(question, subscription.held.callback);
        }
        Ok(())
    }

    /// Gives the trace up when the node waits too long for it. Not left to the exporter, which may hang.
    fn watch_budget(&mut self, interface: u64, at: Duration) -> io::Result<()> {
        if interface != utxo_cache_trace::Client::TYPE_ID || !(self.budget.call(at) || self.over_budget) {
            return Ok(());
        }
        if !self.over_budget {
            self.over_budget = true;
            self.tell(Event::OverBudget);
        }
        // Again at the next call, should the thread be busy now.
        self.disconnect(|subscription| subscription.traces)
    }

    /// Disconnects a subscription, unless one is being disconnected already.
    fn disconnect(&mut self, which: impl Fn(&Subscription) -> bool) -> io::Result<()> {
        if self.disconnecting.is_empty()
            && let Some(subscription) = self.subscriptions.iter().find(|it| !it.disconnected && which(it))
        {
            let question = self.next_question;
            self.next_question += 1;
            let call = disconnect_call(question, subscription.held);
            self.disconnecting.insert(question, subscription.held.callback);
            self.asked.insert(question);
            self.to_node.send(&self.node, &call)?;
        }
        Ok(())
    }

    /// The exporter is gone: ends one thing after the other; `true` when nothing is left to end.
    fn take_leave(&mut self) -> io::Result<bool> {
        self.disconnect(|_| true)?;
        let left_at = *self.left_at.get_or_insert_with(now);
        let patient = self.calls_back || now() - left_at < UNKNOWN;
        let silent = now() - self.heard >= self.silence;
        let answered = self.asked.is_empty() && self.to_node.is_empty() && silent;
        Ok(self.subscriptions.is_empty() && self.subscribing.is_empty() && (answered || !patient))
    }

    /// Tells the exporter of a callback that was answered.
    fn hand_on(&mut self, call: call::Reader, at: Duration, kept: Duration) {
        if self.leaving {
            return;
        }
        let queued = self.to_events.len();
        match event(call, queued < CONTENTS) {
            Ok(None) => {}
            Ok(Some(event)) if queued < EVENTS => {
                if self.dropped > 0 {
                    let event = Event::Dropped(std::mem::take(&mut self.dropped));
                    self.to_events.queue(|queue| Notice { event, at, kept: Duration::ZERO }.encode(queue));
                }
                self.to_events.queue(|queue| Notice { event, at, kept }.encode(queue));
            }
            _ => self.dropped += 1,
        }
        if self.to_events.len() > super::frame::KEPT && !self.events_blocked {
            self.flush_events();
        }
    }

    fn flush_events(&mut self) {
        // Without a reader there is nothing to hand on; the exporter's other socket says that it is gone.
        if self.to_events.flush(&self.events).is_err() {
            self.to_events = Outgoing::default();
        }
        self.events_blocked = !self.to_events.is_empty();
    }

    /// Hands on the last events, and closes.
    fn close(&mut self) {
        let _ = self.node.shutdown(std::net::Shutdown::Both);
        let _ = self.events.set_nonblocking(false);
        let _ = self.events.set_write_timeout(Some(Duration::from_secs(1)));
        let _ = self.to_events.flush(&self.events);
        let _ = self.exporter.shutdown(std::net::Shutdown::Both);
    }
}

/// What the exporter is told of a callback; nothing of `destroy`.
fn event(call: call::Reader, with_contents: bool) -> capnp::Result<Option<Event>> {
    let content = call.get_params()?.get_content();
    let chain = call.get_interface_id() == chain_notifications::Client::TYPE_ID;
    Ok(Some(match (chain, call.get_method_id()) {
        (true, 1) => Event::Chain(ChainEvent::AddedToMempool),
        (true, 2) => {
            let params: chain_notifications::transaction_removed_from_mempool_params::Reader =
                content.get_as()?;
            Event::Chain(ChainEvent::RemovedFromMempool(params.get_reason()))
        }
        (true, 3) => {
            let params: chain_notifications::block_connected_params::Reader = content.get_as()?;
            let block = params.get_block()?;
            Event::Chain(ChainEvent::BlockConnected {
                height: block.get_height(),
                historical: params.get_role()?.get_historical(),
                data: if with_contents { Some(block.get_data()?.to_vec()) } else { None },
            })
        }
        (true, 4) => {
            let params: chain_notifications::block_disconnected_params::Reader = content.get_as()?;
            Event::Chain(ChainEvent::BlockDisconnected { height: params.get_block()?.get_height() })
        }
        (true, 5) => Event::Chain(ChainEvent::UpdatedTip),
        (true, 6) => Event::Chain(ChainEvent::Flushed),
        (false, method @ 1..=3) => {
            // add, spend and uncache have the same parameters.
            let params: utxo_cache_trace::add_params::Reader = content.get_as()?;
            let value = params.get_utxo_info()?.get_value();
            Event::Coin(match method {
                1 => CoinEvent::Added(value),
                2 => CoinEvent::Spent(value),
                _ => CoinEvent::Uncached(value),
            })
        }
        _ => return Ok(None),
    }))
}

/// The capabilities of a message: those that its sender hosts, and those that its receiver does.
#[derive(Default)]
struct Capabilities {
    hosted: Vec<u32>,
    imported: Vec<u32>,
}

fn capabilities(payload: payload::Reader) -> capnp::Result<Capabilities> {
    let mut capabilities = Capabilities::default();
    for descriptor in payload.get_cap_table()? {
        match descriptor.which()? {
            cap_descriptor::SenderHosted(id) | cap_descriptor::SenderPromise(id) => {
                capabilities.hosted.push(id)
            }
            cap_descriptor::ReceiverHosted(id) => capabilities.imported.push(id),
            _ => {}
        }
    }
    Ok(capabilities)
}

/// `Handler.disconnect` on a thread of the node's.
fn disconnect_call(question: u32, held: Held) -> Vec<u8> {
    let mut message = capnp::message::Builder::new_default();
    let mut call = message.init_root::<message::Builder>().init_call();
    call.set_question_id(question);
    call.set_interface_id(DISCONNECT.0);
    call.set_method_id(DISCONNECT.1);
    call.reborrow().init_target().set_imported_cap(held.handler);
    let mut params = call.init_params();
    params.reborrow().init_cap_table(1).get(0).set_receiver_hosted(held.thread);
    // A capability is written as its place in the table; what it is, the table says.
    let place = capnp_rpc::new_broken_cap(capnp::Error::failed("never called".into()));
    let mut table = Vec::new();
    let mut content = params.get_content();
    content.imbue_mut(&mut table);
    let disconnect = content.init_as::<handler::disconnect_params::Builder>();
    disconnect.init_context().set_thread(FromClientHook::new(place.hook));
    write_message_to_words(&message)
}

/// An empty answer: callbacks return nothing. Built once; only the question's number differs.
struct Answer {
    bytes: Vec<u8>,
    at: usize,
}

impl Answer {
    fn new() -> Self {
        let build = |question| {
            let mut message = capnp::message::Builder::new_default();
            let mut answer = message.init_root::<message::Builder>().init_return();
            answer.set_answer_id(question);
            // The node may let go of what it passed along.
            answer.set_release_param_caps(true);
            // Nor need it say that it has the answer. One built with a Cap'n Proto before 1.1 does all the same.
            answer.set_no_finish_needed(true);
            answer.init_results();
            write_message_to_words(&message)
        };
        let (bytes, other) = (build(0), build(u32::MAX));
        let differing: Vec<_> = (0..bytes.len()).filter(|&at| bytes[at] != other[at]).collect();
        assert!(
            differing.len() == 4 && differing[3] == differing[0] + 3,
            "the number is four bytes in a row"
        );
        Answer { bytes, at: differing[0] }
    }

    fn to(&mut self, question: u32) -> &[u8] {
        self.bytes[self.at..self.at + 4].copy_from_slice(&question.to_le_bytes());
        &self.bytes
    }
}

type Message<'a> = capnp::message::Reader<capnp::serialize::NoAllocSliceSegments<'a>>;

fn read(mut frame: &[u8]) -> io::Result<Message<'_>> {
    let mut options = ReaderOptions::new();
    options.traversal_limit_in_words(Some(2 * LARGEST / 8));
    read_message_from_flat_slice_no_alloc(&mut frame, options).map_err(wrong)
}

fn wrong(error: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error.to_string())
}

fn now() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from)
}
