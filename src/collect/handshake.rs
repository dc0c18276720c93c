//! From a connected socket to a node that can be asked.

use std::rc::Rc;
use std::time::Duration;

use serde_json::json;
use tokio::net::UnixStream;
use tracing::{info, warn};

use super::context::{Context, UtxoTrace};
use super::session::{End, Session, take_leave};
use crate::ipc::guard::{Guard, Place};
use crate::ipc::{CallError, Connection, Interfaces, JsonRpc, Mining, Thread};
use crate::node_process::Peer;

/// Opens a session behind a guard: nothing that happens to us from here on harms the node.
pub async fn open_guarded(
    stream: UnixStream,
    place: Place,
    node: &Peer,
    context: &Rc<Context>,
) -> Result<Session, End> {
    let budget = (context.config.utxo_trace == UtxoTrace::Auto).then_some(context.config.utxo_trace_budget);
    let (stream, guard) = Guard::place(place, stream, budget).map_err(End::NoGuard)?;
    open(stream, Some(guard), node, context).await
}

/// Shakes hands over a connection behind a guard, finds out what the node offers, and waits until it has loaded its chain.
/// The fuzzer has no guard: its peer is no node.
pub async fn open(
    stream: UnixStream,
    guard: Option<Guard>,
    node: &Peer,
    context: &Rc<Context>,
) -> Result<Session, End> {
    let prepared = context.shutdown.run_until_cancelled(shake_hands(stream, node, context));
    match prepared.await.unwrap_or(Err(End::ShutdownRequested)) {
        Ok(Prepared { connection, waiting, subscribing, interfaces }) => Ok(Session {
            connection,
            guard,
            waiting,
            subscribing,
            interfaces: Rc::new(interfaces),
            context: context.clone(),
        }),
        Err(end) => Err(take_leave(guard, end).await),
    }
}

/// A connection to a node that can be asked.
struct Prepared {
    connection: Connection,
    waiting: Thread,
    subscribing: Thread,
    interfaces: Interfaces,
}

async fn shake_hands(stream: UnixStream, node: &Peer, context: &Context) -> Result<Prepared, End> {
    let connection = Connection::new(stream, context.config.call_timeout).await.map_err(End::NoNode)?;
    let prepared = tokio::select! {
        prepared = prepare(&connection, node) => prepared,
        reason = connection.closed() => Err(End::Closed(reason)),
    };
    let (waiting, subscribing, interfaces) = prepared?;
    Ok(Prepared { connection, waiting, subscribing, interfaces })
}

async fn prepare(connection: &Connection, node: &Peer) -> Result<(Thread, Thread, Interfaces), End> {
    // A thread per kind of work, so that none waits for another.
    let polling = connection.thread("exporter-poll").await?;
    let waiting = connection.thread("exporter-wait").await?;
    // Without the answer to a subscription there would be no way to end it: no deadline.
    let subscribing = connection.thread("exporter-subscribe").await?.without_deadline();
    let mut interfaces = Interfaces::discover(connection, &polling).await?.ok_or(End::NodeShutDown)?;
    match &interfaces.json_rpc {
        Some(json_rpc) => wait_for_warmup(json_rpc).await?,
        None => wait_for_message_handler(node).await,
    }
    // Answered when the chain state is loaded: no deadline.
    let mining = Mining::discover(connection, &waiting.without_deadline()).await?;
    interfaces.mining = mining.map(|mining| mining.on(&polling));
    if !interfaces.tell_the_tip() {
        wait_for_evidence(node).await;
        interfaces.mining = Mining::discover_core30(connection, &polling).await?;
    }
    if !interfaces.tell_the_tip() {
        return Err(End::NothingOffered);
    }
    info!(
        offered = interfaces.names().join(","),
        not_offered = interfaces.missing().join(","),
        "the node's interfaces"
    );
    Ok((waiting, subscribing, interfaces))
}

/// Between two looks at a node that is starting.
const RETRY_INTERVAL: Duration = Duration::from_millis(250);

/// The thread that a node starts when it has loaded its chain.
const MESSAGE_HANDLER: &str = "b-msghand";

/// A node without JSON-RPC does not say whether it has loaded its chain, and can abort when it is asked about one that it
/// has not created yet. Where its threads can be seen, waits for one that it starts after that.
async fn wait_for_message_handler(node: &Peer) {
    let mut said = false;
    while node.runs_thread(MESSAGE_HANDLER) == Some(false) {
        if !said {
            info!("the node is starting: it has no thread {MESSAGE_HANDLER} yet");
            said = true;
        }
        tokio::time::sleep(RETRY_INTERVAL).await;
    }
}

/// The same for Core 30, whose Mining interface does not wait either: it is not asked before its thread was seen.
async fn wait_for_evidence(node: &Peer) {
    if node.runs_thread(MESSAGE_HANDLER).is_none() {
        warn!(
            "this node (Bitcoin Core 30) cannot tell over IPC whether it has loaded its chain, and asking it too early \
             makes it abort. Its thread {MESSAGE_HANDLER} would tell, but its process cannot be seen in /proc; not \
             asking until it can. Run the exporter in the node's PID namespace (containers: --pid=host or \
             --pid=container:NODE; systemd: no ProtectProc=)"
        );
    }
    while node.runs_thread(MESSAGE_HANDLER) != Some(true) {
        tokio::time::sleep(RETRY_INTERVAL).await;
    }
}

/// Core's warmup: it answers JSON-RPC with an error, and its other interfaces must not be asked.
async fn wait_for_warmup(json_rpc: &JsonRpc) -> Result<(), CallError> {
    let mut said = false;
    loop {
        match json_rpc.call("uptime", json!([])).await {
            Err(error) if error.is_warmup() => {
                if !said {
                    info!("the node is starting: {error}");
                    said = true;
                }
            }
            Err(error @ (CallError::Disconnected(_) | CallError::TimedOut(_))) => return Err(error),
            _ => return Ok(()),
        }
        tokio::time::sleep(RETRY_INTERVAL).await;
    }
}
