//! A session: the event loop of one connection to the node, from the first poll to the disconnect. The connection uses
//! IPC, or only HTTP. Over IPC, the connection passes through a guard, a process that relays the messages between the
//! node and the exporter, and disconnects cleanly if the exporter fails.
//!
//! Polls of the node's state, the watch for new tips, subscriptions to the node's events, requests for block templates
//! and checks of HTTP run as separate tasks, and the event loop awaits only the results of these tasks. A task that
//! waits for a response of the node therefore delays neither the other tasks nor the disconnect.

use std::fmt;
use std::rc::Rc;
use std::time::Duration;

use futures::future::OptionFuture;
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep_until};
use tokio_util::task::AbortOnDropHandle;
use tracing::debug;

use super::context::Context;
use super::http_rpc_verifier::HttpRpcVerifier;
use super::next_block::TemplatePoller;
use super::poll::{PollError, PollResult, Poller};
use super::rate_limit::{RateLimit, Suspensions};
use super::subscriptions::Subscriptions;
use super::tip;
use crate::ipc::guard::Guard;
use crate::ipc::{Interface, Interfaces, IpcConnection, NodeThread};
use crate::json_rpc::CallError;
use crate::json_rpc::http::HttpRpc;
use crate::metrics::lifetime;
use crate::node_process::ProcessUsage;

/// The reason why a session has ended, with a text for the log and the status page.
#[derive(Debug)]
pub enum SessionEnd {
    /// Shutdown of the exporter was requested.
    ShutdownRequested,
    /// The node announced its shutdown.
    NodeShutDown,
    /// The node did not respond to a call within the call's timeout.
    Hung(String),
    /// The connection was closed, or several polls in a row failed and the last one did not fail by a timeout.
    Lost(String),
    /// The process at the other end of the IPC socket is not a node that the exporter can poll, or it is a node that
    /// may still be loading its chain.
    Refused(String),
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
            SessionEnd::Hung(_) => Some("hung"),
            SessionEnd::Lost(_) => Some("lost"),
            SessionEnd::Refused(_) => Some("refused"),
        }
    }

    /// Creates the reason [`Lost`](Self::Lost) of a session whose connection was closed because of `why`.
    pub(super) fn closed(why: impl fmt::Display) -> Self {
        SessionEnd::Lost(format!("lost the connection to the node: {why}"))
    }

    /// Creates the reason of a session in which `missed` polls in a row failed, the last one with the error `last`.
    fn missed_polls(missed: u32, last: &PollError) -> Self {
        let text = format!("disconnecting: {missed} polls in a row failed, the last one with: {last}");
        if last.is_timeout() { SessionEnd::Hung(text) } else { SessionEnd::Lost(text) }
    }
}

impl fmt::Display for SessionEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SessionEnd::ShutdownRequested => "shutdown requested",
            SessionEnd::NodeShutDown => "the node shut down",
            SessionEnd::Hung(text) | SessionEnd::Lost(text) | SessionEnd::Refused(text) => text,
        })
    }
}

impl From<CallError> for SessionEnd {
    fn from(error: CallError) -> Self {
        match error {
            CallError::TimedOut(_) => SessionEnd::Hung(format!("the node does not respond: {error}")),
            error => SessionEnd::closed(error),
        }
    }
}

/// Number of failed polls in a row after which the exporter closes the connection, if all polled values have expired
/// and no subscription is active.
const MAX_MISSED_POLLS: u32 = 3;

/// An open connection to one node that is ready to be polled. [`run`](Self::run) is the event loop of the connection.
pub struct Session {
    /// The connection over IPC; `None` if the node is polled only over HTTP.
    pub(super) ipc: Option<IpcParts>,
    /// The interfaces through which the exporter calls the node: its IPC interfaces, and JSON-RPC over IPC or HTTP.
    pub interfaces: Rc<Interfaces>,
    /// The verifier that checks whether JSON-RPC over HTTP works; `None` if the node has JSON-RPC over IPC, or if HTTP
    /// is disabled.
    pub(super) http_rpc: Option<HttpRpcVerifier>,
    /// The node's process at the other end of the IPC socket; `None` if it is not visible in `/proc`, or if the node is
    /// polled only over HTTP.
    pub(super) process: Option<ProcessUsage>,
    pub(super) context: Rc<Context>,
}

/// The parts of a session that only a connection over IPC has: the connection, its guard, and the threads of the node
/// that run the exporter's calls.
pub(super) struct IpcParts {
    pub connection: IpcConnection,
    pub guard: Option<Guard>,
    /// Thread of the node that runs the long poll, a call to which the node responds when its tip changes, or after a
    /// timeout.
    pub waiting: NodeThread,
    /// Thread of the node that runs the calls that start and end subscriptions.
    pub subscribing: NodeThread,
    /// Thread of the node that builds block templates; `None` if the exporter requests no templates from this node.
    pub building: Option<NodeThread>,
}

/// The tasks of a session that run concurrently with the session's event loop. Dropping the struct aborts all of these
/// tasks.
struct SessionTasks {
    polls: mpsc::UnboundedReceiver<Result<PollResult, PollError>>,
    tip: Option<AbortOnDropHandle<SessionEnd>>,
    subscriptions: Option<Subscriptions>,
    _others: Vec<AbortOnDropHandle<()>>,
}

