//! One connection: from the handshake to its end.

use std::fmt;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tracing::{debug, info, warn};

use super::memory::SharedMemory;
use super::poll::{Polled, Poller};
use super::tip::{TipEnd, TipWatch};
use super::utxo_trace::{Coins, Trace};
use super::{Collector, Config, Shutdown, State, block, subscribe};
use crate::ipc::guard::{Event, Guard, Notice};
use crate::ipc::source::NodeProcess;
use crate::ipc::{CallError, Connection, Interfaces, JsonRpc, Subscription, Thread};
use crate::metrics::Metrics;

/// How a connection ended.
#[derive(Debug)]
pub enum End {
    /// We were told to end.
    ShutdownRequested,
    /// The node said that it is going down.
    NodeShutDown,
    /// The connection broke.
    Lost(String),
    /// The node does not answer.
    Hung(String),
    /// The peer is no node that we can use.
    Useless(String),
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            End::ShutdownRequested => f.write_str("told to end"),
            End::NodeShutDown => f.write_str("the node is shutting down"),
            End::Lost(why) | End::Hung(why) | End::Useless(why) => f.write_str(why),
        }
    }
}

impl From<CallError> for End {
    fn from(error: CallError) -> Self {
        match error {
            CallError::TimedOut(_) => End::Hung(error.to_string()),
            _ => End::Lost(error.to_string()),
        }
    }
}

/// Polls that a node may miss before a connection without subscriptions is given up.
const MISSED_POLLS: u32 = 3;

/// The guard of a connection. The fuzzer has none: its peer is no node.
pub type MaybeGuard = Option<Guard>;

/// A connection with a node that is ready to be asked.
pub struct Session {
    connection: Connection,
    guard: MaybeGuard,
    polling: Rc<Thread>,
    waiting: Thread,
    subscribing: Thread,
    /// What the node offers.
    pub interfaces: Rc<Interfaces>,
}

impl Session {
    /// Shakes hands over a connection behind a guard, finds out what the node offers, and waits until it has loaded its
    /// chain.
    pub async fn open(
        stream: UnixStream,
        guard: MaybeGuard,
        node: &NodeProcess,
        config: &Config,
        shutdown: &Shutdown,
    ) -> Result<Self, End> {
        match Self::shake_hands(stream, node, config, shutdown).await {
            Ok((connection, polling, waiting, subscribing, interfaces)) => Ok(Session {
                connection,
                guard,
                polling: Rc::new(polling),
                waiting,
                subscribing,
                interfaces: Rc::new(interfaces),
            }),
            Err(end) => Err(take_leave(guard, end).await),
        }
    }

    async fn shake_hands(
        stream: UnixStream,
        node: &NodeProcess,
        config: &Config,
        shutdown: &Shutdown,
    ) -> Result<(Connection, Thread, Thread, Thread, Interfaces), End> {
        let connection = tokio::select! {
            connection = Connection::new(stream, config.call_timeout) => connection.map_err(|error| {
                End::Useless(format!("no Bitcoin node answers there: {error}; is it the socket of bitcoin-node -ipcbind?"))
            })?,
            () = shutdown.requested() => return Err(End::ShutdownRequested),
        };
        let (polling, waiting, subscribing, interfaces) = tokio::select! {
            prepared = Self::prepare(&connection, node) => prepared?,
            reason = connection.closed() => return Err(End::Lost(reason.to_string())),
            () = shutdown.requested() => return Err(End::ShutdownRequested),
        };
        Ok((connection, polling, waiting, subscribing, interfaces))
    }

    /// Closes the connection before anything was started on it.
    pub async fn close(self) {
        drop(self.connection);
        take_leave(self.guard, End::ShutdownRequested).await;
    }

    async fn prepare(
        connection: &Connection,
        node: &NodeProcess,
    ) -> Result<(Thread, Thread, Thread, Interfaces), End> {
        // A thread per kind of work, so that none waits for another.
        let polling = connection.thread("exporter-poll").await?;
        let waiting = connection.thread("exporter-wait").await?;
        let subscribing = connection.thread("exporter-subscribe").await?;
        let mut interfaces = connection.discover(&polling).await?;
        if interfaces.shutting_down {
            return Err(End::NodeShutDown);
        }
        match &interfaces.json_rpc {
            Some(json_rpc) => wait_for_warmup(json_rpc, &polling).await?,
            None => wait_for_message_handler(node).await,
        }
        // Answered when the chain state is loaded: no deadline.
        interfaces.mining = connection.mining(&waiting.without_deadline()).await?;
        if interfaces.mining.is_none() && interfaces.json_rpc.is_none() && interfaces.chain.is_none() {
            wait_for_evidence(node).await;
            interfaces.mining = connection.mining_core30(&waiting).await?;
        }
        if interfaces.mining.is_none() && interfaces.json_rpc.is_none() && interfaces.chain.is_none() {
            return Err(End::Useless(
                "the node offers none of the interfaces Mining, Rpc, Chain and Node".into(),
            ));
        }
        let names = interfaces.names();
        let missing =
            ["mining", "rpc", "chain", "node", "tracing"].into_iter().filter(|name| !names.contains(name));
        let missing: Vec<_> = missing.collect();
        info!(offered = names.join(","), not_offered = missing.join(","), "the node's interfaces");
        Ok((polling, waiting, subscribing, interfaces))
    }

