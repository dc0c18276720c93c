//! Histograms that the programs count.

use super::blocks::Hash;
use super::maps;
use crate::metrics::{Exemplar, Reading};

/// `BOUNDS` of `bpf/common.h`; the types of the generated code are checked against it.
const BOUNDS: usize = 15;

/// The buckets of a histogram.
pub(super) struct Buckets {
    /// How many of what the programs count make one of what the metric shows.
    unit: f64,
    /// Upper bounds, as the metric shows them.
    bounds: &'static [f64],
}

impl Buckets {
    pub const fn new(unit: f64, bounds: &'static [f64]) -> Self {
        assert!(bounds.len() <= BOUNDS);
        Buckets { unit, bounds }
    }

    /// Bounds as the programs compare with them. No value is larger than an unused one, so that the first of these takes all
    /// that is larger than the others.
    pub fn for_programs(&self) -> [u64; BOUNDS] {
        let mut scaled = [i64::MAX as u64; BOUNDS];
        for (scaled, bound) in scaled.iter_mut().zip(self.bounds) {
            *scaled = (bound * self.unit).round() as u64;
        }
        scaled
    }

    /// What was counted.
    pub fn reading(&self, sum: u64, buckets: [u64; BOUNDS + 1]) -> Reading {
        let bounds = self.bounds.iter().copied().chain([f64::INFINITY]);
        Reading::Histogram(sum as f64 / self.unit, bounds.zip(buckets).collect())
    }
}

/// A block that was connected, for exemplars.
#[derive(Clone, Copy)]
pub(super) struct Block {
    pub height: i32,
    pub hash: Hash,
    /// Unix seconds.
    pub time: f64,
}

/// A histogram that is counted in user space, with the last block in each bucket.
#[derive(Clone, Copy, Default)]
pub(super) struct Counted {
    sum: u64,
    buckets: [u64; BOUNDS + 1],
    last: [Option<(u64, Block)>; BOUNDS + 1],
}

impl Counted {
    /// `value` is in the unit that programs count in.
    pub fn observe(&mut self, buckets: &Buckets, value: u64, of: &Block) {
        let bucket = buckets.for_programs().iter().filter(|bound| **bound < value).count();
        self.sum = self.sum.wrapping_add(value);
        self.buckets[bucket] += 1;
        self.last[bucket] = Some((value, *of));
    }

    pub fn reading(&self, buckets: &Buckets) -> Reading {
        buckets.reading(self.sum, self.buckets)
    }

    /// As exemplars of this family.
    pub fn exemplars(&self, family: &'static str, buckets: &Buckets) -> impl Iterator<Item = Exemplar> {
        self.last.iter().enumerate().filter_map(move |(bucket, last)| {
            let (value, block) = (*last)?;
            Some(Exemplar {
                family,
                bucket,
                labels: format!(
                    "block_height=\"{}\",block_hash=\"{}\"",
                    block.height,
                    maps::hash(&block.hash)
                ),
                value: value as f64 / buckets.unit,
                time: block.time,
            })
        })
    }
}

pub(super) const TXS: Buckets = Buckets::new(
    1.0,
    &[0.0, 1.0, 10.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 2000.0, 3000.0, 4000.0, 5000.0, 7500.0, 10000.0],
);
