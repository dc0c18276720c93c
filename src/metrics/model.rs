//! The types for metrics. A family, as in OpenMetrics, is a metric with all its samples (one for each set of label
//! values) at one moment.
//!
//! Every metric has one [`Declaration`], both if its values are set between scrapes (`pushed`) and if its values are
//! read at the scrape. [`exposition`](super::exposition) writes the exposition formats from families, and
//! [`reference`](super::reference) writes METRICS.md from declarations.

use std::sync::Arc;
use std::time::Duration;

/// The type of a metric family: counter, gauge or histogram.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// A value that never decreases. The name of the metric ends in `_total`.
    Counter,
    /// A value that can increase and decrease.
    Gauge,
    /// Counts of observed values in buckets. The field has the buckets' upper bounds, in the unit of the metric. An
    /// additional last bucket counts all larger values.
    Histogram(&'static [f64]),
}

impl Kind {
    /// Name of the type in the exposition formats and in METRICS.md.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram(_) => "histogram",
        }
    }
}

/// The description of a metric family: everything except its samples.
#[derive(Clone, Copy, Debug)]
pub struct Declaration {
    /// The full name of the metric. The name of a counter ends in `_total`.
    pub name: &'static str,
    /// Type of the family.
    pub kind: Kind,
    /// Names of the labels.
    pub labels: &'static [&'static str],
    /// Help text: one sentence without a full stop at the end. The text states the unit, unless the name contains the
    /// unit.
    pub help: &'static str,
    /// Sources of the values, for METRICS.md, for example the name of a JSON-RPC method. A tracepoint is given as its
    /// full name, for example `net:inbound_message`.
    pub sources: &'static [&'static str],
    /// Whether the samples were read from the node. Samples from the node are exported until the connection to the node
    /// is lost or they expire (METRICS.md has the rules), all other samples as long as the exporter runs.
    pub of_node: bool,
}

/// Declares a gauge.
pub const fn gauge(name: &'static str, help: &'static str, sources: &'static [&'static str]) -> Declaration {
    Declaration { name, kind: Kind::Gauge, labels: &[], help, sources, of_node: false }
}

/// Declares a counter.
pub const fn counter(
    name: &'static str,
    help: &'static str,
    sources: &'static [&'static str],
) -> Declaration {
    Declaration { kind: Kind::Counter, ..gauge(name, help, sources) }
}

/// Declares a histogram whose buckets have these upper bounds.
pub const fn histogram(
    name: &'static str,
    help: &'static str,
    sources: &'static [&'static str],
    bounds: &'static [f64],
) -> Declaration {
    Declaration { kind: Kind::Histogram(bounds), ..gauge(name, help, sources) }
}

impl Declaration {
    /// Sets the label names.
    pub const fn by(self, labels: &'static [&'static str]) -> Self {
        Declaration { labels, ..self }
    }

    /// Declares that the samples are read from the node.
    pub const fn of_node(self) -> Self {
        Declaration { of_node: true, ..self }
    }

    /// A family with one sample without labels.
    pub fn value(self, value: impl Into<Value>) -> Family {
        self.value_if_known(Some(value))
    }

    /// A family with one sample without labels if there is a value, otherwise without samples.
    pub fn value_if_known(self, value: Option<impl Into<Value>>) -> Family {
        self.samples(value.map(|value| ([""; 0], value)))
    }

    /// A family with these samples. Each sample is a pair of its label values and its value.
    pub fn samples<L, V>(self, samples: impl IntoIterator<Item = (L, V)>) -> Family
    where
        L: IntoIterator<Item: Into<String>>,
        V: Into<Value>,
    {
        let samples = samples.into_iter().map(|(labels, value)| Sample::new(labels, value.into()));
        Family { declaration: self, samples: Arc::new(samples.collect()) }
    }
}

/// A metric family with its samples at one moment. A family without samples is not exported.
#[derive(Clone, Debug)]
pub struct Family {
    /// Declaration of the family.
    pub declaration: Declaration,
    /// The current samples.
    pub samples: Arc<Vec<Sample>>,
}

/// One sample of a family: its label values and its value.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Label values, in the order of the declaration's label names.
    pub labels: Vec<String>,
    /// Value of the sample.
    pub value: Value,
}

impl Sample {
    pub(super) fn new(labels: impl IntoIterator<Item: Into<String>>, value: Value) -> Self {
        Sample { labels: labels.into_iter().map(Into::into).collect(), value }
    }
}

/// The value of a sample. The type of the family determines the variant.
#[derive(Clone, Debug)]
pub enum Value {
    /// Value of a counter that counts events.
    Count(u64),
    /// Value of a gauge, or of a counter of seconds.
    Number(f64),
    /// Value of a histogram.
    Histogram(HistogramValue),
}

impl From<u64> for Value {
    fn from(count: u64) -> Self {
        Value::Count(count)
    }
}

impl From<f64> for Value {
    fn from(number: f64) -> Self {
        Value::Number(number)
    }
}

impl From<Duration> for Value {
    fn from(time: Duration) -> Self {
        Value::Number(time.as_secs_f64())
    }
}

impl From<HistogramValue> for Value {
    fn from(histogram: HistogramValue) -> Self {
        Value::Histogram(histogram)
    }
}

impl Value {
    /// The value of a gauge or counter as a number; `None` for a histogram.
    pub fn number(&self) -> Option<f64> {
        match self {
            Value::Count(count) => Some(*count as f64),
            Value::Number(number) => Some(*number),
            Value::Histogram(_) => None,
        }
    }
}

/// The value of a histogram: sum, bucket counts and exemplars.
#[derive(Clone, Debug, Default)]
pub struct HistogramValue {
    /// Sum of all observed values.
    pub sum: f64,
    /// Number of values in each bucket, not cumulative, in the order of the declaration's bounds. The last element
    /// counts values above all bounds.
    pub counts: Vec<u64>,
    /// Exemplars, each with the index of its bucket in `counts`.
    pub exemplars: Vec<(usize, Exemplar)>,
}

impl HistogramValue {
    /// A histogram without observations, whose buckets have these upper bounds.
    pub(super) fn empty(bounds: &[f64]) -> Self {
        HistogramValue { counts: vec![0; bounds.len() + 1], ..HistogramValue::default() }
    }

    /// Adds a value to the first bucket whose upper bound is not below the value.
    pub(super) fn observe(&mut self, bounds: &[f64], value: f64) {
        self.sum += value;
        self.counts[bounds.iter().filter(|bound| value > **bound).count()] += 1;
    }
}

/// An exemplar of a histogram bucket: labels, value and time of one observation. Exemplars are exported only in
/// OpenMetrics.
#[derive(Clone, Debug)]
pub struct Exemplar {
    /// Labels. OpenMetrics allows at most 128 characters for all label names and values of an exemplar together.
    pub labels: Vec<(&'static str, String)>,
    /// Observed value, in the unit of the metric.
    pub value: f64,
    /// Time of the observation in Unix seconds.
    pub time: f64,
}
