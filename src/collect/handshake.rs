//! Prepares a connection over IPC: creates threads in the node, discovers the node's interfaces, and waits until the
//! node has loaded its chain. The result is a session, which polls the node.

use std::rc::Rc;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::net::UnixStream;
use tracing::info;

use super::context::Context;
use super::http_rpc_verifier::HttpRpcVerifier;
use super::next_block;
use super::session::{IpcParts, Session, SessionEnd, disconnect};
use super::tip::NO_BLOCK;
use crate::ipc::guard::Guard;
use crate::ipc::{Interfaces, IpcConnection, LONG_POLL, Mining, MiningSchema, NodeThread};
use crate::json_rpc::{CallError, JsonRpc};
use crate::node_process::SocketPeer;
use crate::supervisor::GuardedSockets;

/// Opens a session on the sockets of a guard, the process that relays the messages between the node and the exporter.
/// The guard disconnects cleanly from the node even if the exporter crashes.
///
/// # Errors
/// The handshake failed, the node cannot be polled, or shutdown of the exporter was requested.
pub async fn open_guarded(
    guarded: GuardedSockets,
    node: &SocketPeer,
    context: &Rc<Context>,
) -> Result<Session, SessionEnd> {
    let (stream, guard) = Guard::new(guarded);
    open(stream, Some(guard), node, context).await
}

/// Performs the Cap'n Proto handshake, discovers the node's interfaces, and waits until the node has loaded its chain.
/// `guard` is `None` only in the fuzzer, which plays the role of the node.
///
/// # Errors
/// The handshake failed, the node cannot be polled, or shutdown of the exporter was requested.
pub async fn open(
    stream: UnixStream,
    guard: Option<Guard>,
    node: &SocketPeer,
    context: &Rc<Context>,
) -> Result<Session, SessionEnd> {
    let prepared = context.shutdown.run_until_cancelled(handshake(stream, node, context));
    match prepared.await.unwrap_or(Err(SessionEnd::ShutdownRequested)) {
        Ok((ipc, interfaces, http_rpc)) => {
            let ipc = Some(IpcParts { guard, ..ipc });
            let (interfaces, context) = (Rc::new(interfaces), context.clone());
            Ok(Session { ipc, interfaces, http_rpc, process: node.process(), context })
        }
        Err(end) => Err(disconnect(guard, end).await),
    }
}

/// Prepares the node for polls. Returns the connection without its guard, the node's interfaces, and the verifier of
/// JSON-RPC over HTTP, if the exporter may use HTTP for this node.
async fn handshake(
    stream: UnixStream,
    node: &SocketPeer,
    context: &Context,
) -> Result<(IpcParts, Interfaces, Option<HttpRpcVerifier>), SessionEnd> {
    let connection = IpcConnection::new(stream, context.config.call_timeout).await;
    let connection = connection.map_err(|error| match error {
        // The kernel accepts connections to the socket even if the node hangs, so a timeout does not show that the
        // process behind the socket is not a node.
        CallError::TimedOut(_) => error.into(),
        error => SessionEnd::Refused(format!(
            "no Bitcoin node responds there: {error}; check that it is the socket of bitcoin-node -ipcbind=unix"
        )),
    })?;
    let prepared = async {
        let (waiting, subscribing, mut interfaces) = discover_node(&connection, node).await?;
        let http_rpc = add_http_rpc(&connection, &mut interfaces, context).await?;
        let mut building = None;
        if next_block::is_wanted(&interfaces, context.config.next_block) {
            building = Some(connection.thread("exporter-template").await?);
        }
        Ok((waiting, subscribing, building, interfaces, http_rpc))
    };
    let prepared = tokio::select! {
        prepared = prepared => prepared,
        why = connection.closed() => Err(SessionEnd::closed(why)),
        () = wait_for_shutdown(node) => Err(SessionEnd::NodeShutDown),
    };
    let (waiting, subscribing, building, interfaces, http_rpc) = prepared?;
    let ipc = IpcParts { connection, guard: None, waiting, subscribing, building };
    Ok((ipc, interfaces, http_rpc))
}

/// Adds JSON-RPC over HTTP to the interfaces of a node without JSON-RPC over IPC. The first poll uses HTTP if the check
/// that HTTP reaches the same node succeeds within two seconds.
async fn add_http_rpc(
    connection: &IpcConnection,
    interfaces: &mut Interfaces,
    context: &Context,
) -> Result<Option<HttpRpcVerifier>, CallError> {
    /// Maximum time for which the first poll waits for the check that HTTP reaches the same node.
    const FIRST_CHECK_TIMEOUT: Duration = Duration::from_secs(2);
    let (None, Some(http)) = (interfaces.json_rpc(), &context.http_rpc) else { return Ok(None) };
    let verifier = HttpRpcVerifier::new(http.clone(), interfaces, &connection.thread("exporter-http").await?);
    interfaces.http = Some(http.clone());
    // After a timeout, the session repeats the check.
    let _ = tokio::time::timeout(FIRST_CHECK_TIMEOUT, verifier.verify()).await;
    Ok(Some(verifier))
}

/// Waits until the node is shutting down, which the name of its main thread in `/proc` shows. The responses over IPC do
/// not distinguish a node that is shutting down from a node that is starting, and a node that is shutting down does not
/// exit before the exporter disconnects.
async fn wait_for_shutdown(node: &SocketPeer) {
    const CHECK_INTERVAL: Duration = Duration::from_millis(50);
    while node.is_shutting_down() != Some(true) {
        tokio::time::sleep(CHECK_INTERVAL).await;
    }
}

