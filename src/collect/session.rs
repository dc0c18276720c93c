//! The event loop of one connection, from the first poll to the disconnect. The connection uses IPC, or only HTTP.
//!
//! Polls, the watch for new tips, subscriptions, block templates and checks of HTTP run as separate tasks, and the
//! event loop awaits only their events. A task that waits for a response of the node therefore delays neither the other
//! tasks nor the disconnect.

use std::fmt;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep_until};
use tokio_util::task::AbortOnDropHandle;
use tracing::debug;

use super::context::Context;
use super::http_rpc_verifier::HttpRpcVerifier;
use super::next_block::TemplatePoller;
use super::poll::{PollError, PollResult, Poller};
use super::rate_limit::RateLimit;
use super::subscriptions::Subscriptions;
use super::suspend::Suspensions;
use super::tip::{TipEnd, TipWatch};
use crate::ipc::guard::Guard;
use crate::ipc::{Interface, Interfaces, IpcConnection, NodeThread};
use crate::json_rpc::http::HttpRpc;
use crate::json_rpc::{CallError, HttpFailure};
use crate::metrics::lifetime;
use crate::node_process::ProcessUsage;

/// The reason why a session has ended.
#[derive(Debug)]
pub enum SessionEnd {
    /// Shutdown of the exporter was requested.
    ShutdownRequested,
    /// The node announced its shutdown.
    NodeShutDown,
    /// The connection was closed, for this reason.
    Closed(Rc<str>),
    /// A call that the connection depends on failed, while the connection was prepared or in the watch for new tips.
    Failed(CallError),
    /// Several polls in a row failed. The values are the number of failed polls, and the error of the last poll.
    MissedPolls(u32, PollError),
    /// The process at the other end of the socket does not respond like a Bitcoin node.
    NoNode(CallError),
    /// The node has no interface that reports its tip.
    NothingOffered,
    /// The node returns the warmup error, and its process is not visible in `/proc`, so it may be starting or shutting
    /// down.
    Loading(CallError),
    /// The node is Bitcoin Core 30 and its process is not visible in `/proc`, so the exporter cannot determine whether
    /// the node has loaded its chain.
    NoEvidence,
}

impl SessionEnd {
    /// All values that [`reason`](Self::reason) returns.
    pub const REASONS: [&str; 4] = ["shutdown", "hung", "lost", "refused"];

    /// Value of the label `reason` of the metric `bitcoin_exporter_disconnects_total`; `None` if shutdown of the
    /// exporter was requested.
    pub fn reason(&self) -> Option<&'static str> {
        match self {
            SessionEnd::ShutdownRequested => None,
            SessionEnd::NodeShutDown => Some("shutdown"),
            SessionEnd::MissedPolls(_, why) if why.is_timeout() => Some("hung"),
            SessionEnd::Failed(CallError::TimedOut(_)) => Some("hung"),
            SessionEnd::MissedPolls(..) | SessionEnd::Closed(_) | SessionEnd::Failed(_) => Some("lost"),
            SessionEnd::NoNode(_)
            | SessionEnd::NothingOffered
            | SessionEnd::Loading(_)
            | SessionEnd::NoEvidence => Some("refused"),
        }
    }
}

impl fmt::Display for SessionEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SessionEnd::ShutdownRequested => f.write_str("shutdown requested"),
            SessionEnd::NodeShutDown => f.write_str("the node shut down"),
            SessionEnd::Closed(why) => write!(f, "lost the connection to the node: {why}"),
            SessionEnd::Failed(error @ CallError::TimedOut(_)) => write!(f, "the node does not respond: {error}"),
            SessionEnd::Failed(error) => write!(f, "lost the connection to the node: {error}"),
            SessionEnd::MissedPolls(missed, last) => {
                write!(f, "disconnecting: {missed} polls in a row failed, the last one with: {last}")
            }
            SessionEnd::NoNode(error) => write!(
                f,
                "no Bitcoin node responds there: {error}; check that it is the socket of bitcoin-node -ipcbind=unix"
            ),
            SessionEnd::NothingOffered => {
                f.write_str("the node has none of the interfaces Mining, Rpc, Chain and Node; use bitcoin-node of Bitcoin \
                     Core 30 or later")
            }
            SessionEnd::Loading(error) => write!(f, "the node is starting: {error}"),
            SessionEnd::NoEvidence => f.write_str(
                "this node (Bitcoin Core 30) does not report over IPC whether it has loaded its chain, and aborts if it is \
                 queried too early. Its thread b-msghand would show it, but its process is not visible in /proc; \
                 waiting until it is. Run the exporter in the node's PID namespace (containers: --pid=host or \
                 --pid=container:NODE; systemd: no ProtectProc=), and connect to the node's own socket, not to a \
                 proxy's",
            ),
        }
    }
}

