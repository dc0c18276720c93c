//! Prometheus exporters for a running Bitcoin node.
//!
//! Data flows one way: [`json_rpc`] and [`ipc`] → [`collect`] → [`metrics`] → [`http`], and `usdt` → [`metrics`] → [`http`].
//!
//! - [`ipc`] talks to a node over its Cap'n Proto socket: where the connection comes from, the handshake, one file per
//!   interface, and the [guard](ipc::guard), a process of its own that faces the node. It does not depend on metrics.
//! - [`json_rpc`] has the JSON-RPC methods that are called, requests, answers and errors, and the transport over HTTP, for nodes
//!   whose IPC has none.
//! - [`collect`] decides which calls to make to a node and when, subscribes, reconnects, and turns answers into metrics.
//! - `usdt` counts the events of a node's tracepoints with BPF programs in the kernel, and reads the counts when it is scraped;
//!   blocks are counted from events.
//! - [`metrics`] is the registry and its families. It does not depend on the source of a number.
//! - [`status`] is the page that shows a node at a glance.
//! - [`http`] serves a registry and pages to scrapers and browsers. It does not depend on nodes.
//!
//! Used by both binaries:
//!
//! - [`cli`] has the arguments that both take, [`generate`] prints what packages ship beside the binaries.
//! - [`service`] is the life of a process, [`systemd`] its inherited descriptors and notifications.
//! - [`node_process`] is the node as a process; `bitcoin_core` has names and notations of Bitcoin Core.
//! - [`text`] bounds text from others; [`files`] reads files that users name, `tls` the certificates in them.
//! - [`logging`] writes to stderr or the journal, and to a file, with a thread and a bounded queue for each.
//! - [`supervisor`] is the process that holds the node's connection, starts the guards and the exporter.
//! - [`sandbox`] confines each process to the system calls, files and ports that it needs.
//! - `testing` has the items that only tests, benches and fuzz targets use.
//! - [`scheduling`] sets the priorities of processes and threads; `sys` has the calls that need `unsafe`.
//!
//! The main thread runs everything that touches the node. HTTP has a thread of its own: no scraper can delay an answer to
//! the node; between them are atomics, and locks that are held for a lookup, never while a line is logged. Log lines
//! are written by threads that only take from bounded queues: a target that is not read delays nothing.

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

/// The text of `METRICS.md`.
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

/// Code generated from `schema/`: a module for each file.
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