    /// A poller of this connection.
    pub fn poller(&self, metrics: Arc<Metrics>, memory: SharedMemory) -> Poller {
        Poller::new(self.interfaces.clone(), self.polling.clone(), metrics, memory)
    }

    /// Subscribes, polls and follows the tip until something ends it; unsubscribes and closes.
    pub async fn run(mut self, collector: &mut Collector) -> End {
        let new_tip = Rc::new(Notify::new());
        let (polls_sender, mut polls) = mpsc::unbounded_channel();
        let polling = Task(tokio::task::spawn_local(keep_polling(
            self.poller(collector.metrics.clone(), collector.memory.clone()),
            collector.config.poll_interval,
            new_tip.clone(),
            polls_sender,
        )));

        let mut tip = TipWatch::start(&self, &collector.metrics, &collector.memory, new_tip);
        let mut chain = None;
        let mut trace = Trace::new(&collector.config, self.can_trace(), collector.trace_given_up);
        let mut missed = 0;
        let mut run_delay = Duration::ZERO;
        if let Some(guard) = &mut self.guard {
            guard.read(count_notices(
                collector.metrics.clone(),
                collector.blocks.clone(),
                trace.coins(&collector.metrics),
            ));
        }

        let end = 'session: {
            if let (Some(offered), Some(_)) = (&self.interfaces.chain, &self.guard) {
                if tip.is_none() {
                    warn!("not subscribing: without Mining the node cannot tell us when it shuts down");
                } else {
                    TipWatch::caught_up(&mut tip).await;
                    match offered.subscribe(&self.subscribing.without_deadline()).await {
                        Ok(subscription) => {
                            subscribe::start(&collector.metrics);
                            chain = Some(subscription);
                        }
                        Err(error @ CallError::Disconnected(_)) => break 'session error.into(),
                        Err(error) => warn!("cannot subscribe to the chain's notifications: {error}"),
                    }
                }
            }
            loop {
                tokio::select! {
                    reason = self.connection.closed() => break End::Lost(reason.to_string()),
                    () = collector.shutdown.requested() => break End::ShutdownRequested,
                    end = TipWatch::ended(&mut tip) => match end {
                        TipEnd::NodeShutsDown => break End::NodeShutDown,
                        TipEnd::Lost(error) => break error.into(),
                    },
                    () = trace.over_budget() => {
                        collector.trace_given_up = true;
                        trace.give_up(&collector.metrics);
                    }
                    Some(polled) = polls.recv() => match polled {
                        Ok(polled) => {
                            missed = 0;
                            self.show_polled(collector, &polled, &trace);
                            if let Some(total) = self.guard.as_ref().and_then(Guard::run_delay) {
                                let before = std::mem::replace(&mut run_delay, total);
                                collector.metrics.exporter.guard_run_delay.inc_by(total.saturating_sub(before));
                            }
                            if let Some(subscription) = trace.end_in_ibd(&polled, &collector.metrics) {
                                self.end_subscription("the UTXO cache trace", subscription).await;
                            }
                            if trace.is_due(&polled)
                                && let Some(tracing) = &self.interfaces.tracing
                            {
                                trace.start(tracing, &self.subscribing, &collector.metrics).await;
                            }
                            trace.show(&collector.metrics);
                        }
                        Err(why) => {
                            missed += 1;
                            collector.metrics.node_is_away();
                            collector.state.send_replace(State::Connected(format!("the last poll failed: {why}")));
                            if missed == 1 {
                                warn!("a poll failed: {why}");
                            }
                            if missed >= MISSED_POLLS && chain.is_none() && !trace.is_active() {
                                break End::Hung(format!("it missed {missed} polls, at last: {why}"));
                            }
                        }
                    },
                }
            }
        };
        debug!("the session ends: {end}");
        collector.metrics.node_is_away();
        drop((polling, tip, trace, chain));
        drop(self.connection);
        take_leave(self.guard, end).await
    }

    fn can_trace(&self) -> bool {
        self.interfaces.tracing.is_some() && self.interfaces.mining.is_some() && self.guard.is_some()
    }

    /// The thread of the long poll.
    pub fn waiting(&self) -> &Thread {
        &self.waiting
    }

    /// Ends a subscription while the session goes on.
    async fn end_subscription(&self, what: &str, subscription: Subscription) {
        tokio::select! {
            ended = subscription.end(&self.subscribing) => match ended {
                Ok(()) => debug!("unsubscribed from {what}"),
                Err(error) => warn!("unsubscribing from {what}: {error}"),
            },
            reason = self.connection.closed() => warn!("unsubscribing from {what}: {reason}"),
        }
    }

    /// A poll succeeded: the node is up, with these interfaces.
    pub fn show(&self, metrics: &Metrics) {
        metrics.exporter.up.set(1);
        metrics
            .exporter
            .interface
            .replace(self.interfaces.names().iter().map(|interface| ([*interface], 1.0)));
    }

    fn show_polled(&self, collector: &Collector, polled: &Polled, trace: &Trace) {
        self.show(&collector.metrics);
        trace.show(&collector.metrics);
        let interfaces = self.interfaces.names();
        collector.state.send_if_modified(|state| {
            let new = State::Polled { interfaces, node: polled.subversion.clone() };
            let changed = *state != new;
            *state = new;
            changed
        });
    }
}

