//! The exporter's main loop: connects to the node, runs a session (the event loop of one connection), and reconnects
//! when the session has ended.

use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use tracing::{debug, info, warn};

use super::context::{Context, UtxoTraceMode};
use super::handshake;
use super::http_rpc_verifier::HttpRpcVerifier;
use super::session::{Session, SessionEnd, show_disconnected};
use crate::ipc::endpoint::NodeEndpoint;
use crate::node_process::SocketPeer;
use crate::supervisor::GuardedSockets;

/// An open connection to a node, over IPC or over HTTP.
pub(super) enum NodeTransport {
    /// Sockets to a guard, a process that is connected to the node's IPC socket and relays the messages between the
    /// node and the exporter.
    Ipc(GuardedSockets),
    /// JSON-RPC over HTTP, over which the node has responded to a check. The string is the reason why the exporter has
    /// no connection over IPC.
    Http(HttpRpcVerifier, String),
}

/// Connects to the node's IPC socket. If this fails and the configuration permits polling without IPC, connects over
/// HTTP.
pub(super) async fn connect_transport(source: &mut NodeEndpoint, context: &Context) -> Result<NodeTransport> {
    let config = &context.config;
    let trace_budget = (config.utxo_trace == UtxoTraceMode::Auto).then_some(config.utxo_trace_budget);
    let error = match source.open(trace_budget).await {
        Ok(guarded) => return Ok(NodeTransport::Ipc(guarded)),
        Err(error) => error,
    };
    let Some(http) = context.http_rpc.as_ref().filter(|http| http.config().http_only) else {
        return Err(error);
    };
    let verifier = HttpRpcVerifier::http_only(http.clone());
    verifier.verify().await;
    if http.is_usable() {
        Ok(NodeTransport::Http(verifier, format!("{error:#}")))
    } else {
        Err(anyhow!("{error:#}; JSON-RPC over HTTP: {}", http.unusable_reason()))
    }
}

/// The main loop that collects the metrics of one node: connects to the node, runs a session on the connection, and
/// reconnects when the session has ended.
pub struct Collector {
    context: Rc<Context>,
}

impl Collector {
    /// Creates a collector without connecting to the node.
    pub fn new(context: Context) -> Self {
        for reason in SessionEnd::REASONS {
            context.metrics.exporter.disconnects.inc_by([reason], 0);
        }
        Collector { context: Rc::new(context) }
    }

    /// Collects until shutdown of the exporter is requested. If `--exit-with-node` is set, or no path of an IPC socket
    /// is known to which the exporter could reconnect, also returns when the node shuts down. Must run in a
    /// [`tokio::task::LocalSet`].
    ///
    /// # Errors
    /// The inherited connection, which was already open when the exporter was started, has failed, and no path of an
    /// IPC socket is known to which the exporter could reconnect.
    pub async fn run(self, mut source: NodeEndpoint) -> Result<()> {
        let shutdown = &self.context.shutdown;
        let mut backoff = Backoff::default();
        // Whether the next successful connection is logged. If connections fail repeatedly with the same error, only
        // one connection per minute is logged.
        let mut is_logged = true;
        loop {
            let Some(transport) = shutdown.run_until_cancelled(self.connect(&mut source, is_logged)).await
            else {
                return Ok(());
            };
            let connected = Instant::now();
            let (end, node) = match transport {
                NodeTransport::Ipc(guarded) => {
                    let node = SocketPeer::from_pid(guarded.node, Some(source.supervisor()));
                    (self.run_over_ipc(guarded, &node).await, Some(node))
                }
                NodeTransport::Http(verifier, _) => {
                    let file = source.file();
                    let session = Session::over_http(verifier, &self.context);
                    (session.run(|| source.file().is_some_and(|now| file != Some(now))).await, None)
                }
            };
            show_disconnected(&self.context);
            let Some(reason) = end.reason() else { return Ok(()) };
            self.context.metrics.exporter.disconnects.inc_by([reason], 1);
            self.context.status.set_not_ready(end.to_string());
            if connected.elapsed() > Backoff::MAX {
                backoff = Backoff::default();
            }
            is_logged = true;
            if let SessionEnd::NodeShutDown = end {
                if self.context.config.exit_with_node || !source.can_reopen() {
                    info!(reason, "{end}; exiting");
                    return Ok(());
                }
                info!(reason, "{end}; waiting until a node runs again");
                if let Some(node) = node {
                    shutdown.run_until_cancelled(wait_for_exit(node)).await;
                }
            } else if source.can_reopen() {
                let wait = backoff.next(Backoff::MAX);
                let suppressed = self.context.repeats.admit(&end.to_string());
                is_logged = suppressed.is_some();
                if let Some(suppressed) = suppressed {
                    warn!(reason, "{end}{suppressed}; reconnecting in {:.1} s", wait.as_secs_f64());
                }
                shutdown.run_until_cancelled(tokio::time::sleep(wait)).await;
            } else {
                return Err(anyhow!("{end}")).context(source.describe().to_string());
            }
        }
    }

