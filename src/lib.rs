//! Prometheus exporters for a running Bitcoin node.
//!
//! Data flows in one direction: [`json_rpc`] and [`ipc`] → [`collect`] → [`metrics`] → [`http`], and `usdt` → [`metrics`] → [`http`].
//!
//! - [`ipc`] is the client of a node's Cap'n Proto socket: the connection, the handshake, one file per interface, and the
//!   [guard](ipc::guard), a separate process that relays between node and exporter. It does not depend on metrics.
//! - [`json_rpc`] has the JSON-RPC methods that are called, requests, responses and errors, and the transport over HTTP for nodes whose IPC
//!   has no JSON-RPC.
//! - [`collect`] decides which calls to make to a node and when, subscribes, reconnects, and converts responses into metrics.
//! - `usdt` counts the events of a node's tracepoints with BPF programs in the kernel, and reads the counts at the scrape. Blocks are
//!   counted from events.
//! - [`metrics`] has the metric families and the exposition formats. It does not depend on the source of a value.
//! - [`status`] is the status page of the IPC exporter.
//! - [`block_log`] stores a row for each connected block in a local file, and [`block_store`] forwards the rows to a database.
//! - [`http`] serves metrics and pages to scrapers and browsers. It does not depend on nodes.
//!
//! Used by both binaries:
//!
//! - [`cli`] has the shared command line arguments; [`generate`] prints the files that packages ship with the binaries.
//! - [`service`] runs a process from startup to shutdown; [`systemd`] has inherited descriptors and notifications.
//! - [`node_process`] inspects the node's process; `bitcoin_core` has names and notations of Bitcoin Core.
//! - [`text`] limits the length of untrusted text; [`files`] reads files that users name; `tls` parses the certificates in them.
//! - [`logging`] writes to stderr or the journal, and to a file, with a thread and a bounded queue for each.
//! - [`supervisor`] is the process that holds the node's connection and starts the guards and the exporter.
//! - [`sandbox`] restricts each process to the system calls, files and ports that it needs.
//! - `testing` has the items that only tests, benches and fuzz targets use.
//! - [`scheduling`] sets the priorities of processes and threads; `sys` has the calls that need `unsafe`.
//!
//! Everything that touches the node runs on the main thread. HTTP has a thread of its own, so that no scraper can delay a response to the
//! node. The two threads share atomics, and locks that are held for a lookup and never while a line is logged. Threads that only read from
//! bounded queues write the log lines, so that a log target that is not read delays nothing.

#![cfg_attr(
    not(test),
    deny(
        clippy::print_stderr,
        clippy::print_stdout,
        reason = "they panic when it is closed: cli::print_error, cli::print"
    )
)]
#![allow(
    rustdoc::private_intra_doc_links,
    reason = "the documentation is for developers, with private items"
)]

mod bitcoin_core;
pub mod block_log;
pub mod block_store;
pub mod cli;
mod collect;
pub mod files;
mod generate;
pub mod http;
mod ipc;
mod json_rpc;
pub mod logging;
pub mod metrics;
#[cfg_attr(not(feature = "usdt"), allow(dead_code, reason = "the USDT exporter searches for the process"))]
mod node_process;
pub mod sandbox;
mod scheduling;
pub mod service;
pub mod status;
pub mod supervisor;
mod sys;
pub mod systemd;
#[doc(hidden)]
pub mod testing;
mod text;
mod tls;
#[cfg(feature = "usdt")]
#[allow(unsafe_code, reason = "what the kernel writes into maps is read as C structs")]
pub mod usdt;

pub use collect::{Collector, Config, Context, DatadirCandidates, NextBlockMode, UtxoTraceMode, check, once};
pub use ipc::endpoint;
pub use ipc::guard::{ARGUMENT as GUARD_ARGUMENT, main as guard_main};
pub use json_rpc::http::credentials::PASSWORD_VARIABLE as RPC_PASSWORD_VARIABLE;
pub use json_rpc::http::{Credentials, HttpRpcConfig, Password, Url, tls as http_rpc_tls};

/// The text of `METRICS.md`, from the declarations of both exporters.
#[cfg(feature = "usdt")]
pub fn metrics_reference() -> String {
    metrics::markdown(&[
        ("bitcoind-ipc-exporter", metrics::Metrics::new().declarations()),
        ("bitcoind-usdt-exporter", usdt::all_declarations()),
    ])
}

#[cfg(all(test, feature = "usdt"))]
#[test]
fn metrics_md_matches_the_registries() {
    let file = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/METRICS.md")).unwrap();
    assert!(
        file == metrics_reference(),
        "METRICS.md is out of date: cargo run --bin bitcoind-usdt-exporter -- --print-metrics-reference > METRICS.md"
    );
}

/// Code generated from `schema/`: one module per schema file.
#[allow(
    missing_docs,
    unsafe_code,
    clippy::all,
    clippy::pedantic,
    clippy::allow_attributes_without_reason,
    reason = "generated"
)]
mod schema {
    include!(concat!(env!("OUT_DIR"), "/schema.rs"));
}
