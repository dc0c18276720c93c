//! What a subject is: a group of tracepoints with a BPF file of its own, loaded, read and shown as one.

use std::collections::BTreeSet;

use anyhow::Result;
use libbpf_rs::skel::{OpenSkel, SkelBuilder};

use super::blocks;
use crate::metrics::{Family, Reading, Sample};

/// The programs of a subject before they are loaded.
pub(super) type Opened<S> = <<S as Tracepoints>::Builder as SkelBuilder<'static>>::Output;
/// The programs of a subject in the kernel.
pub(super) type Loaded<S> = <Opened<S> as OpenSkel<'static>>::Output;

/// A subject; the type itself holds the maps that its programs count in.
pub(super) trait Tracepoints: Sized + Send + Sync + 'static {
    /// Of the generated code.
    type Builder: SkelBuilder<'static> + Default;
    /// All counts at one moment.
    type Totals: 'static;

    /// The provider of the tracepoints. Their names are those of the programs.
    const PROVIDER: &'static str;
    /// The metrics that the tracepoints feed.
    const FAMILIES: &'static [Family<Traced<Self::Totals>>];

    /// Sets the programs' constants.
    fn configure(_programs: &mut Opened<Self>) {}
    /// Takes the maps, and fills those that the programs only read.
    fn new(programs: &Loaded<Self>) -> Result<Self>;
    /// Reads the counts.
    fn read(&self) -> Self::Totals;
    /// Logs what the programs put into `events_map`.
    const LOG: Option<fn(&[u8])> = None;
    /// Reads from the same what happened to a block.
    const OF_BLOCKS: fn(&[u8], &mut Vec<blocks::Event>) = |_, _| {};
    /// How often each tracepoint fired, where `fibre_exporter_events_processed_total` has it.
    fn events_processed(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }
    /// The node has ended: what is true of a running one only is not true any more.
    fn node_ended(&self) {}
}

/// The counts of a subject, and which of them a node has fed.
pub struct Traced<T> {
    pub(super) totals: T,
    /// Tracepoints that were attached at some time, `validation:block_connected`.
    pub(super) has_attached: BTreeSet<String>,
}

impl<T> Traced<T> {
    /// Whether one of these tracepoints was attached at some time.
    pub(super) fn has_attached(&self, tracepoints: &[&str]) -> bool {
        tracepoints.iter().any(|&tracepoint| self.has_attached.contains(tracepoint))
    }
}

/// The constants of [`Tracepoints`]: a line for each family, with the tracepoints that feed it. It is absent until one of them has been attached. A tracepoint without a program of its name does not compile.
macro_rules! families {
    ($provider:literal, $programs:ty;
        $($kind:ident $name:literal [$($label:literal),*] $help:literal, [$($tracepoint:ident),+], |$totals:ident| $read:expr;)*
    ) => {
        const PROVIDER: &'static str = $provider;
        const FAMILIES: &'static [crate::metrics::Family<crate::usdt::subject::Traced<Self::Totals>>] = &[$({
            const SOURCES: &[&str] = &[$({
                const _: usize = std::mem::offset_of!($programs, $tracepoint);
                concat!($provider, ":", stringify!($tracepoint))
            }),+];
            crate::metrics::Family {
                name: $name,
                kind: crate::metrics::Kind::$kind,
                labels: &[$($label),*],
                help: $help,
                sources: SOURCES,
                read: |traced| {
                    let $totals = &traced.totals;
                    if traced.has_attached(SOURCES) { $read } else { Vec::new() }
                },
            }
        }),*];
    };
}
pub(super) use families;

pub(super) fn one(reading: Reading) -> Vec<Sample> {
    vec![Sample(Vec::new(), reading)]
}

pub(super) fn count(total: u64) -> Vec<Sample> {
    one(Reading::Count(total))
}

/// A `struct gauge`: absent until it is known.
pub(super) fn gauge(known: u64, value: i64) -> Vec<Sample> {
    if known == 0 { Vec::new() } else { one(Reading::Value(value as f64)) }
}

/// Counts by one label.
pub(super) fn counts_by<'a>(counts: impl IntoIterator<Item = (&'a str, u64)>) -> Vec<Sample> {
    counts.into_iter().map(|(label, total)| Sample(vec![label.into()], Reading::Count(total))).collect()
}
