//! The text that bitcoind-usdt-exporter prints to stdout at startup.

use std::path::PathBuf;

use super::attach_loop::TracedNode;
use super::probes;

/// The text with the path of the traced binary, the node's name, the addresses of the metrics and of the health check,
/// and a line for each tracepoint. `traced` is `None` if the exporter waits for a node.
pub fn text(
    binary: Option<&PathBuf>,
    traced: Option<&TracedNode>,
    node_name: &str,
    metrics_at: &str,
    health_at: &str,
) -> String {
    let binary = binary.or(traced.map(|traced| &traced.node.binary));
    let binary = binary.map_or("waiting for one to run".into(), |binary| binary.display().to_string());
    let attached = traced.map(attached).unwrap_or_default();
    let awaited = if traced.is_some() { "FIBRE events" } else { "the node" };
    format!(
        "FIBRE USDT Metrics Exporter\n  bitcoind: {binary}\n  metrics: {metrics_at}\n  node: {node_name}\n{attached}\n\
         Prometheus metrics available at {metrics_at}/metrics\nHealth check available at {health_at}/health\n\
         Waiting for {awaited}...\n"
    )
}

/// A line for each tracepoint: whether the tracepoint is attached, and if not, the reason.
fn attached(TracedNode { node, attached, .. }: &TracedNode) -> String {
    let sites =
        probes::sites(&node.running_binary()).or_else(|_| probes::sites(&node.binary)).unwrap_or_default();
    let has = |name: &str| sites.iter().any(|site| name == site.probe());
    let lines = attached.iter().map(|probe| match &probe.result {
        Ok(()) => format!("  ✓ Attached: {}\n", probe.name),
        Err(error) if has(&probe.name) => format!("  ✗ Failed: {}: {error:#}\n", probe.name),
        Err(_) => format!("  ✗ Not in the binary: {}\n", probe.name),
    });
    let good = attached.iter().filter(|probe| probe.result.is_ok()).count();
    let total = format!("\n  {good}/{} probes attached successfully\n", attached.len());
    lines.chain([total]).collect()
}