/// Waits for the guard, which takes leave of the node; the node's word that it is shutting down is why it all ended.
async fn take_leave(guard: MaybeGuard, end: End) -> End {
    match guard {
        Some(guard) => match guard.leave().await && !matches!(end, End::ShutdownRequested) {
            true => End::NodeShutDown,
            false => end,
        },
        None => end,
    }
}

/// The thread that a node starts when it has loaded its chain.
const MESSAGE_HANDLER: &str = "b-msghand";
/// Between looks for it.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// A node without JSON-RPC does not say whether it has loaded its chain, and can abort when it is asked about one that it
/// has not created yet. Where its threads can be seen, waits for one that it starts after that.
async fn wait_for_message_handler(node: &NodeProcess) {
    let mut said = false;
    while node.runs_thread(MESSAGE_HANDLER) == Some(false) {
        if !said {
            info!("the node is starting: it has no thread {MESSAGE_HANDLER} yet");
            said = true;
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// The same for Core 30, whose Mining interface does not wait either: it is not asked before its thread was seen.
async fn wait_for_evidence(node: &NodeProcess) {
    if node.runs_thread(MESSAGE_HANDLER).is_none() {
        warn!(
            "this node (Bitcoin Core 30) cannot tell over IPC whether it has loaded its chain, and asking it too early \
             makes it abort. Its thread {MESSAGE_HANDLER} would tell, but its process cannot be seen in /proc; not \
             asking until it can. Run the exporter in the node's PID namespace (containers: --pid=host or \
             --pid=container:NODE; systemd: no ProtectProc=)"
        );
    }
    while node.runs_thread(MESSAGE_HANDLER) != Some(true) {
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// Core's warmup: it answers JSON-RPC with an error, and its other interfaces must not be asked.
async fn wait_for_warmup(json_rpc: &JsonRpc, on: &Thread) -> Result<(), CallError> {
    const AGAIN: Duration = Duration::from_millis(250);
    let mut said = false;
    loop {
        match json_rpc.call(on, "uptime", serde_json::json!([])).await {
            Err(error) if error.is_warmup() => {
                if !said {
                    info!("the node is starting: {error}");
                    said = true;
                }
            }
            Err(error @ (CallError::Disconnected(_) | CallError::TimedOut(_))) => return Err(error),
            _ => return Ok(()),
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// Counts what the guard hands on.
fn count_notices(metrics: Arc<Metrics>, blocks: block::Counter, coins: Coins) -> impl FnMut(Notice) {
    move |Notice { event, waited }| {
        let callback = match event {
            Event::Chain(event) => subscribe::count(event, &metrics, &blocks),
            Event::Coin(event) => coins.count(event),
            Event::OverBudget => return coins.over_budget(),
            Event::Dropped(events) => {
                warn!(events, "the exporter was too slow: callbacks were answered and not counted");
                return metrics.exporter.events_dropped.inc_by(["callback"], events);
            }
            // What the guard tells about the connection does not get here.
            Event::Subscribed(_) | Event::Released(_) | Event::NodeShutsDown => return,
        };
        metrics.exporter.callbacks.inc_by([callback], 1);
        metrics.exporter.callback_duration.observe(waited.as_secs_f64());
    }
}

/// Polls at once, then each interval and at each new tip.
async fn keep_polling(
    mut poller: Poller,
    interval: Duration,
    new_tip: Rc<Notify>,
    polls: mpsc::UnboundedSender<Result<Polled, String>>,
) {
    /// Between the starts of two polls, however fast tips come: a syncing node connects hundreds of blocks a second.
    const AT_LEAST: Duration = Duration::from_secs(1);
    loop {
        let started = tokio::time::Instant::now();
        if polls.send(poller.poll().await).is_err() {
            return;
        }
        tokio::select! {
            () = tokio::time::sleep_until(started + interval) => {}
            () = new_tip.notified() => tokio::time::sleep_until(started + AT_LEAST.min(interval)).await,
        }
    }
}

/// A task that is ended with its owner.
pub(super) struct Task<T>(pub(super) JoinHandle<T>);

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}
