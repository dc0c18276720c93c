//! The exporter itself and its connection to the node.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::Histogram;

use super::declare::Declare;
use super::families::{EventCounter, Labeled, OwnGauge, SecondsCounter};
use super::samples::Value;

/// Ourselves. Units are in the names; see `METRICS.md`.
#[allow(missing_docs, reason = "each field's documentation is its metric's help text")]
pub struct Exporter {
    pub up: OwnGauge,
    pub interface: Labeled<1, Value>,
    pub http_rpc_failures: Labeled<1, Counter>,
    pub utxo_trace: Labeled<1, Value>,
    pub connects: EventCounter,
    pub disconnects: Labeled<1, Counter>,
    pub poll_duration: Histogram,
    pub poll_failures: Labeled<1, Counter>,
    pub last_poll: OwnGauge,
    pub callbacks: Labeled<1, Counter>,
    pub callback_duration: Histogram,
    pub guard_run_delay: SecondsCounter,
    pub events_dropped: Labeled<1, Counter>,
    pub rejected_calls: Labeled<1, Counter>,
}

impl Exporter {
    pub(super) fn declare(d: &mut Declare) -> Self {
        let own = "the exporter";
        let exporter = Exporter {
            up: d.own_gauge("bitcoin_up",
                "1 while the connection to the node works and the last poll succeeded, else 0",
                own,
            ),
            interface: d.own_gauge_by(
                "bitcoin_exporter_interface",
                ["interface"],
                "1 for each IPC interface that the node offers; for http-rpc 1 while JSON-RPC over HTTP works, 0 while it is \
                 wanted and does not",
                own,
            ),
            http_rpc_failures: d.counter_by(
                "bitcoin_exporter_http_rpc_failures_total",
                ["cause"],
                "Failed requests over HTTP, by cause: refused (connection), timeout, unauthorized (401), busy (503 twice), \
                 warmup (the node is starting), different_node, too_large, forbidden (403), other",
                own,
            ),
            utxo_trace: d.gauge_by(
                "bitcoin_exporter_utxo_trace",
                ["state"],
                "1 for the state of the UTXO cache trace: active, off, ibd (waits for its end), over_budget (given up)",
                own,
            ),
            connects: d.events("bitcoin_exporter_connects_total", "Connections to the node", own),
            disconnects: d.counter_by(
                "bitcoin_exporter_disconnects_total",
                ["reason"],
                "Ended connections to the node, by reason",
                own,
            ),
            poll_duration: d.histogram(
                "bitcoin_exporter_poll_duration_seconds",
                "Time that a poll of the node took",
                own,
                &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0],
            ),
            poll_failures: d.counter_by(
                "bitcoin_exporter_poll_failures_total",
                ["call"],
                "Calls to the node that failed, by call",
                own,
            ),
            last_poll: d.own_gauge("bitcoin_exporter_last_poll_timestamp_seconds",
                "End of the last successful poll, Unix seconds",
                own,
            ),
            callbacks: d.counter_by(
                "bitcoin_exporter_callbacks_total",
                ["callback"],
                "Notifications that the node sent us",
                own,
            ),
            callback_duration: d.histogram(
                "bitcoin_exporter_callback_duration_seconds",
                "Time from the moment the guard saw a notification to its answer; the time that the guard waited for a \
                 CPU before is in bitcoin_exporter_guard_run_delay_seconds_total",
                own,
                &[2e-6, 5e-6, 1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 1e-1, 1.0],
            ),
            guard_run_delay: d.seconds(
                "bitcoin_exporter_guard_run_delay_seconds_total",
                "Time that the guard was ready to run and waited for a CPU, the node possibly with it",
                "/proc/PID/schedstat of the guard",
            ),
            events_dropped: d.counter_by(
                "bitcoin_exporter_events_dropped_total",
                ["event"],
                "Events that were answered but not counted, because counting fell behind",
                own,
            ),
            rejected_calls: d.counter_by(
                "bitcoin_exporter_rejected_calls_total",
                ["call"],
                "Calls that the guard did not forward to the node, because they are not on its list; 0 unless the exporter is \
                 faulty or compromised",
                own,
            ),
        };
        let info = d.own_gauge_by(
            "bitcoind_ipc_exporter_build_info",
            ["version", "revision", "rustc"],
            "1, with what this binary was built from as labels",
            own,
        );
        info.set([env!("CARGO_PKG_VERSION"), env!("BUILD_REVISION"), env!("BUILD_RUSTC")], 1.0);
        exporter.up.set(0);
        exporter.connects.start();
        exporter
    }
}
