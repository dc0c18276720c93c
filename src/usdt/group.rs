//! The trait that each group of tracepoints implements. The BPF programs of a group (`bpf/NAME.bpf.c`) are loaded
//! together, and their counts are read together.

use anyhow::Result;

use super::blocks;
use super::maps::Maps;
use crate::metrics::Family;

/// The BPF programs of one group of tracepoints, for example of the mempool's tracepoints, and the Rust code that reads
/// the counts of these programs.
#[derive(Clone, Copy)]
pub(super) struct Group {
    /// The provider of the group's tracepoints, for example `validation`. Each BPF program has the name of its
    /// tracepoint.
    pub provider: &'static str,
    /// The compiled BPF programs of the group: the contents of an ELF object file.
    pub object: &'static [u8],
    pub programs: &'static dyn GroupPrograms,
}

/// The Rust code of a group of tracepoints, which converts the counts and events of the group's BPF programs to
/// metrics, log lines and block events.
pub(super) trait GroupPrograms: Send + Sync {
    /// The group's metrics with their current values. With empty [`Maps`] all counts are 0; the caller then uses only
    /// the declarations of the metrics. The sources of a metric are tracepoints, for example
    /// `validation:block_connected`. A scrape omits a metric until one of its tracepoints has been attached to a node.
    fn families(&self, maps: &Maps) -> Vec<Family>;

    /// Sets the constants of the BPF programs, for example the bounds of histograms, before the programs are loaded.
    /// `rodata` has the bytes of a `types::rodata`.
    fn set_constants(&self, _rodata: &mut [u8]) {}
    /// Fills the BPF maps that the programs read but do not change, for example maps from names to indexes.
    fn fill_maps(&self, _maps: &Maps) -> Result<()> {
        Ok(())
    }
    /// The function that logs an event of the group's ring buffer (`events_map`); `None` if the group logs no events.
    fn log(&self) -> Option<fn(&[u8])> {
        None
    }
    /// Decodes an event of the group's ring buffer (`events_map`), and appends the block events in it to `queue`.
    fn block_events(&self, _event: &[u8], _queue: &mut Vec<blocks::BlockEvent>) {}
    /// Names of the tracepoints whose hits `fibre_exporter_events_processed_total` counts, each with its number of
    /// hits.
    fn events_processed(&self, _maps: &Maps) -> Vec<(&'static str, u64)> {
        Vec::new()
    }
    /// Passes the time of the wall clock to the BPF programs. The exporter calls this function every few seconds,
    /// because the wall clock can be set.
    fn update_clock(&self, _maps: &Maps) {}
    /// Called after the BPF programs were detached from a node. Resets the values in the BPF maps that describe a
    /// running node, for example open connections. Counts are kept.
    fn node_ended(&self, _maps: &Maps) {}
}
