//! `--once` and `--check`: one connection, one poll.

use std::collections::BTreeSet;
use std::rc::Rc;

use anyhow::{Context as _, Result, anyhow};

use super::context::Context;
use super::handshake::open_guarded;
use super::session::show_up;
use crate::ipc::guard::Places;
use crate::ipc::source::Source;
use crate::ipc::{Interface, Interfaces};
use crate::metrics::Metrics;
use crate::node_process::Peer;

/// Connects once and polls once. Returns what the node offers; the metrics have what it answered.
pub async fn once(source: &mut Source, context: Context) -> Result<Rc<Interfaces>> {
    let context = Rc::new(context);
    context.metrics.exporter.connects.inc();
    let stream = source.open().await?;
    let node = Peer::of(&stream);
    let session = open_guarded(stream, Places::new().take().await, &node, &context)
        .await
        .map_err(|end| anyhow!("{end}"))
        .context(source.describe().to_string())?;
    let polled = session.poller().poll().await;
    let interfaces = session.interfaces.clone();
    session.close().await;
    polled.map_err(|why| anyhow!("the poll failed: {why}"))?;
    show_up(&interfaces, &context.metrics);
    Ok(interfaces)
}

/// Connects once and describes the node: what it is, what it offers, and which metrics follow from it.
pub async fn check(source: &mut Source, context: Context) -> Result<String> {
    let metrics = context.metrics.clone();
    let interfaces = once(source, context).await?;
    Ok(describe(&interfaces, &metrics, source.describe()))
}

fn describe(interfaces: &Interfaces, metrics: &Metrics, connection: &str) -> String {
    let info = metrics.node.node_info.labels_present().pop().map(|labels| {
        let labels = labels.iter().map(|(name, value)| format!("{name}={value:?}"));
        labels.collect::<Vec<_>>().join(",")
    });
    let info = info.unwrap_or("it does not tell its name".into());
    let mut described = format!("connection: {connection}\nnode: {info}\n");
    for interface in Interface::ALL {
        let offered = if interfaces.offers(interface) { "yes" } else { "no " };
        let (name, gives) = (interface.name(), interface.gives());
        described.push_str(&format!("interface {name:<8}{offered} {gives}\n"));
    }
    described.push_str("metrics from one poll:\n");
    let polled: BTreeSet<&str> = metrics
        .present()
        .filter(|name| name.starts_with("bitcoin_") && !name.starts_with("bitcoin_exporter_"))
        .filter(|name| *name != "bitcoin_up")
        .collect();
    for name in polled {
        described.push_str(&format!("  {name}\n"));
    }
    described
}
