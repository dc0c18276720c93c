//! Tracepoints (USDT) of a running node, counted in the kernel.
//!
//! BPF programs (`bpf/*.bpf.c`) are attached to the node's tracepoints and add to maps; user space reads the maps when it
//! is scraped, never for an event. Only rare occurrences that are worth a log line also come as events.
//!
//! - A file for each group of tracepoints, beside the BPF file of the same name: its metrics and log lines. `group` is the trait
//!   that they implement; `maps` and `histogram` read what the programs counted.
//! - `programs` loads the BPF programs and attaches them, `privileges` explains why that failed. [`MetricsReader`] reads all metrics.
//! - [`target`] finds the node that is traced: `candidates` are the processes that may be it, `choice` decides by evidence,
//!   `file_locks` among it. [`attach_loop`] attaches to the node and follows its process.
//! - [`events`] reads the rare events, logs them, and passes those of blocks to `blocks`, which combines the events of each block. [`block_log`] keeps a row of each.
//! - `clock` turns the kernel's time into the wall clock's.
//! - [`page`] is the page of blocks for browsers.
//! - [`probes`] are a binary's tracepoints; `exporter_metrics` and [`startup_banner`] are about the exporter itself.

pub mod block_log;
mod blocks;
mod candidates;
mod choice;
mod clock;
pub(crate) mod events;
mod exporter_metrics;
mod fibre;
mod file_locks;
mod group;
mod histogram;
mod logging;
mod maps;
mod mempool;
mod net;
pub mod page;
mod privileges;
pub mod probes;
mod programs;

pub mod attach_loop;
pub mod startup_banner;
pub mod target;
mod utxocache;
mod validation;

use std::sync::Arc;

use clap::ValueEnum;

use crate::metrics::{Declaration, Family};
use group::GroupPrograms;
use maps::Maps;

pub use privileges::check_kernel;
pub use programs::{AttachResult, MetricsReader, Programs};

/// A group of tracepoints that is turned on and off as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TracepointGroup {
    /// FIBRE block relay.
    Fibre,
    /// Connected blocks.
    Validation,
    /// Messages and connections.
    Net,
    /// The mempool.
    Mempool,
    /// The UTXO cache.
    Utxocache,
    /// The thread that writes debug.log.
    Logging,
}

impl TracepointGroup {
    /// All of them, in the order of METRICS.md.
    pub fn all() -> &'static [TracepointGroup] {
        TracepointGroup::value_variants()
    }

    fn group(self) -> Arc<dyn GroupPrograms> {
        match self {
            TracepointGroup::Fibre => Arc::new(fibre::FibreGroup::default()),
            TracepointGroup::Validation => Arc::new(validation::ValidationGroup),
            TracepointGroup::Net => Arc::new(net::NetGroup),
            TracepointGroup::Mempool => Arc::new(mempool::MempoolGroup::default()),
            TracepointGroup::Utxocache => Arc::new(utxocache::UtxocacheGroup),
            TracepointGroup::Logging => Arc::new(logging::LoggingGroup),
        }
    }

    /// Its metrics.
    fn declarations(self) -> Vec<Declaration> {
        declarations(self.group().families(&Maps::default()))
    }
}

fn declarations(families: Vec<Family>) -> Vec<Declaration> {
    families.into_iter().map(|family| family.declaration).collect()
}

/// All metrics of the exporter, for METRICS.md.
pub fn all_declarations() -> Vec<Declaration> {
    let groups = TracepointGroup::all().iter().flat_map(|group| group.declarations());
    let blocks = blocks::families(&blocks::BlockCounts::default());
    let exporter = exporter_metrics::families(0, Vec::new(), Vec::new());
    let others = blocks.into_iter().chain(exporter).chain(crate::metrics::process::families());
    groups.chain(declarations(others.collect())).collect()
}

/// Generated from `bpf/`: for each file the types of its maps, and the compiled programs.
#[allow(
    missing_docs,
    clippy::all,
    clippy::pedantic,
    clippy::allow_attributes_without_reason,
    clippy::undocumented_unsafe_blocks,
    reason = "generated"
)]
mod bpf {
    include!(concat!(env!("OUT_DIR"), "/bpf.rs"));
}

#[cfg(test)]
#[test]
fn sources_of_metrics_are_programs_of_the_group() {
    for group in TracepointGroup::all() {
        let tracepoints = programs::tracepoints(&*group.group()).unwrap();
        for declaration in group.declarations() {
            for source in declaration.sources {
                assert!(tracepoints.iter().any(|it| it == source), "{}: {source}", declaration.name);
            }
        }
    }
}
