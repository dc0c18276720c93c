//! Tracepoints (USDT) of a running node, counted in the kernel.
//!
//! BPF programs (`bpf/*.bpf.c`) are attached to the node's tracepoints and add to maps; user space reads the maps when it
//! is scraped, never for an event. Only what is rare and worth a log line also comes as an event.
//!
//! - A file for each subject, beside the BPF file of the same name: its tracepoints, metrics and log lines.
//! - `subject` says what these files have to give; `maps` and `histogram` read what the programs counted.
//! - `programs` loads the BPF programs and attaches them, `privileges` explains why that failed.
//! - [`target`] finds the node that is traced: `candidates` are the processes that may be it, `choice` decides by what is known of them,
//!   `file_locks` among it. [`watch`] attaches to the node and follows its process.
//! - [`events`] reads the rare events, logs them, and hands those of blocks to `blocks`, which puts the way of each block to the node
//!   together. [`record`] keeps a row of each.
//! - `clock` turns the kernel's time into the wall clock's.
//! - [`page`] is what a browser shows of blocks.
//! - [`probes`] are a binary's tracepoints; [`report`] is what the exporter says of itself.

mod blocks;
mod candidates;
mod choice;
mod clock;
pub(crate) mod events;
mod fibre;
mod file_locks;
mod histogram;
mod logging;
mod maps;
mod mempool;
mod net;
pub mod page;
mod privileges;
pub mod probes;
mod programs;
pub mod record;
pub mod report;
mod subject;
pub mod target;
mod utxocache;
mod validation;
pub mod watch;

pub use privileges::check_kernel;
pub use programs::{Attached, Programs};

macro_rules! subjects {
    ($(#[doc = $what:literal] $Subject:ident: $tracepoints:ty,)*) => {
        /// A group of tracepoints that is turned on and off as one.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
        pub enum Subject {
            $(#[doc = $what] $Subject),*
        }

        impl Subject {
            /// All of them, in the order of `METRICS.md`.
            pub const ALL: &[Subject] = &[$(Subject::$Subject),*];

            fn functions(self) -> programs::Functions {
                match self {
                    $(Subject::$Subject => programs::Functions::of::<$tracepoints>()),*
                }
            }
        }
    };
}

subjects! {
    /// FIBRE block relay.
    Fibre: fibre::Fibre,
    /// Connected blocks.
    Validation: validation::Validation,
    /// Messages and connections.
    Net: net::Net,
    /// The mempool.
    Mempool: mempool::Mempool,
    /// The UTXO cache.
    Utxocache: utxocache::Utxocache,
    /// The thread that writes debug.log.
    Logging: logging::Logging,
}
