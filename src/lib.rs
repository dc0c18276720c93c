//! Prometheus exporters for a running Bitcoin node.
//!
//! Data flows one way: [`ipc`] → [`collect`] → [`metrics`] → [`http`], and `usdt` → [`metrics`] → [`http`].
//!
//! - [`ipc`] talks to a node over its Cap'n Proto socket: where the connection comes from, the handshake, one file per
//!   interface, and the [guard](ipc::guard), a process of its own that faces the node. It does not know what a metric is.
//! - [`collect`] decides what to ask of a node and when, subscribes, reconnects, and turns answers into metrics.
//! - `usdt` counts what a node's tracepoints tell with BPF programs in the kernel, and reads the counts when it is scraped.
//! - [`metrics`] is the registry and its families. It does not know where a number came from.
//! - [`node_process`] finds the process of a node, and notices its end.
//! - [`http`] renders a registry to scrapers. It does not know about nodes.
//! - [`init`] is PID 1 of a container, with the exporter as its child.
//! - [`systemd`] takes over inherited file descriptors and tells the service manager that we are ready.
//! - [`priority`] says which of our threads give way to others.
//! - [`generate`] prints what packages ship beside the binaries.
//! - [`logging`] writes to stderr or the journal.
//!
//! The main thread runs everything that touches the node. HTTP has a thread of its own, so that no scraper can delay an
//! answer to the node; between them are only atomics and one watch channel. Blocks are counted and log lines written by
//! threads that only take from bounded queues.

pub mod cli;
pub mod collect;
pub mod generate;
pub mod http;
pub mod init;
pub mod ipc;
pub mod logging;
pub mod metrics;
pub mod node_process;
pub mod priority;
pub mod service;
pub mod status;
mod sys;
pub mod systemd;
#[cfg(feature = "usdt")]
pub mod usdt;

/// The text of `METRICS.md`.
#[cfg(feature = "usdt")]
pub fn metrics_reference() -> String {
    metrics::markdown(&[
        ("bitcoind-ipc-exporter", metrics::Metrics::new().rows()),
        ("bitcoind-usdt-exporter", &usdt::report::rows()),
    ])
}

#[cfg(all(test, feature = "usdt"))]
#[test]
fn metrics_md_is_what_the_registries_say() {
    let file = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/METRICS.md")).unwrap();
    assert!(
        file == metrics_reference(),
        "METRICS.md is out of date: cargo run --bin bitcoind-usdt-exporter -- --print-metrics-reference > METRICS.md"
    );
}

/// Code generated from `schema/`: a module for each file.
#[allow(missing_docs, clippy::all, clippy::pedantic, reason = "generated")]
pub mod schema {
    include!(concat!(env!("OUT_DIR"), "/schema.rs"));
}
