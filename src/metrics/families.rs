//! Kinds of metric families. They differ in how they are set, and in what happens to them when the node goes away.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::Histogram;

use super::samples::{Labels, Samples, Value};

/// A family whose label names are fixed where it is declared.
pub struct Labeled<const N: usize, M> {
    pub(super) samples: Samples<M>,
    pub(super) names: [&'static str; N],
}

impl<const N: usize, M> Labeled<N, M> {
    fn labels(&self, values: [&str; N]) -> Labels {
        self.names.into_iter().zip(values.map(str::to_string)).collect()
    }
    /// Removes all samples.
    pub fn clear(&self) {
        self.samples.write().clear();
    }
}

impl<const N: usize> Labeled<N, Value> {
    /// One sample's value.
    pub fn get(&self, labels: [&str; N]) -> Option<f64> {
        self.samples.read().get(&self.labels(labels)).map(Value::get)
    }
    /// The labels of each sample, name and value.
    pub fn labels_present(&self) -> Vec<Vec<(&'static str, String)>> {
        self.samples.read().keys().cloned().collect()
    }
    /// Sets one sample and leaves the others.
    pub fn set(&self, labels: [&str; N], value: f64) {
        self.samples.with(self.labels(labels), |sample| sample.set(value));
    }
    /// Makes these the only samples.
    pub fn replace<'a>(&self, samples: impl IntoIterator<Item = ([&'a str; N], f64)>) {
        let samples = samples.into_iter().map(|(labels, value)| (self.labels(labels), Value::new(value)));
        *self.samples.write() = samples.collect();
    }
}

impl<const N: usize> Labeled<N, Counter> {
    /// Adds `n`; zero makes the sample appear.
    pub fn inc_by(&self, labels: [&str; N], n: u64) {
        self.samples.with(self.labels(labels), |sample| {
            sample.inc_by(n);
        });
    }
}

/// A counter of seconds.
pub struct SecondsCounter(pub(super) Labeled<0, Counter<f64, AtomicU64>>);

impl SecondsCounter {
    /// Adds a time; zero makes the sample appear.
    pub fn inc_by(&self, time: Duration) {
        self.0.samples.with(Labels::new(), |sample| {
            sample.inc_by(time.as_secs_f64());
        });
    }
}

/// A gauge that was read from the node: absent until it is set, and while the node is away.
pub struct NodeGauge(pub(super) Labeled<0, Value>);

impl NodeGauge {
    /// The value that is shown.
    pub fn get(&self) -> Option<f64> {
        self.0.get([])
    }
    /// Shows this value; `None`, the node did not give one, removes it, and so does what is no number.
    pub fn set(&self, value: Option<impl Into<f64>>) {
        match value.map(Into::into).filter(|value: &f64| value.is_finite()) {
            Some(value) => self.0.set([], value),
            None => self.0.clear(),
        }
    }
}

/// A gauge of the exporter's own: absent until it is set; kept when the node goes away.
pub struct OwnGauge(pub(super) Labeled<0, Value>);

impl OwnGauge {
    /// Shows this value.
    pub fn set(&self, value: impl Into<f64>) {
        self.0.set([], value.into());
    }
}

/// A counter that the node keeps and we only repeat: absent while the node is away, restarts with it.
pub struct NodeCounter(pub(super) Labeled<0, Counter>);

impl NodeCounter {
    /// The total that is shown.
    pub fn get(&self) -> Option<f64> {
        self.0.samples.read().values().next().map(|total| total.get() as f64)
    }
    /// Shows this total; `None` removes it.
    pub fn set(&self, total: Option<u64>) {
        match total {
            Some(total) => self.0.samples.with(Labels::new(), |sample| sample.inner().store(total, Relaxed)),
            None => self.0.clear(),
        }
    }
}

/// Counters that the node's system keeps and we only repeat: absent while the node is away.
pub struct NodeCounters(pub(super) Labeled<1, Counter<f64, AtomicU64>>);

impl NodeCounters {
    /// Makes these the only totals.
    pub fn replace<'a>(&self, totals: impl IntoIterator<Item = (&'a str, f64)>) {
        let totals = totals.into_iter().map(|(label, total)| {
            let counter = Counter::<f64, AtomicU64>::default();
            counter.inc_by(total);
            (self.0.labels([label]), counter)
        });
        *self.0.samples.write() = totals.collect();
    }
}

/// A counter of events that we see: absent until [`start`](Self::start)ed, because a node that does not tell us of
/// such events has no count of them; kept when the node goes away.
pub struct EventCounter(pub(super) Labeled<0, Counter>);

impl EventCounter {
    /// Events are seen from now on: shows 0.
    pub fn start(&self) {
        self.inc_by(0);
    }
    /// One event.
    pub fn inc(&self) {
        self.inc_by(1);
    }
    /// Adds `n` events.
    pub fn inc_by(&self, n: u64) {
        self.0.inc_by([], n);
    }
    /// Events are no longer seen: a count that stands still would be read as 'nothing happens'.
    pub fn stop(&self) {
        self.0.clear();
    }
}

/// A histogram of what we see: absent until [`start`](Self::start)ed, and kept when the node goes away.
pub struct EventHistogram {
    pub(super) samples: Labeled<0, Histogram>,
    pub(super) buckets: &'static [f64],
}

impl EventHistogram {
    /// Events are seen from now on: shows that there were none.
    pub fn start(&self) {
        let empty = || Histogram::new(self.buckets.iter().copied());
        self.samples.samples.write().entry(Labels::new()).or_insert_with(empty);
    }
    /// One event, once started.
    pub fn observe(&self, value: f64) {
        if let Some(histogram) = self.samples.samples.read().get(&Labels::new()) {
            histogram.observe(value);
        }
    }
}
