//! The model: a family is a declaration and its samples at one moment.
//!
//! Every metric has one [`Declaration`], whether its values are pushed (`pushed`) or read when it is scraped. The expositions
//! ([`exposition`](super::exposition)) and METRICS.md ([`reference`](super::reference)) are made of nothing else.

use std::sync::Arc;
use std::time::Duration;

/// The type of a family.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// Only increases; its name ends in `_total`.
    Counter,
    /// Increases and decreases.
    Gauge,
    /// Counts values in buckets with these upper bounds, in the unit of the metric. One more bucket is for all larger values.
    Histogram(&'static [f64]),
}

impl Kind {
    /// As the expositions and METRICS.md have it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram(_) => "histogram",
        }
    }
}

/// How long samples are shown.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Lifetime {
    /// As long as the exporter runs.
    Exporter,
    /// Values of the node: until it is away or they are too old (METRICS.md has the rule).
    Node,
}

/// The properties of a family without its samples.
#[derive(Clone, Copy, Debug)]
pub struct Declaration {
    /// The full name; a counter's ends in `_total`.
    pub name: &'static str,
    /// Its type.
    pub kind: Kind,
    /// The names of its labels.
    pub labels: &'static [&'static str],
    /// A sentence without its full stop. It has the unit, unless the name has it.
    pub help: &'static str,
    /// Where its values come from; of tracepoints their names, `net:inbound_message`.
    pub sources: &'static [&'static str],
    /// How long its samples are shown.
    pub lifetime: Lifetime,
}

/// A gauge of the exporter's own.
pub const fn gauge(name: &'static str, help: &'static str, sources: &'static [&'static str]) -> Declaration {
    Declaration { name, kind: Kind::Gauge, labels: &[], help, sources, lifetime: Lifetime::Exporter }
}

/// A counter that the exporter adds to.
pub const fn counter(
    name: &'static str,
    help: &'static str,
    sources: &'static [&'static str],
) -> Declaration {
    Declaration { kind: Kind::Counter, ..gauge(name, help, sources) }
}

/// A histogram with these upper bounds.
pub const fn histogram(
    name: &'static str,
    help: &'static str,
    sources: &'static [&'static str],
    bounds: &'static [f64],
) -> Declaration {
    Declaration { kind: Kind::Histogram(bounds), ..gauge(name, help, sources) }
}

impl Declaration {
    /// With these labels.
    pub const fn by(self, labels: &'static [&'static str]) -> Self {
        Declaration { labels, ..self }
    }

    /// Its values are the node's.
    pub const fn of_node(self) -> Self {
        Declaration { lifetime: Lifetime::Node, ..self }
    }

    /// The family with one sample, without labels.
    pub fn value(self, value: impl Into<Value>) -> Family {
        self.value_if_known(Some(value))
    }

    /// The same; absent without a value.
    pub fn value_if_known(self, value: Option<impl Into<Value>>) -> Family {
        self.samples(value.map(|value| ([""; 0], value)))
    }

    /// The family with these samples: for each the values of its labels, and its value.
    pub fn samples<L, V>(self, samples: impl IntoIterator<Item = (L, V)>) -> Family
    where
        L: IntoIterator<Item: Into<String>>,
        V: Into<Value>,
    {
        let samples = samples.into_iter().map(|(labels, value)| Sample::new(labels, value.into()));
        Family { declaration: self, samples: Arc::new(samples.collect()) }
    }
}

/// A family at one moment. Without samples it is absent.
#[derive(Clone, Debug)]
pub struct Family {
    /// Its declaration.
    pub declaration: Declaration,
    /// Its samples.
    pub samples: Arc<Vec<Sample>>,
}

/// One sample.
#[derive(Clone, Debug)]
pub struct Sample {
    /// As many as the declaration has labels.
    pub labels: Vec<String>,
    /// Its value.
    pub value: Value,
}

impl Sample {
    pub(super) fn new(labels: impl IntoIterator<Item: Into<String>>, value: Value) -> Self {
        Sample { labels: labels.into_iter().map(Into::into).collect(), value }
    }
}

/// A sample's value.
#[derive(Clone, Debug)]
pub enum Value {
    /// A counter's total.
    Count(u64),
    /// A gauge's value, or a counter of seconds.
    Number(f64),
    /// The counts of a histogram.
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
    /// The number of a gauge or a counter.
    pub fn number(&self) -> Option<f64> {
        match self {
            Value::Count(count) => Some(*count as f64),
            Value::Number(number) => Some(*number),
            Value::Histogram(_) => None,
        }
    }
}

/// The counts of a histogram.
#[derive(Clone, Debug, Default)]
pub struct HistogramValue {
    /// The sum of all values.
    pub sum: f64,
    /// Values in each bucket alone, in the order of the declaration's bounds; the last is of those above all bounds.
    pub counts: Vec<u64>,
    /// Examples of what is in a bucket, with the bucket's place in `counts`.
    pub exemplars: Vec<(usize, Exemplar)>,
}

impl HistogramValue {
    /// One of these bounds that has counted nothing.
    pub(super) fn empty(bounds: &[f64]) -> Self {
        HistogramValue { counts: vec![0; bounds.len() + 1], ..HistogramValue::default() }
    }

    /// Counts a value in the first bucket whose bound it does not exceed.
    pub(super) fn observe(&mut self, bounds: &[f64], value: f64) {
        self.sum += value;
        self.counts[bounds.iter().filter(|bound| value > **bound).count()] += 1;
    }
}

/// An example of what is in a bucket, for scrapers that ask for OpenMetrics.
#[derive(Clone, Debug)]
pub struct Exemplar {
    /// OpenMetrics allows 128 characters, names and values together.
    pub labels: Vec<(&'static str, String)>,
    /// In the unit of the metric.
    pub value: f64,
    /// Unix seconds.
    pub time: f64,
}
