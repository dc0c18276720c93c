//! Connected blocks: provider `validation`. What is counted of them is in `blocks`, which knows which of them count.

use anyhow::Result;
use libbpf_rs::MapHandle;

use super::blocks::{Connected, Event, Thread, What};
use super::maps::{self, skeleton};
use super::subject::{Loaded, Tracepoints, families};

skeleton!("validation", counts: [counts, errors], plain: [event]);

/// The same in every BPF file.
pub(super) use bpf::types::errors as Errors;

pub(super) struct Validation {
    counts: MapHandle,
}

impl Tracepoints for Validation {
    type Builder = bpf::ValidationSkelBuilder;
    type Totals = bpf::types::counts;

    families! { "validation", bpf::ValidationProgs<'static>; }

    fn new(programs: &Loaded<Self>) -> Result<Self> {
        Ok(Validation { counts: MapHandle::try_from(&programs.maps.counts_map)? })
    }

    fn read(&self) -> Self::Totals {
        maps::sum(&self.counts).unwrap_or_default()
    }

    fn events_processed(&self) -> Vec<(&'static str, u64)> {
        vec![("block_connected", self.read().fired)]
    }

    const OF_BLOCKS: fn(&[u8], &mut Vec<Event>) = |event, queue| {
        let event = maps::decode::<bpf::types::event>(event);
        queue.extend(event.map(|event| Event {
            time_ns: event.time_ns,
            hash: event.hash,
            what: What::Connected(Connected {
                height: event.height,
                transactions: event.txs,
                inputs: event.inputs,
                sigops: event.sigops,
                duration_ns: event.duration_ns,
                thread: Thread::named(
                    &maps::text(&event.thread.map(|byte| byte as u8)),
                    event.is_main_thread != 0,
                ),
            }),
        }));
    };
}
