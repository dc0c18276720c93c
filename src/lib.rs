//! Prometheus exporters for a running Bitcoin node.
//!
//! Data flows in one direction: [`json_rpc`] and [`ipc`] → [`collect`] → [`metrics`] → [`http`], and `usdt` →
//! [`metrics`] → [`http`].
//!
//! - [`ipc`] is the client of a node's Cap'n Proto socket: the connection, the handshake, one file per interface, and
//!   the [guard](ipc::guard), a separate process that relays between node and exporter. `ipc` does not depend on
//!   `metrics`.
//! - [`json_rpc`] has the JSON-RPC methods that the exporter calls, the requests, responses and errors, and the
//!   transport over HTTP for nodes without JSON-RPC over IPC.
//! - [`collect`] schedules the calls to a node, subscribes to notifications, reconnects, and converts responses into
//!   metrics.
//! - `usdt` counts the events of a node's tracepoints with BPF programs in the kernel, and reads the counts at the
//!   scrape. Connected blocks are counted in user space, from the events that the BPF programs send.
//! - [`metrics`] has the metric families and the exposition formats. `metrics` does not depend on the sources of the
//!   values.
//! - [`status`] is the status page of the IPC exporter, and has the code that the HTML pages of both exporters share.
//! - [`block_log`] stores a row for each connected block in a local SQLite file, and [`block_store`] forwards these
//!   rows to a PostgreSQL database.
//! - [`http`] serves metrics and pages to scrapers and browsers. `http` does not depend on the modules that communicate
//!   with nodes.
//!
//! Other modules, most of which both binaries use:
//!
//! - [`cli`] has the shared command line arguments; [`generate`] prints the files that packages ship with the binaries.
//! - [`service`] runs a process from startup to shutdown. [`systemd`] takes inherited descriptors and sends
//!   notifications to systemd.
//! - [`setup`] is the subcommand that connects the IPC exporter to a node of this machine.
//! - [`node_process`] inspects the node's process. `own_process` has the metrics about the exporter's own process.
//!   [`bitcoin_core`] has names of enum values, the hash notation and the chains of Bitcoin Core.
//! - [`text`] limits the length of untrusted text. [`files`] reads files whose paths the user configures. `tls` parses
//!   certificates.
//! - [`logging`] writes the log to stderr or the journal, and optionally to a file. Each log target has its own thread
//!   and bounded queue.
//! - [`supervisor`] is the process of the IPC exporter that holds the connection to the node, and that starts the
//!   guards and the process that exports the metrics.
//! - [`sandbox`] restricts each process to the system calls, files and ports that it needs.
//! - `testing` exports the items that only tests, benches and fuzz targets use.
//! - [`scheduling`] sets the priorities of processes and threads. `sys` has the system calls that need `unsafe`.
//!
//! In the exporter process of the IPC exporter, all code that communicates with the node runs on the main thread. The
//! HTTP server runs on a separate thread, because a slow scraper must not delay the communication with the node. The
//! two threads share atomics, and locks that are held only for a lookup and never while a line is logged. Log lines are
//! written by threads that read from bounded queues. A log target that is not read therefore delays no other thread.

#![cfg_attr(
    not(test),
    deny(
        clippy::print_stderr,
        clippy::print_stdout,
        reason = "they panic if the output is closed: use cli::print_error or cli::print"
    )
)]
#![allow(
    rustdoc::private_intra_doc_links,
    reason = "the documentation is for developers, with private items"
)]

pub mod bitcoin_core;
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
#[cfg_attr(not(feature = "usdt"), allow(dead_code, reason = "used only by the USDT exporter"))]
mod node_process;
mod own_process;
pub mod sandbox;
mod scheduling;
pub mod service;
pub mod setup;
pub mod status;
pub mod supervisor;
mod sys;
pub mod systemd;
#[doc(hidden)]
pub mod testing;
mod text;
mod tls;
#[cfg(feature = "usdt")]
#[allow(unsafe_code, reason = "values of BPF maps are read as C structs")]
pub mod usdt;

pub use collect::{Collector, Config, Context, DatadirCandidates, NextBlockMode, UtxoTraceMode, check, once};
pub use ipc::endpoint;
pub use ipc::guard::{ARGUMENT as GUARD_ARGUMENT, main as guard_main};
pub use json_rpc::http::credentials::PASSWORD_VARIABLE as RPC_PASSWORD_VARIABLE;
pub use json_rpc::http::{Credentials, HttpRpcConfig, Url, tls as http_rpc_tls};

/// The text of `METRICS.md`, from the declarations of both exporters.
#[cfg(feature = "usdt")]
pub fn metrics_reference() -> String {
    metrics::markdown(&all_declarations())
}

/// The declarations of all metrics, by exporter.
#[cfg(feature = "usdt")]
fn all_declarations() -> [(&'static str, Vec<metrics::Declaration>); 2] {
    let declaration = |family: metrics::Family| family.declaration;
    let of_both = || own_process::families().into_iter().map(declaration);
    let of_ipc = metrics::Metrics::new().families().into_iter().map(declaration);
    [
        ("bitcoind-ipc-exporter", of_ipc.chain(of_both()).collect()),
        ("bitcoind-usdt-exporter", usdt::all_declarations().into_iter().chain(of_both()).collect()),
    ]
}

#[cfg(all(test, feature = "usdt"))]
mod tests {
    use super::*;
    use metrics::{Declaration, Kind};

    #[test]
    fn metrics_md_matches_the_registries() {
        let file = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/METRICS.md")).unwrap();
        assert!(
            file == metrics_reference(),
            "METRICS.md is out of date: cargo run --bin bitcoind-usdt-exporter -- --print-metrics-reference > METRICS.md"
        );
    }

    #[test]
    fn declarations_are_as_the_formats_want_them() {
        for (exporter, declarations) in all_declarations() {
            let mut names = std::collections::BTreeSet::new();
            for Declaration { name, kind, help, .. } in declarations {
                assert!(names.insert(name), "{exporter} declares {name} twice");
                assert_eq!(kind == Kind::Counter, name.ends_with("_total"), "{name}");
                assert!(!help.contains(['\n', '\\']) && !help.ends_with('.'), "{name}: {help}");
            }
        }
    }
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
