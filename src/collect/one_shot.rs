//! Implements the options `--once`, which prints the metrics of one poll of the node, and `--check`, which prints a
//! description of the node.

use std::collections::BTreeSet;
use std::rc::Rc;

use anyhow::{Context as _, Result, anyhow, bail};

use super::collector::{NodeTransport, connect_transport};
use super::context::Context;
use super::handshake::open_guarded;
use super::session::{Session, show_connected};
use crate::ipc::endpoint::NodeEndpoint;
use crate::ipc::{Interface, Interfaces};
use crate::node_process::SocketPeer;

/// Connects to the node and polls it once. Stores the polled values in the metrics, and returns the node's interfaces.
///
/// # Errors
/// The exporter cannot connect to the node, the poll failed, or JSON-RPC over HTTP is required and not usable.
pub async fn once(source: &mut NodeEndpoint, context: Context) -> Result<Rc<Interfaces>> {
    let context = Rc::new(context);
    context.metrics.exporter.connects.inc();
    let mut session = match connect_transport(source, &context).await? {
        NodeTransport::Ipc(guarded) => {
            let node = SocketPeer::from_pid(guarded.node, Some(source.supervisor()));
            let opened = open_guarded(guarded, &node, &context).await;
            opened.map_err(|end| anyhow!("{end}")).context(source.describe().to_string())?
        }
        NodeTransport::Http(verifier, _) => Session::over_http(verifier, &context),
    };
    if let Some(verifier) = &session.http_rpc
        && !session.interfaces.offers(Interface::HttpRpc)
    {
        verifier.verify().await; // repeats the check with the full call timeout
    }
    let polled = session.poller().poll().await;
    if let Some(mut poller) = session.template_poller() {
        let _ = tokio::time::timeout(context.config.call_timeout, poller.poll(None)).await;
    }
    let interfaces = session.interfaces.clone();
    session.close().await;
    polled.map_err(|why| anyhow!("the poll failed: {why}"))?;
    if let Some(http) = &context.http_rpc
        && interfaces.uses_http()
        && !interfaces.is_http_only()
        && http.config().required
        && !http.is_usable()
    {
        bail!("--rpc on: {}", http.unusable_reason());
    }
    show_connected(&interfaces, &context);
    Ok(interfaces)
}

/// Connects to the node, polls it once, and returns a description of the node: its version, its interfaces, and the
/// names of the metrics that the poll set.
///
/// # Errors
/// See [`once`].
pub async fn check(source: &mut NodeEndpoint, context: Context) -> Result<String> {
    let metrics = context.metrics.clone();
    let http = context.http_rpc.clone();
    let interfaces = once(source, context).await?;
    let http = http.filter(|_| interfaces.uses_http()).map(|http| {
        if http.is_usable() {
            format!("JSON-RPC over HTTP: {}, {}", http.config().url, http.config().credentials.describe())
        } else {
            format!("JSON-RPC over HTTP is not used: {}", http.unusable_reason())
        }
    });
    let connection = match interfaces.names()[..] {
        [only] if only == Interface::HttpRpc.name() => format!("HTTP only ({})", source.describe()),
        _ => source.describe().to_string(),
    };
    let info = metrics.node.node_info.labels_present().pop().map(|labels| {
        let labels = labels.iter().map(|(name, value)| format!("{name}={value:?}"));
        labels.collect::<Vec<_>>().join(",")
    });
    let info = info.unwrap_or("unknown version".into());
    let mut lines = vec![format!("connection: {connection}"), format!("node: {info}")];
    lines.extend(http);
    lines.extend(Interface::all().map(|interface| {
        let offered = if interfaces.offers(interface) { "yes" } else { "no " };
        format!("interface {:<9}{offered} {}", interface.name(), interface.description())
    }));
    if interfaces.chain.is_some() {
        lines.push("schema of chain: ordinals of branch pr/trace, found by relayMinFee @27".into());
    } else if interfaces.has_unknown_chain {
        lines.push("schema of chain: unknown ordinals, so the interface is not used".into());
    }
    lines.extend(advice_for(&interfaces).iter().map(|advice| format!("to get more metrics: {advice}")));
    lines.push("metrics of one poll:".into());
    let is_polled = |name: &&str| {
        name.starts_with("bitcoin_") && !name.starts_with("bitcoin_exporter_") && *name != "bitcoin_up"
    };
    let polled: BTreeSet<_> = metrics.present().into_iter().filter(is_polled).collect();
    lines.extend(polled.iter().map(|name| format!("  {name}")));
    Ok(lines.join("\n") + "\n")
}

/// Returns advice on how to get more metrics from this node.
fn advice_for(interfaces: &Interfaces) -> Vec<&'static str> {
    let offers = |interface| interfaces.offers(interface);
    let mut advice = Vec::new();
    if !interfaces.json_rpc().is_some_and(|json_rpc| json_rpc.is_available()) {
        advice.push("enable JSON-RPC over HTTP (--rpc on) for chain, mempool, fees, peers and traffic");
    }
    if !offers(Interface::Mining) && offers(Interface::HttpRpc) {
        advice.push(
            "run bitcoin-node with -ipcbind=unix (Bitcoin Core 30 or later: bitcoin -m node -ipcbind=unix) for the metrics \
             of the node as a process, and its shutdown",
        );
    }
    if !offers(Interface::Chain) {
        advice.push(
            "run bitcoind-usdt-exporter to count each transaction that enters or leaves the mempool, if the node has \
             tracepoints",
        );
    }
    advice
}