impl Session {
    /// Creates a session for a node that is polled only over HTTP. The verifier must have found HTTP usable.
    pub(super) fn over_http(verifier: HttpRpcVerifier, context: &Rc<Context>) -> Self {
        let interfaces = Rc::new(Interfaces::over_http(verifier.http.clone()));
        Session { ipc: None, interfaces, http_rpc: Some(verifier), process: None, context: context.clone() }
    }

    /// Creates the poller of this session, which reads the node's state and exports it.
    pub fn poller(&mut self) -> Poller {
        Poller::new(self.interfaces.clone(), self.context.clone(), self.process.take())
    }

    /// Creates the poller of block templates; `None` if the exporter requests no templates from this node.
    pub(super) fn template_poller(&self) -> Option<TemplatePoller> {
        TemplatePoller::new(&self.interfaces, self.ipc.as_ref()?.building.as_ref()?, &self.context)
    }

    /// Subscribes to the node's events, polls the node and follows its tip until the session ends. Then closes the
    /// connection, and waits until the guard has ended the subscriptions and disconnected from the node. The session of
    /// a node that is polled only over HTTP also ends when `has_socket` returns true after a successful poll, which
    /// means that a new socket file for IPC exists.
    pub async fn run(mut self, has_socket: impl Fn() -> bool) -> SessionEnd {
        let end = self.wait_for_end(has_socket).await;
        debug!("the session ends: {end}");
        show_disconnected(&self.context);
        self.finish(end).await
    }

    /// Disconnects from the node. For a session on which [`run`](Self::run) was not called.
    pub async fn close(self) {
        self.finish(SessionEnd::ShutdownRequested).await;
    }

    async fn finish(self, end: SessionEnd) -> SessionEnd {
        let Some(IpcParts { connection, guard, .. }) = self.ipc else { return end };
        drop(connection);
        disconnect(guard, end).await
    }

    async fn wait_for_end(&mut self, has_socket: impl Fn() -> bool) -> SessionEnd {
        let http_only = self.interfaces.http.clone().filter(|_| self.ipc.is_none());
        let mut tasks = self.start();
        let mut health = PollHealth::new(self.context.config.poll_interval);
        loop {
            tokio::select! {
                biased;
                () = self.context.shutdown.cancelled() => return SessionEnd::ShutdownRequested,
                Some(end) = OptionFuture::from(tasks.tip.as_mut()) => {
                    return end.unwrap_or_else(|error| CallError::Disconnected(error.to_string()).into());
                }
                Some(why) = OptionFuture::from(self.ipc.as_ref().map(|ipc| ipc.connection.closed())) => {
                    return SessionEnd::closed(why);
                }
                Some(failure) = OptionFuture::from(http_only.as_ref().map(HttpRpc::node_gone)) => {
                    return SessionEnd::closed(failure);
                }
                Some(polled) = tasks.polls.recv() => match polled {
                    Ok(_) if has_socket() => return SessionEnd::closed("switching to IPC, because the node has a socket now"),
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
                            return SessionEnd::missed_polls(health.missed, &why);
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
        let (tip, caught_up) = tip::watch(&self.interfaces, waiting, &self.context, new_tip).unzip();
        let subscriptions = self
            .ipc
            .as_mut()
            .and_then(|ipc| Subscriptions::start(&self.interfaces, ipc, caught_up, &self.context));
        SessionTasks { polls, tip, subscriptions, _others: others }
    }

    /// Updates the metrics and the status page after a successful poll, and passes the result of the poll to the task
    /// that manages the subscriptions.
    fn show(&mut self, polled: PollResult, subscriptions: Option<&Subscriptions>) {
        show_connected(&self.interfaces, &self.context);
        self.context.status.set_polled(polled.subversion, &self.interfaces.names());
        let guard = self.ipc.as_mut().and_then(|ipc| ipc.guard.as_mut());
        if let Some(delay) = guard.and_then(Guard::new_run_delay) {
            self.context.metrics.exporter.guard_run_delay.inc_by(delay);
        }
        if let Some(subscriptions) = subscriptions {
            subscriptions.on_poll(polled.ibd);
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

/// State that determines whether the connection is lost: the number of failed polls in a row, and the time of the last
/// successful poll.
struct PollHealth {
    /// Number of failed polls in a row.
    missed: u32,
    succeeded_at: Instant,
    /// Time for which a value is exported after a poll has read it.
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

/// Sets `bitcoin_up` to 0, and removes the values of all metrics that were read from the node.
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
        let missed = |error| SessionEnd::missed_polls(3, &PollError::NoAnswer("uptime", error)).reason();
        assert_eq!(SessionEnd::missed_polls(3, &PollError::NoTip).reason(), Some("lost"), "it answers");
        let timeout = CallError::TimedOut(Duration::from_secs(1));
        let http = |cause| CallError::Http(crate::json_rpc::HttpFailure::new(cause, ""));
        assert_eq!(missed(timeout), Some("hung"));
        assert_eq!(missed(http(crate::json_rpc::FailureCause::Timeout)), Some("hung"));
        assert_eq!(missed(http(crate::json_rpc::FailureCause::Unauthorized)), Some("lost"));
        assert_eq!(SessionEnd::from(CallError::TimedOut(Duration::ZERO)).reason(), Some("hung"));
    }
}
