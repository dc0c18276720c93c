//! Tracepoint of connected blocks, provider `validation`. The module `blocks` decides which of these blocks belong to
//! the node's active chain, and counts only the blocks of the active chain.

use super::blocks::{BlockEvent, BlockEventKind, ConnectedBlock, ConnectingThread};
use super::bpf::validation::types;
use super::group::GroupPrograms;
use super::maps::{self, Maps, Pod};
use crate::metrics::Family;

// SAFETY: the struct consists of u64 only; see validation.bpf.c.
unsafe impl Pod for types::counts {}
// SAFETY: the struct consists of integers only; see validation.bpf.c.
unsafe impl Pod for types::event {}

/// The exporter's code for the tracepoint group `validation`: blocks that the node connects.
pub(super) struct ValidationGroup;

impl GroupPrograms for ValidationGroup {
    fn families(&self, _maps: &Maps) -> Vec<Family> {
        Vec::new()
    }

    fn events_processed(&self, maps: &Maps) -> Vec<(&'static str, u64)> {
        vec![("block_connected", maps.sum::<types::counts>("counts_map").fired)]
    }

    fn block_events(&self, event: &[u8], queue: &mut Vec<BlockEvent>) {
        let Some(event) = maps::decode::<types::event>(event) else { return };
        let thread = maps::text(&event.thread.map(|byte| byte as u8));
        queue.push(BlockEvent {
            time_ns: event.time_ns,
            hash: event.hash,
            kind: BlockEventKind::Connected(ConnectedBlock {
                height: event.height,
                transactions: event.txs,
                inputs: event.inputs,
                sigops: event.sigops,
                duration_ns: event.duration_ns,
                thread: ConnectingThread::from_name(&thread, event.is_main_thread != 0),
            }),
        });
    }
}
