//! Connected blocks: provider `validation`.

use anyhow::Result;
use libbpf_rs::MapHandle;

use super::blocks::{Connected, Event, What};
use super::histogram::{Buckets, TXS};
use super::maps::{self, skeleton};
use super::subject::{Loaded, Opened, Tracepoints, count, families, one};

skeleton!("validation", counts: [counts, errors], plain: [event]);

/// The same in every BPF file.
pub(super) use bpf::types::errors as Errors;

pub(super) const DURATION: Buckets =
    Buckets::new(1e9, &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0]);
pub(super) const SIGOPS: Buckets =
    Buckets::new(1.0, &[0.0, 100.0, 1000.0, 5000.0, 10000.0, 20000.0, 30000.0, 40000.0, 60000.0, 80000.0]);

pub(super) struct Validation {
    counts: MapHandle,
}

impl Tracepoints for Validation {
    type Builder = bpf::ValidationSkelBuilder;
    type Totals = bpf::types::counts;

    families! { "validation", bpf::ValidationProgs<'static>;
        Counter "bitcoin_blocks_connected_total" [] "Blocks connected to the active chain",
            [block_connected], |t| count(t.txs.buckets.iter().sum());
        Histogram "bitcoin_block_connection_duration_seconds" [] "Time that connecting a block took",
            [block_connected], |t| one(DURATION.reading(t.duration_ns.sum, t.duration_ns.buckets));
        Histogram "bitcoin_block_tx_count" [] "Transactions of a connected block",
            [block_connected], |t| one(TXS.reading(t.txs.sum, t.txs.buckets));
        Histogram "bitcoin_block_inputs" [] "Inputs of a connected block, with its coinbase's",
            [block_connected], |t| one(TXS.reading(t.inputs.sum, t.inputs.buckets));
        Histogram "bitcoin_block_sigops" [] "Cost of a connected block's signature operations",
            [block_connected], |t| one(SIGOPS.reading(t.sigops.sum, t.sigops.buckets));
    }

    fn configure(programs: &mut Opened<Self>) {
        if let Some(constants) = &mut programs.maps.rodata_data {
            constants.duration_ns_bounds = DURATION.for_programs();
            constants.tx_bounds = TXS.for_programs();
            constants.input_bounds = TXS.for_programs();
            constants.sigop_bounds = SIGOPS.for_programs();
        }
    }

    fn new(programs: &Loaded<Self>) -> Result<Self> {
        Ok(Validation { counts: MapHandle::try_from(&programs.maps.counts_map)? })
    }

    fn read(&self) -> Self::Totals {
        maps::sum(&self.counts).unwrap_or_default()
    }

    fn events_processed(&self) -> Vec<(&'static str, u64)> {
        vec![("block_connected", self.read().txs.buckets.iter().sum())]
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
            }),
        }));
    };
}
