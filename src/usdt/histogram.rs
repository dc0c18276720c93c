//! Converts histograms, whose values the BPF programs or user space count, to metrics.

use super::blocks::RawBlockHash;
use super::maps;
use crate::metrics::{Exemplar, HistogramValue};

/// Maximum number of upper bounds of a histogram's buckets. If this number differs from `BOUNDS` of `bpf/common.h`, the
/// arrays have another length than in the generated code, and the crate does not compile.
const BOUNDS: usize = 15;

/// The upper bounds of a histogram's buckets, and the factor between the unit of the metric and the unit that the BPF
/// programs count in.
pub(super) struct Buckets {
    /// Units of the BPF programs per unit of the metric: for example 1e9 if the programs count nanoseconds and the
    /// metric is in seconds.
    unit: f64,
    /// Upper bounds, in the unit of the metric.
    pub bounds: &'static [f64],
}

impl Buckets {
    pub const fn new(unit: f64, bounds: &'static [f64]) -> Self {
        assert!(bounds.len() <= BOUNDS);
        Buckets { unit, bounds }
    }

    /// The bounds in the unit of the BPF programs. Unused bounds have the maximum value of i64. No value is above an
    /// unused bound, and the bucket of the first unused bound contains all values above the last used bound.
    pub fn for_programs(&self) -> [u64; BOUNDS] {
        let mut scaled = [i64::MAX as u64; BOUNDS];
        for (scaled, bound) in scaled.iter_mut().zip(self.bounds) {
            *scaled = (bound * self.unit).round() as u64;
        }
        scaled
    }

    /// Converts the counts of the BPF programs to a histogram. `sum` is the sum of all values, `buckets` the number of
    /// values in each bucket. Buckets that the metric does not use are omitted.
    pub fn to_histogram(&self, sum: u64, buckets: [u64; BOUNDS + 1]) -> HistogramValue {
        let counts = buckets[..=self.bounds.len()].to_vec();
        HistogramValue { sum: sum as f64 / self.unit, counts, exemplars: Vec::new() }
    }
}

/// Height, hash and time of a connected block, for the exemplars of a histogram and for the report of a block.
#[derive(Clone, Copy)]
pub(super) struct BlockId {
    pub height: i32,
    pub hash: RawBlockHash,
    /// Time at which the node connected the block, Unix seconds.
    pub time: f64,
}

/// A histogram of a value that each block has, for example its number of transactions. User space counts the values,
/// and keeps the last block of each bucket.
#[derive(Clone, Copy, Default)]
pub(super) struct CountedHistogram {
    sum: u64,
    buckets: [u64; BOUNDS + 1],
    /// The last value in each bucket, with the block that had this value.
    last: [Option<(u64, BlockId)>; BOUNDS + 1],
}

impl CountedHistogram {
    /// Adds a block's value, for example its number of transactions, to the histogram. `value` is in the unit of the
    /// BPF programs.
    pub fn observe(&mut self, buckets: &Buckets, value: u64, block: &BlockId) {
        let bucket = buckets.for_programs().iter().filter(|bound| **bound < value).count();
        self.sum = self.sum.wrapping_add(value);
        self.buckets[bucket] += 1;
        self.last[bucket] = Some((value, *block));
    }

    /// The histogram in the unit of the metric, with the last block in each bucket as its exemplar.
    pub fn histogram(&self, buckets: &Buckets) -> HistogramValue {
        let exemplar = |&(value, block): &(u64, BlockId)| {
            let labels =
                vec![("block_height", block.height.to_string()), ("block_hash", maps::hash(&block.hash))];
            Exemplar { labels, value: value as f64 / buckets.unit, time: block.time }
        };
        let last = self.last.iter().enumerate();
        let exemplars = last.filter_map(|(bucket, last)| Some((bucket, exemplar(last.as_ref()?)))).collect();
        HistogramValue { exemplars, ..buckets.to_histogram(self.sum, self.buckets) }
    }
}

/// Buckets for the number of transactions or of inputs in a block.
pub(super) const TXS: Buckets = Buckets::new(
    1.0,
    &[0.0, 1.0, 10.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 2000.0, 3000.0, 4000.0, 5000.0, 7500.0, 10000.0],
);
