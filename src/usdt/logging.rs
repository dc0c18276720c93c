//! Tracepoints of the node's thread that writes `debug.log`, provider `logging`. Only nodes of some FIBRE builds have
//! this thread.

use super::bpf::logging::types;
use super::group::GroupPrograms;
use super::histogram::Buckets;
use super::maps::{self, Maps, Pod};
use crate::metrics::{Family, counter, histogram};

// SAFETY: the struct consists of u64 only; see logging.bpf.c.
unsafe impl Pod for types::counts {}
// SAFETY: arrays of integers.
unsafe impl Pod for types::rodata {}

/// Buckets for the length of the node's debug.log queue, which has room for 127 entries.
const DEPTH: Buckets =
    Buckets::new(1.0, &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 48.0, 64.0, 80.0, 96.0, 112.0, 126.0, 127.0]);
#[rustfmt::skip]
const DURATION: Buckets = Buckets::new(1e9, &[
    0.000001, 0.000005, 0.00001, 0.00005, 0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0,
]);

/// Label values for the kinds of operations on `debug.log`, in the order of the enum in logging.bpf.c.
const KINDS: [&str; 3] = ["other", "write", "reopen"];

const QUEUED: &[&str] = &["logging:async_file_queued"];
const STARTED: &[&str] = &["logging:async_file_operation_started"];
const COMPLETED: &[&str] = &["logging:async_file_operation_completed"];

/// The exporter's code for the tracepoint group `logging`, for metrics about the queue of the node's `debug.log` lines
/// and about the thread that writes them.
pub(super) struct LoggingGroup;

impl GroupPrograms for LoggingGroup {
    fn set_constants(&self, rodata: &mut [u8]) {
        maps::modify(rodata, |constants: &mut types::rodata| {
            constants.depth_bounds = DEPTH.for_programs();
            constants.wait_ns_bounds = DURATION.for_programs();
            constants.operation_ns_bounds = DURATION.for_programs();
        });
    }

    #[rustfmt::skip]
    fn families(&self, maps: &Maps) -> Vec<Family> {
        let counts: types::counts = maps.sum("counts_map");
        let duration = |counted: types::histogram| DURATION.to_histogram(counted.sum, counted.buckets);
        vec![
            counter("bitcoin_log_queued_total",
                "Writes and reopen requests that were queued for debug.log", QUEUED)
                .value(counts.queued),
            histogram("bitcoin_log_queue_depth", "Length of the queue for debug.log when an entry is added; at a \
                 length of 127, the node's thread that logs has to wait", QUEUED,
                DEPTH.bounds).value(DEPTH.to_histogram(counts.depth.sum, counts.depth.buckets)),
            histogram("bitcoin_log_queue_wait_seconds", "Time for which a write or reopen request waited in the \
                 queue for debug.log", STARTED, DURATION.bounds)
                .value(duration(counts.wait_ns)),
            counter("bitcoin_log_operations_total",
                "Operations of the node's thread that writes debug.log, by kind: write, reopen, other", COMPLETED)
                .by(&["kind"]).samples(KINDS.into_iter().zip(counts.completed).map(|(kind, count)| ([kind], count))),
            histogram("bitcoin_log_operation_duration_seconds", "Time to write a line to debug.log, or to reopen the file",
                COMPLETED, DURATION.bounds)
                .by(&["kind"])
                .samples([(["write"], duration(counts.write_ns)), (["reopen"], duration(counts.reopen_ns))]),
        ]
    }

    /// Clears the times at which the ended node queued and started its operations. The next node uses the same sequence
    /// numbers of operations again, and its operations must not be matched with these times.
    fn node_ended(&self, maps: &Maps) {
        maps.zero("queued_map");
        maps.zero("started_map");
    }
}
