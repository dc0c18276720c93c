//! What the exporter says of itself: its own metrics, and what it prints when it starts.

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::LazyLock;

use libbpf_rs::MapHandle;
use prometheus_client::collector::Collector;

use super::maps;
use super::subject::{counts_by, one};
use super::{Attached, Subject, blocks, probes, validation};
use crate::metrics::{self, Family, Kind, Reading, Row, Sample, now};
use crate::node_process::Node;

/// What the exporter knows of itself at one moment.
pub(super) struct Totals {
    /// Tracepoints that are attached.
    pub attached: usize,
    /// (tracepoint, count)
    pub events_processed: Vec<(&'static str, u64)>,
    pub errors: Vec<(&'static str, u64)>,
}

/// Unix seconds.
static STARTED: LazyLock<f64> = LazyLock::new(now);

fn value(value: f64) -> Vec<Sample> {
    one(Reading::Value(value))
}

macro_rules! family {
    ($kind:ident $name:literal [$($label:literal),*] $help:literal, |$totals:ident| $read:expr) => {
        Family {
            name: $name,
            kind: Kind::$kind,
            labels: &[$($label),*],
            help: $help,
            sources: &["the exporter"],
            read: |$totals| $read,
        }
    };
}

/// Known whether or not anything was attached.
static FAMILIES: &[Family<Totals>] = &[
    family!(Gauge "fibre_exporter_up" [] "1 while the exporter runs", |_t| value(1.0)),
    family!(Gauge "fibre_exporter_start_time_seconds" [] "Start of the exporter, Unix seconds", |_t| value(*STARTED)),
    family!(Gauge "fibre_exporter_probes_attached" [] "Tracepoints that are attached at present",
        |t| value(t.attached as f64)),
    family!(Counter "fibre_exporter_events_processed_total" ["event_type"] "FIBRE events counted, by tracepoint",
        |t| counts_by(t.events_processed.iter().copied())),
    family!(Counter "fibre_exporter_errors_total" ["error_type"]
        "Events that were lost or not read whole: an argument that could not be fetched, memory that is not resident, log \
         events without room",
        |t| counts_by(t.errors.iter().copied())),
    family!(Gauge "fibre_exporter_info" ["version"] "1, with the exporter's version",
        |_t| vec![Sample(vec![env!("CARGO_PKG_VERSION").into()], Reading::Value(1.0))]),
    family!(Gauge "bitcoind_usdt_exporter_build_info" ["version", "revision", "rustc"]
    "1, with what this binary was built from as labels",
    |_t| vec![Sample(
        [env!("CARGO_PKG_VERSION"), env!("BUILD_REVISION"), env!("BUILD_RUSTC")].map(String::from).into(),
        Reading::Value(1.0),
    )]),
];

pub(super) fn collector(totals: impl Fn() -> Totals + Send + Sync + 'static) -> Box<dyn Collector> {
    LazyLock::force(&STARTED);
    metrics::collector(FAMILIES, totals)
}

/// The sums of all subjects' `errors_map`.
pub(super) fn errors(maps: &[MapHandle]) -> Vec<(&'static str, u64)> {
    let each: Vec<validation::Errors> = maps.iter().filter_map(maps::sum).collect();
    let sum = |of: fn(&validation::Errors) -> u64| each.iter().map(of).sum();
    vec![
        ("argument", sum(|errors| errors.argument)),
        ("unreadable", sum(|errors| errors.unreadable)),
        ("lost", sum(|errors| errors.lost)),
    ]
}

/// Lines of `METRICS.md`.
pub fn rows() -> Vec<Row> {
    let subjects = Subject::ALL.iter().flat_map(|subject| (subject.functions().rows)());
    subjects
        .chain(blocks::rows())
        .chain(metrics::reference(FAMILIES))
        .chain(metrics::process_rows())
        .collect()
}

/// Prints what is traced and where its metrics will be.
pub fn print_start(
    output: &mut impl Write,
    binary: Option<&PathBuf>,
    node: Option<&Node>,
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

/// Prints what became of each tracepoint.
pub fn print_attached(output: &mut impl Write, node: &Node, attached: &[Attached]) -> io::Result<()> {
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

/// Prints where to look now.
pub fn print_started(
    output: &mut impl Write,
    node: Option<&Node>,
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