/// Creates threads in the node, discovers the node's interfaces, and waits until the node has loaded its chain.
async fn discover_node(
    connection: &IpcConnection,
    node: &SocketPeer,
) -> Result<(NodeThread, NodeThread, Interfaces), SessionEnd> {
    // Each type of work has its own thread, so a call of one type does not wait for a call of another type.
    let polling = connection.thread("exporter-poll").await?;
    let waiting = connection.thread("exporter-wait").await?;
    // Calls on this thread have no deadline, because without the response to a subscribe call the exporter
    // could not end the subscription.
    let subscribing = connection.thread("exporter-subscribe").await?.without_deadline();
    let mut interfaces = Interfaces::discover(connection, &polling).await?.ok_or(SessionEnd::NodeShutDown)?;
    match interfaces.json_rpc() {
        Some(json_rpc) => wait_for_warmup(&json_rpc, node).await?,
        None => {
            wait_for_message_handler(node).await;
        }
    }
    // This call has no deadline, because the node responds only when its chain state is loaded.
    let mining = Mining::discover(connection, &waiting.without_deadline(), MiningSchema::Core31).await?;
    interfaces.mining = mining.map(|mining| mining.on_thread(&polling));
    if interfaces.mining.is_none() && interfaces.json_rpc().is_some() {
        // A node with JSON-RPC over IPC offers Mining unless it is shutting down. If the node's process is visible,
        // `wait_for_shutdown` detects the shutdown within the next 500 ms.
        match node.is_shutting_down() {
            Some(_) => tokio::time::sleep(Duration::from_millis(500)).await,
            None => return Err(SessionEnd::NodeShutDown),
        }
    }
    if !interfaces.has_tip_source() {
        // Bitcoin Core 30 aborts if its Mining interface is called before the chain is loaded.
        if !wait_for_message_handler(node).await {
            return Err(SessionEnd::Refused(NO_EVIDENCE.into()));
        }
        interfaces.mining = Mining::discover(connection, &polling, MiningSchema::Core30).await?;
    }
    if !interfaces.has_tip_source() {
        return Err(SessionEnd::Refused(
            "the node has none of the interfaces Mining, Rpc, Chain and Node; use bitcoin-node of Bitcoin Core 30 or later"
                .into(),
        ));
    }
    // After the discovery, call `wait_tip_changed` with `NO_BLOCK`, to which the node responds immediately, because the
    // response shows whether the node is shutting down. No other call must be made to a node that is shutting down; for
    // example, such a node never responds to estimatesmartfee.
    if let Some(mining) = &interfaces.mining
        && let Ok(None) =
            mining.on_thread(&waiting.with_extra_timeout(LONG_POLL)).wait_tip_changed(NO_BLOCK).await
    {
        return Err(SessionEnd::NodeShutDown);
    }
    info!(
        offered = interfaces.names().join(","),
        not_offered = interfaces.missing().join(","),
        "the node's interfaces"
    );
    Ok((waiting, subscribing, interfaces))
}

/// Interval between two checks whether a starting node has loaded its chain.
const RETRY_INTERVAL: Duration = Duration::from_millis(250);

/// Name of the thread that a node starts when it has loaded its chain.
const MESSAGE_HANDLER: &str = "b-msghand";

/// Waits until a node without JSON-RPC over IPC has loaded its chain. Such a node does not report whether it has loaded
/// the chain, and can abort if a call needs the chain before it is loaded. The node starts its message handler thread
/// once the chain is loaded. Returns false at once if the node's threads are not visible in `/proc`.
async fn wait_for_message_handler(node: &SocketPeer) -> bool {
    let mut is_logged = false;
    loop {
        match node.runs_thread(MESSAGE_HANDLER) {
            Some(false) if is_logged => {}
            Some(false) => info!("the node is starting: its thread {MESSAGE_HANDLER} does not exist yet"),
            runs => return runs.is_some(),
        }
        is_logged = true;
        tokio::time::sleep(RETRY_INTERVAL).await;
    }
}

/// The reason why a node of Bitcoin Core 30 whose process is not visible in `/proc` is not polled.
const NO_EVIDENCE: &str = "this node (Bitcoin Core 30) does not report over IPC whether it has loaded its chain, and aborts if it is queried \
     too early. Its thread b-msghand would show it, but its process is not visible in /proc; waiting until it is. Run \
     the exporter in the node's PID namespace (containers: --pid=host or --pid=container:NODE; systemd: no \
     ProtectProc=), and connect to the node's own socket, not to a proxy's";

/// Waits until Bitcoin Core's RPC warmup is over, the time in which a starting node loads its chain. During warmup the
/// node responds to JSON-RPC calls with the error RPC_IN_WARMUP, and its other interfaces must not be called.
///
/// A node that is shutting down can return the same error RPC_IN_WARMUP, and does not exit before the exporter
/// disconnects. If the node's process is not visible in `/proc`, the exporter cannot detect the shutdown, and therefore
/// disconnects after five seconds.
async fn wait_for_warmup(json_rpc: &JsonRpc, node: &SocketPeer) -> Result<(), SessionEnd> {
    /// Maximum time for which the exporter waits for the end of the warmup, if the node's process is not visible in
    /// `/proc`.
    const MAX_BLIND_WAIT: Duration = Duration::from_secs(5);
    let since = Instant::now();
    let mut is_logged = false;
    loop {
        match json_rpc.call("uptime", json!([])).await {
            Err(error) if error.is_warmup() => {
                if !is_logged {
                    info!("the node is starting: {error}");
                    is_logged = true;
                }
                if node.is_shutting_down().is_none() && since.elapsed() > MAX_BLIND_WAIT {
                    return Err(SessionEnd::Refused(format!("the node is starting: {error}")));
                }
            }
            Err(error @ (CallError::Disconnected(_) | CallError::TimedOut(_))) => return Err(error.into()),
            _ => return Ok(()),
        }
        tokio::time::sleep(RETRY_INTERVAL).await;
    }
}
