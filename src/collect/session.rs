//! The loop over one connection, from the first poll to its end.

use std::fmt;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, warn};

use super::context::Context;
use super::http_rpc::Checker;
use super::next_block::Builder;
use super::poll::{PollError, Polled, Poller};
use super::subscriptions::{Subscriptions, count_notices};
use super::tip::{TipEnd, TipWatch};
use crate::ipc::guard::Guard;
use crate::ipc::{CallError, Connection, Interfaces, Thread};
use crate::metrics::Metrics;
use crate::node_process::Usage;
use crate::status::State;

/// How a session ended.
#[derive(Debug)]
pub enum End {
    /// Shutdown was requested.
    ShutdownRequested,
    /// The node said that it is going down.
    NodeShutDown,
    /// The connection broke, and why.
    Closed(Rc<str>),
    /// A call failed without which there is no going on.
    Failed(CallError),
    /// The node missed this many polls in a row; why the last one failed.
    MissedPolls(u32, PollError),
    /// The guard could not be started.
    NoGuard(anyhow::Error),
    /// The peer did not answer as a node does.
    NoNode(CallError),
    /// The node offers nothing that tells its tip.
    NothingOffered,
    /// The node is starting, and its process cannot be seen.
    Loading(CallError),
    /// A node of Core 30 whose process cannot be seen.
    NoEvidence,
}

impl End {
    /// All that [`reason`](Self::reason) gives.
    pub const REASONS: [&str; 4] = ["shutdown", "hung", "lost", "refused"];

    /// The `reason` label; `None` if shutdown was requested.
    pub fn reason(&self) -> Option<&'static str> {
        match self {
            End::ShutdownRequested => None,
            End::NodeShutDown => Some("shutdown"),
            End::MissedPolls(..) | End::Failed(CallError::TimedOut(_)) => Some("hung"),
            End::Closed(_) | End::Failed(_) | End::NoGuard(_) => Some("lost"),
            End::NoNode(_) | End::NothingOffered | End::Loading(_) | End::NoEvidence => Some("refused"),
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            End::ShutdownRequested => f.write_str("shutdown requested"),
            End::NodeShutDown => f.write_str("the node shut down"),
            End::Closed(why) => write!(f, "lost the node: {why}"),
            End::Failed(error @ CallError::TimedOut(_)) => write!(f, "gave the node up: {error}"),
            End::Failed(error) => write!(f, "lost the node: {error}"),
            End::MissedPolls(missed, last) => {
                write!(f, "gave the node up: it missed {missed} polls, at last: {last}")
            }
            End::NoGuard(error) => write!(f, "{error:#}"),
            End::NoNode(error) => write!(
                f,
                "no Bitcoin node answers there: {error}; is it the socket of bitcoin-node -ipcbind?"
            ),
            End::NothingOffered => {
                f.write_str("the node offers none of the interfaces Mining, Rpc, Chain and Node")
            }
            End::Loading(error) => write!(f, "the node is starting: {error}"),
            End::NoEvidence => f.write_str(
                "this node (Bitcoin Core 30) cannot tell over IPC whether it has loaded its chain, and asking it too early \
                 makes it abort. Its thread b-msghand would tell, but its process cannot be seen in /proc; not asking \
                 until it can. Run the exporter in the node's PID namespace (containers: --pid=host or \
                 --pid=container:NODE; systemd: no ProtectProc=)",
            ),
        }
    }
}

impl From<CallError> for End {
    fn from(error: CallError) -> Self {
        End::Failed(error)
    }
}

/// Polls that a node may miss before a connection without subscriptions is given up.
const MAX_MISSED_POLLS: u32 = 3;

/// A connection to a node that can be asked.
pub struct Session {
    pub(super) connection: Connection,
    pub(super) guard: Option<Guard>,
    /// Runs the long poll.
    pub(super) waiting: Thread,
    /// Starts and ends subscriptions.
    pub(super) subscribing: Thread,
    /// Builds block templates, if the node is asked for them.
    pub(super) building: Option<Thread>,
    /// What the node offers.
    pub interfaces: Rc<Interfaces>,
    /// Where IPC has no JSON-RPC.
    pub(super) http_rpc: Option<Checker>,
    /// The node, if it can be seen in `/proc`.
    pub(super) process: Option<Usage>,
    pub(super) context: Rc<Context>,
}

impl Session {
    /// A poller of this connection.
    pub fn poller(&mut self) -> Poller {
        Poller::new(self.interfaces.clone(), self.context.clone()).with_process(self.process.take())
    }

    /// Who asks for block templates, if the node is asked for them.
    pub(super) fn builder(&self) -> Option<Builder> {
        Builder::new(&self.interfaces, self.building.as_ref()?, &self.context)
    }

    /// Subscribes, polls and follows the tip until something ends it; unsubscribes and closes.
    pub async fn run(mut self) -> End {
        let end = self.until_end().await;
        debug!("the session ends: {end}");
        self.context.metrics.node_is_away();
        self.leave(end).await
    }