impl From<CallError> for SessionEnd {
    fn from(error: CallError) -> Self {
        SessionEnd::Failed(error)
    }
}

/// Number of failed polls in a row after which the exporter closes the connection, if all polled values have expired
/// and no subscription is active.
const MAX_MISSED_POLLS: u32 = 3;

/// A connection to a node that can be polled, and the event loop of the connection.
pub struct Session {
    /// The connection over IPC; `None` if the node is polled only over HTTP.
    ipc: Option<IpcParts>,
    /// The node's interfaces.
    pub interfaces: Rc<Interfaces>,
    /// The verifier of JSON-RPC over HTTP; `None` for a node with JSON-RPC over IPC.
    pub(super) http_rpc: Option<HttpRpcVerifier>,
    /// The node's process; `None` if it is not visible in `/proc`.
    process: Option<ProcessUsage>,
    context: Rc<Context>,
}

/// The parts of a session that only a connection over IPC has, such as the guard and the node's threads that run the
/// exporter's calls.
pub(super) struct IpcParts {
    pub connection: IpcConnection,
    pub guard: Option<Guard>,
    /// Thread that runs the long poll for the tip.
    pub waiting: NodeThread,
    /// Thread that runs the calls that start and end subscriptions.
    pub subscribing: NodeThread,
    /// Thread that builds block templates; `None` if the exporter requests no templates from this node.
    pub building: Option<NodeThread>,
}

/// The tasks of a session that run concurrently with its event loop. Dropping the struct aborts all of them.
struct SessionTasks {
    polls: mpsc::UnboundedReceiver<Result<PollResult, PollError>>,
    tip: Option<TipWatch>,
    subscriptions: Option<Subscriptions>,
    _others: Vec<AbortOnDropHandle<()>>,
}

impl Session {
    pub(super) fn new(
        ipc: Option<IpcParts>,
        interfaces: Rc<Interfaces>,
        http_rpc: Option<HttpRpcVerifier>,
        process: Option<ProcessUsage>,
        context: &Rc<Context>,
    ) -> Self {
        Session { ipc, interfaces, http_rpc, process, context: context.clone() }
    }

    /// Creates a session for a node that is polled only over HTTP. The verifier must have found HTTP usable.
    pub(super) fn over_http(verifier: HttpRpcVerifier, context: &Rc<Context>) -> Self {
        let interfaces = Rc::new(Interfaces::over_http(verifier.http().clone()));
        Self::new(None, interfaces, Some(verifier), None, context)
    }

    /// Creates the poller of this session.
    pub fn poller(&mut self) -> Poller {
        Poller::new(self.interfaces.clone(), self.context.clone()).with_process(self.process.take())
    }

    /// Creates the poller of block templates; `None` if the exporter requests no templates from this node.
    pub(super) fn template_poller(&self) -> Option<TemplatePoller> {
        TemplatePoller::new(&self.interfaces, self.ipc.as_ref()?.building.as_ref()?, &self.context)
    }

    /// Subscribes to the node's events, polls the node and follows its tip until the session ends. Then closes the
    /// connection, and waits until the guard has ended the subscriptions and disconnected from the node.
    pub async fn run(self) -> SessionEnd {
        self.run_until(|| false).await
    }

    /// Like [`run`](Self::run), but also ends the session when `has_socket` returns true after a successful poll, which
    /// means that the node is now reachable over IPC.
    pub(super) async fn run_until(mut self, has_socket: impl Fn() -> bool) -> SessionEnd {
        let end = self.wait_for_end(has_socket).await;
        debug!("the session ends: {end}");
        show_disconnected(&self.context);
        self.finish(end).await
    }

    /// Closes the connection of a session on which [`run`](Self::run) was not called.
    pub async fn close(self) {
        self.finish(SessionEnd::ShutdownRequested).await;
    }

    async fn finish(self, end: SessionEnd) -> SessionEnd {
        match self.ipc {
            Some(IpcParts { connection, guard, .. }) => {
                drop(connection);
                disconnect(guard, end).await
            }
            None => end,
        }
    }

