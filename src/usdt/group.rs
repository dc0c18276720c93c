//! The trait of a group of tracepoints: programs of its own (`bpf/NAME.bpf.c`), loaded and read as one.

use anyhow::Result;

use super::blocks;
use super::maps::Maps;
use crate::metrics::Family;

/// A group of tracepoints, with a file each for this and for its programs.
pub(super) trait GroupPrograms: Send + Sync {
    /// The provider of the tracepoints, `validation`. Their names are those of the programs.
    fn provider(&self) -> &'static str;
    /// The compiled programs.
    fn object(&self) -> &'static [u8];
    /// Its metrics with their present values; without maps, to describe them, all counts are 0. Their sources are tracepoints,
    /// `validation:block_connected`: before one of them was attached to a node, a family is absent.
    fn families(&self, maps: &Maps) -> Vec<Family>;

    /// Sets the programs' constants, a `types::rodata`, before they are loaded.
    fn set_constants(&self, _rodata: &mut [u8]) {}
    /// Fills maps that the programs only read.
    fn fill_maps(&self, _maps: &Maps) -> Result<()> {
        Ok(())
    }
    /// Logs an event of `events_map`.
    fn log(&self) -> Option<fn(&[u8])> {
        None
    }
    /// Reads from such an event what happened to blocks.
    fn block_events(&self, _event: &[u8], _queue: &mut Vec<blocks::BlockEvent>) {}
    /// How often each tracepoint fired, where `fibre_exporter_events_processed_total` has it.
    fn events_processed(&self, _maps: &Maps) -> Vec<(&'static str, u64)> {
        Vec::new()
    }
    /// The node has exited: resets what holds for a running node only.
    fn node_ended(&self, _maps: &Maps) {}
}

/// `validation:block_connected`
pub(super) fn probe_name(provider: &str, tracepoint: impl std::fmt::Display) -> String {
    format!("{provider}:{tracepoint}")
}
