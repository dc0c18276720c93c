//! The text that the exporter prints to stdout at startup.

use std::io::{self, Write};
use std::path::PathBuf;

use super::{AttachResult, probes};
use crate::node_process::NodeProcess;

/// Prints the path of the traced binary, the address of the metrics, and the node's name.
///
/// # Errors
/// The output cannot be written.
pub fn print_start(
    output: &mut impl Write,
    binary: Option<&PathBuf>,
    node: Option<&NodeProcess>,
    metrics_at: &str,
    node_name: &str,
) -> io::Result<()> {
    writeln!(output, "FIBRE USDT Metrics Exporter")?;
    match binary.or(node.map(|node| &node.binary)) {
        Some(binary) => writeln!(output, "  bitcoind: {}", binary.display())?,
        None => writeln!(output, "  bitcoind: waiting for one to run")?,
    }
    writeln!(output, "  metrics: {metrics_at}")?;
    writeln!(output, "  node: {node_name}")
}

/// Prints a line for each tracepoint: whether the tracepoint is attached, and if not, the reason.
///
/// # Errors
/// The output cannot be written.
pub fn print_attached(
    output: &mut impl Write,
    node: &NodeProcess,
    attached: &[AttachResult],
) -> io::Result<()> {
    let sites =
        probes::sites(&node.running_binary()).or_else(|_| probes::sites(&node.binary)).unwrap_or_default();
    let has = |name: &str| sites.iter().any(|site| name == site.probe());
    for probe in attached {
        match &probe.result {
            Ok(()) => writeln!(output, "  ✓ Attached: {}", probe.name)?,
            Err(error) if has(&probe.name) => writeln!(output, "  ✗ Failed: {}: {error:#}", probe.name)?,
            Err(_) => writeln!(output, "  ✗ Not in the binary: {}", probe.name)?,
        }
    }
    let good = attached.iter().filter(|probe| probe.result.is_ok()).count();
    writeln!(output, "\n  {good}/{} probes attached successfully", attached.len())
}

/// Prints the addresses of the metrics and of the health check, and whether the exporter waits for events or for the
/// node.
///
/// # Errors
/// The output cannot be written.
pub fn print_started(
    output: &mut impl Write,
    node: Option<&NodeProcess>,
    metrics_at: &str,
    health_at: &str,
) -> io::Result<()> {
    writeln!(output, "\nPrometheus metrics available at {metrics_at}/metrics")?;
    writeln!(output, "Health check available at {health_at}/health")?;
    match node {
        Some(_) => writeln!(output, "Waiting for FIBRE events..."),
        None => writeln!(output, "Waiting for the node..."),
    }
}