    async fn wait_for_end(&mut self, has_socket: impl Fn() -> bool) -> SessionEnd {
        let http = self.http_rpc.as_ref().map(|verifier| verifier.http().clone());
        let http_only = http.filter(|_| self.ipc.is_none());
        let mut tasks = self.start();
        let mut health = PollHealth::new(self.context.config.poll_interval);
        loop {
            tokio::select! {
                biased;
                () = self.context.shutdown.cancelled() => return SessionEnd::ShutdownRequested,
                end = TipWatch::ended(&mut tasks.tip) => return match end {
                    TipEnd::NodeShutsDown => SessionEnd::NodeShutDown,
                    TipEnd::Lost(error) => error.into(),
                },
                reason = closed(self.ipc.as_ref()) => return SessionEnd::Closed(reason),
                failure = node_gone(http_only.as_ref()) => return SessionEnd::Closed(failure.text.into()),
                Some(polled) = tasks.polls.recv() => match polled {
                    Ok(_) if has_socket() => return SessionEnd::Closed("switching to IPC, because the node has a socket now".into()),
                    Ok(polled) => {
                        health.succeeded();
                        self.show(polled, tasks.subscriptions.as_ref());
                    }
                    Err(why) => {
                        if health.failed() == 1 {
                            self.context.warn_limited(&format!("a poll failed: {why}"));
                        }
                        self.show_failed(&why);
                        let calls_back = tasks.subscriptions.as_ref().is_some_and(Subscriptions::is_any_active);
                        if health.is_lost(Instant::now()) && !calls_back {
                            return SessionEnd::MissedPolls(health.missed, why);
                        }
                    }
                },
            }
        }
    }

    /// Starts the tasks that run concurrently with the event loop.
    fn start(&mut self) -> SessionTasks {
        let new_tip = Rc::new(Notify::new());
        let (sender, polls) = mpsc::unbounded_channel();
        let interval = self.context.config.poll_interval;
        let mut others = vec![spawn(keep_polling(self.poller(), interval, new_tip.clone(), sender))];
        others.extend(self.http_rpc.take().map(|verifier| spawn(verifier.keep_verifying(new_tip.clone()))));
        others.extend(self.template_poller().map(|poller| spawn(poller.run())));
        let waiting = self.ipc.as_ref().map(|ipc| &ipc.waiting);
        let mut tip = TipWatch::start(&self.interfaces, waiting, &self.context, new_tip);
        let subscriptions = self
            .ipc
            .as_mut()
            .and_then(|ipc| Subscriptions::start(&self.interfaces, ipc, tip.as_mut(), &self.context));
        SessionTasks { polls, tip, subscriptions, _others: others }
    }

    /// Updates the metrics and the status page after a successful poll, and passes the result of the poll to the
    /// subscriptions.
    fn show(&mut self, polled: PollResult, subscriptions: Option<&Subscriptions>) {
        show_connected(&self.interfaces, &self.context);
        self.context.status.set_polled(polled.subversion.clone(), &self.interfaces.names());
        let guard = self.ipc.as_mut().and_then(|ipc| ipc.guard.as_mut());
        if let Some(delay) = guard.and_then(Guard::new_run_delay) {
            self.context.metrics.exporter.guard_run_delay.inc_by(delay);
        }
        if let Some(subscriptions) = subscriptions {
            subscriptions.on_poll(polled);
        }
    }

    /// Updates the metrics and the status page after a failed poll. Values of earlier polls remain exported until they
    /// expire.
    fn show_failed(&self, why: &PollError) {
        self.context.metrics.exporter.up.set(Some(0));
        show_interfaces(&self.interfaces, &self.context);
        self.context.status.set_not_ready(format!("the last poll failed: {why}"));
    }
}

fn spawn(task: impl Future<Output = ()> + 'static) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(tokio::task::spawn_local(task))
}

/// Waits until the connection over IPC is closed, and returns the reason. Never returns if there is no connection over
/// IPC.
async fn closed(ipc: Option<&IpcParts>) -> Rc<str> {
    match ipc {
        Some(ipc) => ipc.connection.closed().await,
        None => std::future::pending().await,
    }
}

/// Waits until a node that is polled only over HTTP no longer runs, and returns the failure. Never returns for a node
/// with IPC.
async fn node_gone(http_only: Option<&HttpRpc>) -> HttpFailure {
    match http_only {
        Some(http) => http.node_gone().await,
        None => std::future::pending().await,
    }
}

/// State that determines whether the connection is lost: the number of failed polls in a row, and the time of the last
/// successful poll.
struct PollHealth {
    /// Number of failed polls in a row.
    missed: u32,
    succeeded_at: Instant,
    /// Time for which a polled value is exported.
    lifetime: Duration,
}

impl PollHealth {
    fn new(poll_interval: Duration) -> Self {
        PollHealth { missed: 0, succeeded_at: Instant::now(), lifetime: lifetime(poll_interval) }
    }

    fn succeeded(&mut self) {
        *self = PollHealth { missed: 0, succeeded_at: Instant::now(), lifetime: self.lifetime };
    }

    /// Counts a failed poll. Returns the number of failed polls in a row.
    fn failed(&mut self) -> u32 {
        self.missed += 1;
        self.missed
    }

