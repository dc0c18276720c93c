//! Prepares a connection: from a connected socket to a node that can be polled.

use std::rc::Rc;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::net::UnixStream;
use tracing::info;

use super::context::Context;
use super::http_rpc_verifier::HttpRpcVerifier;
use super::next_block;
use super::session::{IpcParts, Session, SessionEnd, disconnect};
use super::tip::{LONG_POLL, NO_BLOCK};
use crate::ipc::guard::Guard;
use crate::ipc::{Interfaces, IpcConnection, Mining, NodeThread};
use crate::json_rpc::{CallError, JsonRpc, Method};
use crate::node_process::SocketPeer;
use crate::supervisor::GuardedSockets;

/// Opens a session behind a guard. From here on no failure of the exporter harms the node.
pub async fn open_guarded(
    guarded: GuardedSockets,
    node: &SocketPeer,
    context: &Rc<Context>,
) -> Result<Session, SessionEnd> {
    let (stream, guard) = Guard::new(guarded);
    open(stream, Some(guard), node, context).await
}

/// Performs the Cap'n Proto handshake, discovers the node's interfaces, and waits until the node has loaded its chain. Only the fuzzer
/// passes no guard: its peer is not a node.
pub async fn open(
    stream: UnixStream,
    guard: Option<Guard>,
    node: &SocketPeer,
    context: &Rc<Context>,
) -> Result<Session, SessionEnd> {
    let prepared = context.shutdown.run_until_cancelled(handshake(stream, node, context));
    match prepared.await.unwrap_or(Err(SessionEnd::ShutdownRequested)) {
        Ok((ipc, interfaces, http_rpc)) => {
            let ipc = IpcParts { guard, ..ipc };
            Ok(Session::new(Some(ipc), Rc::new(interfaces), http_rpc, node.process(), context))
        }
        Err(end) => Err(disconnect(guard, end).await),
    }
}

/// Returns the connection, without its guard, and the interfaces of a node that can be polled.
async fn handshake(
    stream: UnixStream,
    node: &SocketPeer,
    context: &Context,
) -> Result<(IpcParts, Interfaces, Option<HttpRpcVerifier>), SessionEnd> {
    let connection = IpcConnection::new(stream, context.config.call_timeout).await;
    let connection = connection.map_err(|error| match error {
        // A node that hangs still accepts connections.
        CallError::TimedOut(_) => SessionEnd::Failed(error),
        error => SessionEnd::NoNode(error),
    })?;
    let prepared = tokio::select! {
        prepared = discover_node(&connection, node) => prepared,
        reason = connection.closed() => Err(SessionEnd::Closed(reason)),
        () = wait_for_shutdown(node) => Err(SessionEnd::NodeShutDown),
    };
    let (waiting, subscribing, mut interfaces) = prepared?;
    let checked = async {
        tokio::select! {
            verifier = add_http_rpc(&connection, &mut interfaces, context) => verifier.map_err(SessionEnd::from),
            reason = connection.closed() => Err(SessionEnd::Closed(reason)),
            () = wait_for_shutdown(node) => Err(SessionEnd::NodeShutDown),
        }
    };
    let http_rpc = checked.await?;
    let mut building = None;
    if next_block::is_wanted(&interfaces, context.config.next_block) {
        building = Some(connection.thread("exporter-template").await?);
    }
    let ipc = IpcParts { connection, guard: None, waiting, subscribing, building };
    Ok((ipc, interfaces, http_rpc))
}

/// Adds JSON-RPC over HTTP for a node without JSON-RPC over IPC. The first poll uses it if it responds within two seconds.
async fn add_http_rpc(
    connection: &IpcConnection,
    interfaces: &mut Interfaces,
    context: &Context,
) -> Result<Option<HttpRpcVerifier>, CallError> {
    /// How long the first poll waits for the check of HTTP.
    const FIRST_CHECK_TIMEOUT: Duration = Duration::from_secs(2);
    let (None, Some(http)) = (interfaces.json_rpc(), &context.http_rpc) else { return Ok(None) };
    let verifier = HttpRpcVerifier::new(http.clone(), interfaces, &connection.thread("exporter-http").await?);
    interfaces.http = Some(http.clone());
    let _ = tokio::time::timeout(FIRST_CHECK_TIMEOUT, verifier.verify()).await; // the session continues the checks
    Ok(Some(verifier))
}

/// Resolves when the node shuts down. Such a node looks like one that is starting, and does not exit before the exporter disconnects.
async fn wait_for_shutdown(node: &SocketPeer) {
    const CHECK_INTERVAL: Duration = Duration::from_millis(50);
    while node.is_shutting_down() != Some(true) {
        tokio::time::sleep(CHECK_INTERVAL).await;
    }
}

