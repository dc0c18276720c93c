//! Tracepoints (USDT) of a running node, counted in the kernel.
//!
//! BPF programs (`bpf/*.bpf.c`) are attached to the node's tracepoints and add to maps; user space reads the maps when it
//! is scraped, never for an event. Only what is rare and worth a log line also comes as an event.

pub mod probes;

mod events;
mod families;
mod programs;
mod totals;
pub mod watch;

pub use families::FAMILIES;
pub use programs::{Programs, Subject, check_kernel};
pub use totals::Totals;

/// Code generated from `bpf/`.
#[allow(
    missing_docs,
    clippy::all,
    clippy::pedantic,
    clippy::undocumented_unsafe_blocks,
    reason = "generated"
)]
mod skeletons {
    macro_rules! generated {
        ($($subject:ident),*) => {
            $(pub mod $subject { include!(concat!(env!("OUT_DIR"), "/", stringify!($subject), ".skel.rs")); })*
        };
    }
    generated!(fibre, validation, mempool, net, utxocache);
}
