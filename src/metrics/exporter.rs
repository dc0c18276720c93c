//! Metrics about the exporter itself and its connection to the node.

use super::model::{counter, gauge, histogram};
use super::pushed::{Counter, CounterVec, Gauge, GaugeVec, Histogram, area};

const EXPORTER: &[&str] = &["the exporter"];

area! {
    /// Metrics about the exporter itself and its connection to the node.
    pub struct ExporterMetrics {
        up: Gauge = gauge("bitcoin_up", "1 while the connection to the node works and the last poll succeeded, otherwise 0", EXPORTER);
        interface: GaugeVec<1> = gauge("bitcoin_exporter_interface",
            "1 for each IPC interface that the node has. `http-rpc` is 1 while JSON-RPC over HTTP works, and 0 while \
             HTTP is configured but fails",
            EXPORTER).by(&["interface"]);
        http_rpc_failures: CounterVec<1> = counter("bitcoin_exporter_http_rpc_failures_total",
            "Failed requests over HTTP, by cause: refused (connection), timeout, unauthorized (401), busy (status \
             503 for two attempts), warmup (the node is starting), different_node, too_large, forbidden (403), other",
            EXPORTER).by(&["cause"]);
        utxo_trace: GaugeVec<1> = gauge("bitcoin_exporter_utxo_trace",
            "1 for the current state of the UTXO cache trace: active, off, ibd (the trace waits for the end of \
             initial block download), over_budget (the trace is disabled because it exceeded its budget)",
            EXPORTER).by(&["state"]).of_node();
        connects: Counter = counter("bitcoin_exporter_connects_total", "Connections made to the node", EXPORTER);
        disconnects: CounterVec<1> = counter("bitcoin_exporter_disconnects_total",
            "Connections to the node that were closed, by reason", EXPORTER).by(&["reason"]);
        poll_duration: Histogram = histogram("bitcoin_exporter_poll_duration_seconds",
            "Duration of a poll of the node",
            EXPORTER, &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0]);
        poll_failures: CounterVec<1> = counter("bitcoin_exporter_poll_failures_total",
            "Failed calls to the node, by name of the call", EXPORTER).by(&["call"]);
        call_duration: GaugeVec<1> = gauge("bitcoin_exporter_call_duration_seconds",
            "Duration of the last call to the node by name of the call, including failed calls and the wait for \
             other calls of the exporter. A poll makes most calls once, so a scrape after each poll gets nearly all \
             durations",
            EXPORTER).by(&["call"]).of_node();
        last_poll: Gauge = gauge("bitcoin_exporter_last_poll_timestamp_seconds",
            "End time of the last successful poll, Unix seconds", EXPORTER);
        callbacks: CounterVec<1> = counter("bitcoin_exporter_callbacks_total",
            "Notifications received from the node, by callback", EXPORTER).by(&["callback"]);
        callback_duration: Histogram = histogram("bitcoin_exporter_callback_duration_seconds",
            "Time from the receipt of a notification by the guard until the guard has responded. The time for which \
             the guard waited for a CPU before the receipt is in bitcoin_exporter_guard_run_delay_seconds_total",
            EXPORTER, &[2e-6, 5e-6, 1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 1e-1, 1.0]);
        guard_run_delay: Counter = counter("bitcoin_exporter_guard_run_delay_seconds_total",
            "Time for which the guard was runnable and waited for a CPU, so the node may have waited for the guard",
            &["/proc/PID/schedstat of the guard"]);
        events_dropped: CounterVec<1> = counter("bitcoin_exporter_events_dropped_total",
            "Notifications that the guard answered but the exporter did not count, because the guard's event queue was full", EXPORTER).by(&["event"]);
        rejected_calls: CounterVec<1> = counter("bitcoin_exporter_rejected_calls_total",
            "Calls rejected by the guard because they are not on its allow-list; 0 unless the exporter is faulty or \
             compromised",
            EXPORTER).by(&["call"]);
        build_info: GaugeVec<3> = gauge("bitcoind_ipc_exporter_build_info",
            "Always 1, with the version, revision and compiler of this binary as labels", EXPORTER).by(&["version", "revision", "rustc"]);
    }
}

impl ExporterMetrics {
    /// Sets the metrics that have a value at the start of the exporter, before it has connected to a node.
    pub(super) fn start(&self) {
        let build = [env!("CARGO_PKG_VERSION"), env!("BUILD_REVISION"), env!("BUILD_RUSTC")];
        self.build_info.replace([(build, 1.0)]);
        self.up.set(Some(0));
        self.connects.start();
        self.poll_duration.start();
        self.callback_duration.start();
    }
}