/// Creates the node's threads, discovers its interfaces, and waits until it has loaded its chain.
async fn discover_node(
    connection: &IpcConnection,
    node: &SocketPeer,
) -> Result<(NodeThread, NodeThread, Interfaces), SessionEnd> {
    // One thread for each type of work, so that none waits for another.
    let polling = connection.thread("exporter-poll").await?;
    let waiting = connection.thread("exporter-wait").await?;
    // No deadline: without the response to a subscribe call the subscription could not be ended.
    let subscribing = connection.thread("exporter-subscribe").await?.without_deadline();
    let mut interfaces = Interfaces::discover(connection, &polling).await?.ok_or(SessionEnd::NodeShutDown)?;
    match interfaces.json_rpc() {
        Some(json_rpc) => wait_for_warmup(&json_rpc, node).await?,
        None => wait_for_message_handler(node).await,
    }
    // No deadline: the node responds when its chain state is loaded.
    let mining = Mining::discover(connection, &waiting.without_deadline()).await?;
    interfaces.mining = mining.map(|mining| mining.on_thread(&polling));
    if interfaces.mining.is_none() && interfaces.json_rpc().is_some() {
        // A node with JSON-RPC over IPC has Mining until it shuts down. Its process shows the shutdown a moment later.
        match node.is_shutting_down() {
            Some(_) => tokio::time::sleep(Duration::from_millis(500)).await,
            None => return Err(SessionEnd::NodeShutDown),
        }
    }
    if !interfaces.has_tip_source() {
        wait_for_evidence(node).await?;
        interfaces.mining = Mining::discover_core30(connection, &polling).await?;
    }
    if !interfaces.has_tip_source() {
        return Err(SessionEnd::NothingOffered);
    }
    // Make no other call to a node that is shutting down: it would never respond to estimatesmartfee.
    if let Some(mining) = &interfaces.mining
        && let Ok(None) = mining
            .on_thread(&waiting.with_extra_timeout(LONG_POLL))
            .wait_tip_changed(NO_BLOCK, LONG_POLL)
            .await
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

/// Time between two checks of a node that is starting.
const RETRY_INTERVAL: Duration = Duration::from_millis(250);

/// Name of the thread that a node starts when it has loaded its chain.
const MESSAGE_HANDLER: &str = "b-msghand";

/// Waits until a node without JSON-RPC has loaded its chain, if its threads are visible. Such a node does not report whether it has,
/// and can abort when a call needs a chain that is not created yet. It starts its message handler thread once the chain is loaded.
async fn wait_for_message_handler(node: &SocketPeer) {
    let mut is_logged = false;
    while node.runs_thread(MESSAGE_HANDLER) == Some(false) {
        if !is_logged {
            info!("the node is starting: its thread {MESSAGE_HANDLER} does not exist yet");
            is_logged = true;
        }
        tokio::time::sleep(RETRY_INTERVAL).await;
    }
}

/// Waits until a Core 30 node has loaded its chain. Its Mining interface does not wait for the chain, and is not called before the
/// message handler thread was seen. Returns an error if the threads are not visible.
async fn wait_for_evidence(node: &SocketPeer) -> Result<(), SessionEnd> {
    loop {
        match node.runs_thread(MESSAGE_HANDLER) {
            Some(true) => return Ok(()),
            Some(false) => tokio::time::sleep(RETRY_INTERVAL).await,
            None => return Err(SessionEnd::NoEvidence),
        }
    }
}

/// Waits until Core's warmup is over. During warmup the node responds to JSON-RPC with an error, and its other interfaces must not be
/// called.
///
/// A node that is shutting down can return the same error. If its process is not visible, the exporter disconnects after five seconds,
/// because the node does not exit before the exporter disconnects.
async fn wait_for_warmup(json_rpc: &JsonRpc, node: &SocketPeer) -> Result<(), SessionEnd> {
    /// How long to wait for a node whose process is not visible.
    const MAX_BLIND_WAIT: Duration = Duration::from_secs(5);
    let since = Instant::now();
    let mut is_logged = false;
    loop {
        match json_rpc.call(Method::Uptime, json!([])).await {
            Err(error) if error.is_warmup() => {
                if !is_logged {
                    info!("the node is starting: {error}");
                    is_logged = true;
                }
                if node.is_shutting_down().is_none() && since.elapsed() > MAX_BLIND_WAIT {
                    return Err(SessionEnd::Loading(error));
                }
            }
            Err(error @ (CallError::Disconnected(_) | CallError::TimedOut(_))) => return Err(error.into()),
            _ => return Ok(()),
        }
        tokio::time::sleep(RETRY_INTERVAL).await;
    }
}
