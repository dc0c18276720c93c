//! Kinds of metric families. They differ in how they are set, and in what happens to them when the node goes away.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::Histogram;

use super::samples::{ByLabels, Labels, Lifetime, Samples, Value};

/// A family whose label names are fixed where it is declared.
pub struct Labeled<const N: usize, M> {
    pub(super) samples: Samples<M>,
    pub(super) names: [&'static str; N],
    /// How long values that were read from the node are shown; `None` for the exporter's own.
    pub(super) lifetime: Option<Lifetime>,
}

impl<const N: usize, M> Labeled<N, M> {
    fn labels(&self, values: [&str; N]) -> Labels {
        self.names.into_iter().zip(values.map(str::to_string)).collect()
    }
    fn lifetime(&self) -> Duration {
        self.lifetime.as_ref().map_or(Duration::MAX, Lifetime::get)
    }
    /// Makes these the only samples. A family that is read from the node keeps its samples when there are none: a call that
    /// failed has none either, and they vanish when they are too old.
    fn replace_all<'a, T>(
        &self,
        shown_for: Duration,
        samples: impl IntoIterator<Item = ([&'a str; N], T)>,
        sample: impl Fn(T) -> M,
    ) {
        let samples: ByLabels<M> =
            samples.into_iter().map(|(labels, value)| (self.labels(labels), sample(value))).collect();
        if self.lifetime.is_none() || !samples.is_empty() {
            self.samples.write(shown_for, |all| *all = samples);
        }
    }
    /// Removes all samples.
    pub fn clear(&self) {
        self.samples.clear();
    }
}

impl<const N: usize> Labeled<N, Value> {
    /// One sample's value.
    pub fn get(&self, labels: [&str; N]) -> Option<f64> {
        self.samples.read(|samples| samples.get(&self.labels(labels)).map(Value::get))
    }
    /// The labels of each sample, name and value.
    pub fn labels_present(&self) -> Vec<Vec<(&'static str, String)>> {
        self.samples.read(|samples| samples.keys().cloned().collect())
    }
    /// Sets one sample and leaves the others.
    pub fn set(&self, labels: [&str; N], value: f64) {
        self.set_for(self.lifetime(), labels, value);
    }
    fn set_for(&self, shown_for: Duration, labels: [&str; N], value: f64) {
        self.samples.write(shown_for, |samples| {
            samples.insert(self.labels(labels), Value::new(value));
        });
    }
    /// Makes these the only samples. Without any, those of a family that is read from the node stay until they are too old.
    pub fn replace<'a>(&self, samples: impl IntoIterator<Item = ([&'a str; N], f64)>) {
        self.replace_for(self.lifetime(), samples);
    }
    /// The same, from a call with a rate limit of its own.
    pub fn replace_for<'a>(
        &self,
        shown_for: Duration,
        samples: impl IntoIterator<Item = ([&'a str; N], f64)>,
    ) {
        self.replace_all(shown_for, samples, Value::new);
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

/// A gauge that was read from the node: absent until it is set, when it is too old, and while the node is away.
pub struct NodeGauge(pub(super) Labeled<0, Value>);

impl NodeGauge {
    /// The value that is shown.
    pub fn get(&self) -> Option<f64> {
        self.0.get([])
    }
    /// Shows this value. `None`, or what is no number, means that the node gave no value: the last one stays until it is too
    /// old.
    pub fn set(&self, value: Option<impl Into<f64>>) {
        self.set_for(self.0.lifetime(), value);
    }
    /// The same, from a call with a rate limit of its own.
    pub fn set_for(&self, shown_for: Duration, value: Option<impl Into<f64>>) {
        if let Some(value) = value.map(Into::into).filter(|value: &f64| value.is_finite()) {
            self.0.set_for(shown_for, [], value);
        }
    }
    /// Removes the value.
    pub fn clear(&self) {
        self.0.clear();
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

/// A counter that the node keeps and we only repeat: absent when it is too old and while the node is away, restarts with it.
pub struct NodeCounter(pub(super) Labeled<0, Counter>);

impl NodeCounter {
    /// The total that is shown.
    pub fn get(&self) -> Option<f64> {
        self.0.samples.read(|samples| samples.values().next().map(|total| total.get() as f64))
    }
    /// Shows this total; without one the last stays until it is too old.
    pub fn set(&self, total: Option<u64>) {
        let counter = |total| {
            let counter: Counter = Counter::default();
            counter.inner().store(total, Relaxed);
            counter
        };
        self.0.replace_all(self.0.lifetime(), total.map(|total| ([], total)), counter);
    }
}

/// Counters that the node's system keeps and we only repeat: absent when they are too old and while the node is away.
pub struct NodeCounters(pub(super) Labeled<1, Counter<f64, AtomicU64>>);

impl NodeCounters {
    /// Makes these the only totals; without any the last ones stay until they are too old.
    pub fn replace<'a>(&self, totals: impl IntoIterator<Item = (&'a str, f64)>) {
        let totals = totals.into_iter().map(|(label, total)| ([label], total));
        let counter = |total| {
            let counter = Counter::<f64, AtomicU64>::default();
            counter.inc_by(total);
            counter
        };
        self.0.replace_all(self.0.lifetime(), totals, counter);
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
        self.samples.samples.write(Duration::MAX, |samples| {
            samples.entry(Labels::new()).or_insert_with(empty);
        });
    }
    /// One event, once started.
    pub fn observe(&self, value: f64) {
        self.samples.samples.read(|samples| {
            if let Some(histogram) = samples.get(&Labels::new()) {
                histogram.observe(value);
            }
        });
    }
}
