//! Counts the hits of a running Bitcoin node's tracepoints (USDT) in the kernel, with BPF programs.
//!
//! BPF programs (`bpf/*.bpf.c`) are attached to the node's tracepoints and count the hits in BPF maps. The exporter
//! (user space) reads these maps when Prometheus scrapes it, not at each hit of a tracepoint. Only P2P messages about
//! blocks, P2P messages that show a peer's connection type, connected blocks, and rare events such as a flush of the
//! UTXO cache are also sent to user space, through BPF ring buffers.
//!
//! - Each group of tracepoints has a Rust file in this folder, with the group's metrics and log lines, and a BPF file
//!   of the same name in `bpf/`. `group` has the trait that the groups implement. `maps` and `histogram` read the
//!   counts of the BPF programs.
//! - `programs` loads the BPF programs and attaches them. `privileges` checks capabilities and kernel features. At a
//!   scrape, [`MetricsReader`] reads the values of all metrics.
//! - [`target`] finds the node to trace: `candidates` lists the processes that may be the node, and `choice` selects
//!   one of these processes by evidence, for example by the file locks that `file_locks` reads. [`attach_loop`]
//!   attaches to the node and watches its process.
//! - [`events`] reads the ring buffers, logs the events, and passes events of blocks to `blocks`, which combines the
//!   events of each block. [`crate::block_log`] stores a row for each connected block in a local SQLite file.
//! - `clock` converts the kernel's monotonic time to Unix time.
//! - [`page`] serves the HTML page that shows the last connected blocks.
//! - [`probes`] lists the tracepoints of a binary. `exporter_metrics` has the metrics about the exporter itself, and
//!   [`startup_banner`] makes the text with the exporter's settings and the attached tracepoints, which the exporter
//!   prints to stdout at startup.

pub mod attach_loop;
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
pub mod startup_banner;
pub mod target;
mod utxocache;
mod validation;

use clap::ValueEnum;

use crate::metrics::{Declaration, Family};
use group::{Group, GroupPrograms};
use maps::Maps;

pub use privileges::check_kernel;
pub use programs::{AttachResult, MetricsReader, Programs};

/// A group of tracepoints that `--tracepoints` turns on or off together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TracepointGroup {
    /// FIBRE block relay.
    Fibre,
    /// Connected blocks.
    Validation,
    /// P2P messages and connections.
    Net,
    /// The mempool.
    Mempool,
    /// The UTXO cache.
    Utxocache,
    /// The thread that writes debug.log.
    Logging,
}

impl TracepointGroup {
    /// All groups, in the order in which METRICS.md lists their metrics.
    pub fn all() -> &'static [TracepointGroup] {
        TracepointGroup::value_variants()
    }

    /// The BPF programs of the group, and the implementation of [`GroupPrograms`] for their metrics.
    fn group(self) -> Group {
        let (provider, object, programs): (_, &[u8], &dyn GroupPrograms) = match self {
            TracepointGroup::Fibre => ("udp", bpf::fibre::OBJECT, &fibre::FibreGroup),
            TracepointGroup::Validation => {
                ("validation", bpf::validation::OBJECT, &validation::ValidationGroup)
            }
            TracepointGroup::Net => ("net", bpf::net::OBJECT, &net::NetGroup),
            TracepointGroup::Mempool => ("mempool", bpf::mempool::OBJECT, &mempool::MempoolGroup),
            TracepointGroup::Utxocache => ("utxocache", bpf::utxocache::OBJECT, &utxocache::UtxocacheGroup),
            TracepointGroup::Logging => ("logging", bpf::logging::OBJECT, &logging::LoggingGroup),
        };
        Group { provider, object, programs }
    }

    /// Names, labels and help texts of the group's metrics, without values.
    fn declarations(self) -> Vec<Declaration> {
        declarations(self.group().programs.families(&Maps::default()))
    }
}

fn declarations(families: Vec<Family>) -> Vec<Declaration> {
    families.into_iter().map(|family| family.declaration).collect()
}

/// The declarations (names, labels and help texts) of all metrics that bitcoind-usdt-exporter has and
/// bitcoind-ipc-exporter does not have, for METRICS.md.
pub fn all_declarations() -> Vec<Declaration> {
    let groups = TracepointGroup::all().iter().flat_map(|group| group.declarations());
    let blocks = blocks::families(&blocks::BlockCounts::default());
    let exporter = exporter_metrics::families(0, Vec::new(), Vec::new());
    groups.chain(declarations(blocks)).chain(declarations(exporter)).collect()
}

/// Code that `build.rs` generates from `bpf/`: for each BPF file, the Rust types of the values in its maps, and its
/// compiled programs.
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
        let tracepoints = programs::tracepoints(group.group()).unwrap();
        for declaration in group.declarations() {
            for source in declaration.sources {
                assert!(tracepoints.iter().any(|it| it == source), "{}: {source}", declaration.name);
            }
        }
    }
}