    /// Whether at least [`MAX_MISSED_POLLS`] polls in a row have failed and all polled values have expired.
    fn is_lost(&self, now: Instant) -> bool {
        self.missed >= MAX_MISSED_POLLS && now - self.succeeded_at >= self.lifetime
    }
}

/// Sets `bitcoin_up` to 1, and exports the names of the node's interfaces.
pub(super) fn show_connected(interfaces: &Interfaces, context: &Context) {
    context.metrics.exporter.up.set(Some(1));
    show_interfaces(interfaces, context);
}

/// Sets `bitcoin_up` to 0, and removes all values that were read from the node.
pub(super) fn show_disconnected(context: &Context) {
    context.metrics.clear_node_values();
    let http_only = context.http_rpc.as_ref().filter(|http| http.config().http_only && http.is_expected());
    let away = http_only.map(|_| ([Interface::HttpRpc.name()], 0.0));
    context.metrics.exporter.interface.replace(away);
}

fn show_interfaces(interfaces: &Interfaces, context: &Context) {
    let offered = interfaces.names().into_iter().map(|name| ([name], 1.0));
    let is_expected = context.http_rpc.as_ref().is_some_and(HttpRpc::is_expected) && interfaces.uses_http();
    let away = is_expected && !interfaces.offers(Interface::HttpRpc);
    let away = away.then_some(([Interface::HttpRpc.name()], 0.0));
    context.metrics.exporter.interface.replace(offered.chain(away));
}

/// Waits until the guard has disconnected from the node, and returns the reason why the session has ended. The reason
/// is `end`, except that it is [`SessionEnd::NodeShutDown`] if the guard reports that the node is shutting down and
/// `end` is not a requested shutdown of the exporter.
pub(super) async fn disconnect(guard: Option<Guard>, end: SessionEnd) -> SessionEnd {
    let Some(guard) = guard else { return end };
    let shuts_down = guard.disconnect().await;
    if shuts_down && !matches!(end, SessionEnd::ShutdownRequested) { SessionEnd::NodeShutDown } else { end }
}

/// Polls the node immediately, then after each interval, at each new tip, and after a suspend of the machine. Repeats a
/// failed poll after a back-off.
async fn keep_polling(
    mut poller: Poller,
    interval: Duration,
    new_tip: Rc<Notify>,
    polls: mpsc::UnboundedSender<Result<PollResult, PollError>>,
) {
    /// Minimum time between the starts of two polls, even if new tips arrive faster. During initial block download a
    /// node connects hundreds of blocks per second.
    const MIN_INTERVAL: Duration = Duration::from_secs(1);
    let mut limit = RateLimit::new(interval, 0);
    let mut suspensions = Suspensions::new();
    loop {
        let started = Instant::now();
        let polled = poller.poll().await;
        match &polled {
            Ok(_) => limit.succeeded(started, Instant::now()),
            Err(_) => limit.failed(Instant::now()),
        }
        if polls.send(polled).is_err() {
            return;
        }
        tokio::select! {
            () = sleep_until(limit.due()) => {}
            () = new_tip.notified() => sleep_until(started + MIN_INTERVAL.min(interval)).await,
            () = suspensions.next() => poller.forget_limits(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn session_ends_after_three_polls_and_two_intervals() {
        let mut health = PollHealth::new(Duration::from_secs(15));
        let start = health.succeeded_at;
        let later = start + Duration::from_secs(30);
        let missed: Vec<_> = (0..3).map(|_| health.failed()).collect();
        assert_eq!(missed, [1, 2, 3]);
        assert!(!health.is_lost(start), "what was read is still shown");
        assert!(health.is_lost(later));
        health.succeeded();
        health.failed();
        health.failed();
        assert!(!health.is_lost(later + Duration::from_secs(3600)), "one long call may fail twice");
    }

    #[test]
    fn sessions_end_as_hung_or_lost() {
        let missed = |error| SessionEnd::MissedPolls(3, PollError::NoAnswer("uptime", error)).reason();
        assert_eq!(SessionEnd::MissedPolls(3, PollError::NoTip).reason(), Some("lost"), "it answers");
        let timeout = CallError::TimedOut(Duration::from_secs(1));
        let http = |cause| CallError::Http(HttpFailure::new(cause, ""));
        assert_eq!(missed(timeout), Some("hung"));
        assert_eq!(missed(http(crate::json_rpc::FailureCause::Timeout)), Some("hung"));
        assert_eq!(missed(http(crate::json_rpc::FailureCause::Unauthorized)), Some("lost"));
        assert_eq!(SessionEnd::from(CallError::TimedOut(Duration::ZERO)).reason(), Some("hung"));
    }
}
