//! The metrics that bitcoind-usdt-exporter exports about itself, even if no tracepoint is attached.

use super::bpf::validation::types::errors;
use super::maps::{Maps, Pod};
use crate::metrics::{Family, counter, gauge};
use crate::own_process::STARTED;

// SAFETY: `struct errors` of common.h consists of u64 fields only, and all BPF files include that declaration.
unsafe impl Pod for errors {}

const EXPORTER: &[&str] = &["the exporter"];

/// The metrics about the exporter. `attached` is the number of currently attached tracepoints. `events_processed` has
/// the number of hits by tracepoint, and `errors` the number of errors in the BPF programs by type.
#[rustfmt::skip]
pub(super) fn families(
    attached: usize,
    events_processed: Vec<(&'static str, u64)>,
    errors: Vec<(&'static str, u64)>,
) -> Vec<Family> {
    let by_name = |counts: Vec<(&'static str, u64)>| counts.into_iter().map(|(name, count)| ([name], count));
    let build = [env!("CARGO_PKG_VERSION"), env!("BUILD_REVISION"), env!("BUILD_RUSTC")];
    vec![
        gauge("fibre_exporter_up", "1 while the exporter runs", EXPORTER).value(1.0),
        gauge("fibre_exporter_start_time_seconds", "Start time of the exporter, Unix seconds", EXPORTER).value(*STARTED),
        gauge("fibre_exporter_probes_attached", "Number of attached tracepoints", EXPORTER).value(attached as f64),
        counter("fibre_exporter_events_processed_total", "FIBRE tracepoint events counted, by tracepoint", EXPORTER)
            .by(&["event_type"]).samples(by_name(events_processed)),
        counter("fibre_exporter_errors_total",
            "Events that were lost or read incompletely, by cause: `argument` (an argument could not be read), \
             `unreadable` (memory was not resident), `lost` (the buffer for log events was full)", EXPORTER)
            .by(&["error_type"]).samples(by_name(errors)),
        gauge("fibre_exporter_info", "Always 1, with the exporter's version as a label", EXPORTER)
            .by(&["version"]).samples([([env!("CARGO_PKG_VERSION")], 1.0)]),
        gauge("bitcoind_usdt_exporter_build_info", "Always 1, with the version, revision and compiler of this binary as labels", EXPORTER)
            .by(&["version", "revision", "rustc"]).samples([(build, 1.0)]),
    ]
}

/// Number of errors in the BPF programs by type, summed over the `errors_map` of all groups.
pub(super) fn errors<'a>(groups: impl Iterator<Item = &'a Maps>) -> Vec<(&'static str, u64)> {
    let each: Vec<errors> = groups.map(|maps| maps.sum("errors_map")).collect();
    let sum = |field: fn(&errors) -> u64| each.iter().map(field).sum();
    vec![
        ("argument", sum(|errors| errors.argument)),
        ("unreadable", sum(|errors| errors.unreadable)),
        ("lost", sum(|errors| errors.lost)),
    ]
}