    /// Shows `why` on the status page as the reason why the exporter is not connected. Returns after `time`, or when
    /// shutdown is requested.
    pub async fn wait_without_node(self, why: &str, time: Duration) {
        self.context.status.set_not_ready(why.to_string());
        self.context.shutdown.run_until_cancelled(tokio::time::sleep(time)).await;
    }

    async fn run_over_ipc(&self, guarded: GuardedSockets, node: &SocketPeer) -> SessionEnd {
        if node.is_shutting_down() == Some(true) {
            return SessionEnd::NodeShutDown;
        }
        match handshake::open_guarded(guarded, node, &self.context).await {
            Ok(session) => session.run(|| false).await,
            Err(end) => end,
        }
    }

    /// Repeats attempts to connect to the node until an attempt succeeds. Logs the reason of a failed attempt when the
    /// reason changes. Logs the successful attempt if `is_logged` is set.
    ///
    /// Attempts to connect to the IPC socket are repeated every 500 ms, because a failed attempt takes no time of the
    /// node: an attempt fails only while no node listens on the socket. If the configuration permits polling only over
    /// HTTP, the time between two attempts grows with each failure, because a running node may receive and reject each
    /// HTTP request.
    async fn connect(&self, source: &mut NodeEndpoint, is_logged: bool) -> NodeTransport {
        /// Interval between two attempts to connect to the node's IPC socket.
        const RETRY_INTERVAL: Duration = Duration::from_millis(500);
        let over_http = self.context.http_rpc.as_ref().is_some_and(|http| http.config().http_only);
        let poll_interval = self.context.config.poll_interval;
        let mut backoff = Backoff::default();
        let mut last_logged = String::new();
        loop {
            match connect_transport(source, &self.context).await {
                Ok(transport) => {
                    match &transport {
                        _ if !is_logged => debug!("reconnected"),
                        NodeTransport::Ipc(_) => info!("connected to {}", source.describe()),
                        NodeTransport::Http(_, why) => {
                            info!("no IPC ({why}): polling the node over HTTP only");
                            if self.context.config.exit_with_node {
                                warn!(
                                    "--exit-with-node has no effect: only a node with IPC announces its shutdown"
                                );
                            }
                        }
                    }
                    self.context.metrics.exporter.connects.inc();
                    self.context.status.set_not_ready("connected, not polled yet".into());
                    return transport;
                }
                Err(error) => {
                    let text = format!("{error:#}");
                    if text != last_logged {
                        self.context.warn_limited(&format!("{text}; retrying until it succeeds"));
                        show_disconnected(&self.context);
                        self.context.status.set_not_ready(text.clone());
                        last_logged = text;
                    }
                }
            }
            let wait = if over_http { backoff.next(poll_interval) } else { RETRY_INTERVAL };
            tokio::time::sleep(wait).await;
        }
    }
}

/// Waits until the node's process has exited, before the exporter connects again. An earlier connection would be
/// dangerous for the node: while it shuts down, the node still accepts connections, and aborts when a client calls an
/// interface that the node has already destroyed.
async fn wait_for_exit(node: SocketPeer) {
    /// Time for which the exporter waits if it cannot observe the exit of the node's process.
    const BLIND_TIMEOUT: Duration = Duration::from_secs(10);
    if node.ended().await.is_err() {
        tokio::time::sleep(BLIND_TIMEOUT).await;
    }
}

/// The delay before the exporter connects to the node again, after a connection that was accepted and then failed, or
/// after a failed attempt to connect over HTTP. The field is the number of these failures in a row. The delay doubles
/// with each failure. Random jitter prevents many exporters from reconnecting at the same time.
#[derive(Default)]
struct Backoff(u32);

impl Backoff {
    /// Delay before a reconnect after the first failure, which is also the minimum delay.
    const MIN: Duration = Duration::from_secs(1);
    /// Maximum delay before a reconnect.
    const MAX: Duration = Duration::from_secs(30);

    /// Returns the next delay, at most `longest`. While no node responds over HTTP, `longest` is the poll interval:
    /// with a longer delay, the exporter could miss a node in a crash loop, which is reachable only for a short time
    /// after each start.
    fn next(&mut self, longest: Duration) -> Duration {
        let full = (Self::MIN * 2u32.saturating_pow(self.0.min(5))).min(Self::MAX);
        self.0 = self.0.saturating_add(1);
        full.mul_f64(rand::random_range(0.5..=1.0)).max(Self::MIN).min(longest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_grows_from_one_to_thirty_seconds() {
        let mut backoff = Backoff::default();
        let waits: Vec<_> = (0..12).map(|_| backoff.next(Backoff::MAX)).collect();
        assert_eq!(waits[0], Backoff::MIN);
        assert!(waits.iter().all(|wait| (Backoff::MIN..=Backoff::MAX).contains(wait)));
        assert!(waits[8..].iter().all(|&wait| wait >= Backoff::MAX / 2));
    }

    #[test]
    fn backoff_over_http_never_exceeds_poll_interval() {
        let interval = Duration::from_secs(5);
        let mut backoff = Backoff::default();
        let waits: Vec<_> = (0..12).map(|_| backoff.next(interval)).collect();
        assert!(waits[0] == Backoff::MIN && waits[8..].iter().all(|&wait| wait == interval), "{waits:?}");
    }
}
