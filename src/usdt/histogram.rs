//! Histograms that the programs count.

use super::blocks::RawBlockHash;
use super::maps;
use crate::metrics::{Exemplar, HistogramValue};

/// `BOUNDS` of `bpf/common.h`; the types of the generated code are checked against it.
const BOUNDS: usize = 15;

/// The buckets of a histogram.
pub(super) struct Buckets {
    /// How many of what the programs count make one of what the metric shows.
    unit: f64,
    /// Upper bounds, as the metric shows them.
    pub bounds: &'static [f64],
}

impl Buckets {
    pub const fn new(unit: f64, bounds: &'static [f64]) -> Self {
        assert!(bounds.len() <= BOUNDS);
        Buckets { unit, bounds }
    }

    /// Bounds as the programs compare with them. No value is larger than an unused one, and the first of these takes all
    /// values that are larger than the others.
    pub fn for_programs(&self) -> [u64; BOUNDS] {
        let mut scaled = [i64::MAX as u64; BOUNDS];
        for (scaled, bound) in scaled.iter_mut().zip(self.bounds) {
            *scaled = (bound * self.unit).round() as u64;
        }
        scaled
    }

    /// The histogram of these counts: the sum, and the values in each bucket. The programs have more buckets than some metrics.
    pub fn to_histogram(&self, sum: u64, buckets: [u64; BOUNDS + 1]) -> HistogramValue {
        let counts = buckets[..=self.bounds.len()].to_vec();
        HistogramValue { sum: sum as f64 / self.unit, counts, exemplars: Vec::new() }
    }
}

/// A block that was connected, for exemplars.
#[derive(Clone, Copy)]
pub(super) struct BlockId {
    pub height: i32,
    pub hash: RawBlockHash,
    /// Unix seconds.
    pub time: f64,
}

/// A histogram that is counted in user space, with the last block in each bucket.
#[derive(Clone, Copy, Default)]
pub(super) struct CountedHistogram {
    sum: u64,
    buckets: [u64; BOUNDS + 1],
    last: [Option<(u64, BlockId)>; BOUNDS + 1],
}

impl CountedHistogram {
    /// `value` is in the unit that programs count in.
    pub fn observe(&mut self, buckets: &Buckets, value: u64, block: &BlockId) {
        let bucket = buckets.for_programs().iter().filter(|bound| **bound < value).count();
        self.sum = self.sum.wrapping_add(value);
        self.buckets[bucket] += 1;
        self.last[bucket] = Some((value, *block));
    }

    /// With the last block in each bucket as exemplar.
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

pub(super) const TXS: Buckets = Buckets::new(
    1.0,
    &[0.0, 1.0, 10.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 2000.0, 3000.0, 4000.0, 5000.0, 7500.0, 10000.0],
);
