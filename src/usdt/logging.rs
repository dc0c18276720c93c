//! The thread that writes `debug.log`, of FIBRE's builds that have one: provider `logging`.

use anyhow::Result;
use libbpf_rs::{MapCore, MapFlags, MapHandle};

use super::histogram::Buckets;
use super::maps::{self, skeleton};
use super::subject::{Loaded, Opened, Tracepoints, count, counts_by, families, one};
use crate::metrics::Sample;

skeleton!("logging", counts: [counts], plain: []);

/// The queue has room for 127 lines.
const DEPTH: Buckets =
    Buckets::new(1.0, &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 48.0, 64.0, 80.0, 96.0, 112.0, 126.0, 127.0]);
const DURATION: Buckets = Buckets::new(
    1e9,
    &[
        0.000001, 0.000005, 0.00001, 0.00005, 0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0,
        10.0,
    ],
);

const KINDS: [&str; 3] = ["other", "write", "reopen"];

pub(super) struct Logging {
    counts: MapHandle,
    /// Operations that are under way.
    queued: MapHandle,
    started: MapHandle,
}

impl Tracepoints for Logging {
    type Builder = bpf::LoggingSkelBuilder;
    type Totals = bpf::types::counts;

    families! { "logging", bpf::LoggingProgs<'static>;
        Counter "bitcoin_log_queued_total" [] "Lines, and orders to open debug.log again, that were queued for the thread that writes it",
            [async_file_queued], |t| count(t.queued);
        Histogram "bitcoin_log_queue_depth" [] "How many were queued, when one was; at 127 whoever logs has to wait",
            [async_file_queued], |t| one(DEPTH.reading(t.depth.sum, t.depth.buckets));
        Histogram "bitcoin_log_queue_wait_seconds" [] "Time that a line waited in the queue",
            [async_file_operation_started], |t| one(DURATION.reading(t.wait_ns.sum, t.wait_ns.buckets));
        Counter "bitcoin_log_operations_total" ["kind"] "What the thread that writes debug.log did: write, reopen, other",
            [async_file_operation_completed], |t| counts_by(KINDS.into_iter().zip(t.completed));
        Histogram "bitcoin_log_operation_duration_seconds" ["kind"] "Time that writing a line or opening debug.log again took",
            [async_file_operation_completed], |t| durations(t);
    }

    fn configure(programs: &mut Opened<Self>) {
        if let Some(constants) = &mut programs.maps.rodata_data {
            constants.depth_bounds = DEPTH.for_programs();
            constants.wait_ns_bounds = DURATION.for_programs();
            constants.operation_ns_bounds = DURATION.for_programs();
        }
    }

    fn new(programs: &Loaded<Self>) -> Result<Self> {
        Ok(Logging {
            counts: MapHandle::try_from(&programs.maps.counts_map)?,
            queued: MapHandle::try_from(&programs.maps.queued_map)?,
            started: MapHandle::try_from(&programs.maps.started_map)?,
        })
    }

    fn read(&self) -> Self::Totals {
        maps::sum(&self.counts).unwrap_or_default()
    }

    /// The next one numbers its operations from the beginning.
    fn node_ended(&self) {
        for map in [&self.queued, &self.started] {
            let zero = vec![0; map.value_size() as usize];
            for slot in 0..map.max_entries() {
                let _ = map.update(&slot.to_ne_bytes(), &zero, MapFlags::ANY);
            }
        }
    }
}

fn durations(counts: &bpf::types::counts) -> Vec<Sample> {
    [("write", counts.write_ns), ("reopen", counts.reopen_ns)]
        .map(|(kind, took)| Sample(vec![kind.into()], DURATION.reading(took.sum, took.buckets)))
        .into()
}