    /// Closes the connection before anything was started on it.
    pub async fn close(self) {
        self.leave(End::ShutdownRequested).await;
    }

    async fn leave(self, end: End) -> End {
        drop(self.connection);
        take_leave(self.guard, end).await
    }

    async fn until_end(&mut self) -> End {
        let context = self.context.clone();
        let metrics = &context.metrics;
        let new_tip = Rc::new(Notify::new());
        let (polls_sender, mut polls) = mpsc::unbounded_channel();
        let _polling = AbortOnDropHandle::new(tokio::task::spawn_local(keep_polling(
            self.poller(),
            context.config.poll_interval,
            new_tip.clone(),
            polls_sender,
        )));
        let checker = self.http_rpc.take();
        let _checking = checker.map(|checker| {
            AbortOnDropHandle::new(tokio::task::spawn_local(checker.keep_checking(new_tip.clone())))
        });
        let builder = self.builder();
        let _building =
            builder.map(|builder| AbortOnDropHandle::new(tokio::task::spawn_local(builder.run())));
        let mut tip = TipWatch::start(&self.interfaces, &self.waiting, &context, new_tip);
        // Without a guard nobody would end a subscription: then nothing is subscribed to.
        let offered = if self.guard.is_some() { self.interfaces.clone() } else { Rc::default() };
        let mut subscriptions = Subscriptions::new(&offered, &self.subscribing, &context);
        let mut missed = 0;
        let mut run_delay = Duration::ZERO;
        if let Some(guard) = &mut self.guard {
            guard.read(count_notices(context.clone(), subscriptions.trace.coins(metrics)));
        }
        if let Err(error) = subscriptions.start_chain(&mut tip).await {
            return error.into();
        }
        loop {
            tokio::select! {
                reason = self.connection.closed() => return End::Closed(reason),
                () = context.shutdown.cancelled() => return End::ShutdownRequested,
                end = TipWatch::ended(&mut tip) => return match end {
                    TipEnd::NodeShutsDown => End::NodeShutDown,
                    TipEnd::Lost(error) => error.into(),
                },
                () = subscriptions.trace.over_budget() => subscriptions.trace.give_up(&context),
                Some(polled) = polls.recv() => match polled {
                    Ok(polled) => {
                        missed = 0;
                        show(&polled, &self.interfaces, &context);
                        if let Some(total) = self.guard.as_ref().and_then(Guard::run_delay) {
                            let before = std::mem::replace(&mut run_delay, total);
                            metrics.exporter.guard_run_delay.inc_by(total.saturating_sub(before));
                        }
                        subscriptions.polled(&polled, &self.connection).await;
                    }
                    Err(why) => {
                        missed += 1;
                        self.guard.iter().for_each(Guard::wake);
                        show_failed(&why, &context);
                        if missed == 1 {
                            warn!("a poll failed: {why}");
                        }
                        if missed >= MAX_MISSED_POLLS && !subscriptions.any() {
                            return End::MissedPolls(missed, why);
                        }
                    }
                },
            }
        }
    }
}

/// A poll succeeded.
pub(super) fn show(polled: &Polled, interfaces: &Interfaces, context: &Context) {
    show_up(interfaces, &context.metrics);
    let node = polled.subversion.clone();
    context.status.set(State::Polled { interfaces: interfaces.names(), node });
}

/// A poll failed.
pub(super) fn show_failed(why: &PollError, context: &Context) {
    context.metrics.node_is_away();
    context.status.set(State::Connected(format!("the last poll failed: {why}")));
}

/// The node is up, with these interfaces.
pub(super) fn show_up(interfaces: &Interfaces, metrics: &Metrics) {
    metrics.exporter.up.set(1);
    metrics.exporter.interface.replace(interfaces.names().into_iter().map(|name| ([name], 1.0)));
}

/// Waits for the guard, which takes leave of the node. A node that shuts down is why it all ended, whatever was noticed first.
pub(super) async fn take_leave(guard: Option<Guard>, end: End) -> End {
    let Some(guard) = guard else { return end };
    match guard.leave().await && !matches!(end, End::ShutdownRequested) {
        true => End::NodeShutDown,
        false => end,
    }
}

/// Polls at once, then each interval and at each new tip.
pub(super) async fn keep_polling(
    mut poller: Poller,
    interval: Duration,
    new_tip: Rc<Notify>,
    polls: mpsc::UnboundedSender<Result<Polled, PollError>>,
) {
    /// Between the starts of two polls, however fast tips come: a syncing node connects hundreds of blocks a second.
    const MIN_INTERVAL: Duration = Duration::from_secs(1);
    loop {
        let started = tokio::time::Instant::now();
        if polls.send(poller.poll().await).is_err() {
            return;
        }
        tokio::select! {
            () = tokio::time::sleep_until(started + interval) => {}
            () = new_tip.notified() => tokio::time::sleep_until(started + MIN_INTERVAL.min(interval)).await,
        }
    }
}
