//! Families that are counted elsewhere and read when they are scraped, all from one snapshot.

use std::borrow::Cow;
use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::declare::Declare;
use super::exemplars::Exemplar;
use super::reference::Row;
use super::samples::Value;
use super::{Format, exemplars, process, text};

/// What a sample says.
pub enum Reading {
    /// A counter's total.
    Count(u64),
    /// A gauge's value.
    Value(f64),
    /// A histogram: the sum, and for each upper bound how many are in its bucket alone. The last bound is infinite.
    Histogram(f64, Vec<(f64, u64)>),
}

/// One sample: values for the family's labels, and what it says.
pub struct Sample(pub Vec<String>, pub Reading);

/// What a family is.
#[derive(Clone, Copy)]
pub enum Kind {
    /// Goes up only.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts in buckets.
    Histogram,
}

/// A declaration. No samples means that the value is not known, and the family is absent.
pub struct Family<S> {
    /// The full name; a counter's ends in `_total`.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// The names of its labels.
    pub labels: &'static [&'static str],
    /// A sentence without its full stop; it says the unit where the name does not.
    pub help: &'static str,
    /// Where the number comes from.
    pub sources: &'static [&'static str],
    /// Reads its samples from a snapshot.
    pub read: fn(&S) -> Vec<Sample>,
}

/// A registry of such families.
pub struct Snapshots {
    registry: Registry,
    exemplars: Box<dyn Fn() -> Vec<Exemplar> + Send + Sync>,
}

impl Snapshots {
    /// Each sample also has these labels.
    pub fn new(labels: &[(&'static str, &str)], collectors: Vec<Box<dyn Collector>>) -> Self {
        let labels = labels.iter().map(|(name, value)| (Cow::from(*name), Cow::from(value.to_string())));
        let mut declare = Declare { registry: Registry::with_labels(labels), ..Declare::default() };
        collectors.into_iter().for_each(|collector| declare.registry.register_collector(collector));
        process::declare(&mut declare);
        Snapshots { registry: declare.registry, exemplars: Box::new(Vec::new) }
    }

    /// Adds these exemplars for scrapers that ask for OpenMetrics.
    pub fn with_exemplars(self, exemplars: impl Fn() -> Vec<Exemplar> + Send + Sync + 'static) -> Self {
        Snapshots { exemplars: Box::new(exemplars), ..self }
    }

    /// All samples as a scraper reads them.
    pub fn render(&self, format: Format) -> String {
        let text = text::render(&self.registry, format);
        match format {
            Format::OpenMetrics => exemplars::insert(&text, &(self.exemplars)()),
            Format::Text => text,
        }
    }
}

/// Reads these families from one snapshot for each scrape.
pub fn collector<S: 'static>(
    families: &'static [Family<S>],
    snapshot: impl Fn() -> S + Send + Sync + 'static,
) -> Box<dyn Collector> {
    Box::new(Scrape { families, snapshot: Box::new(snapshot) })
}

/// Lines of `METRICS.md`.
pub fn reference<S>(families: &[Family<S>]) -> Vec<Row> {
    let row = |family: &Family<S>| {
        let kind = match family.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        Row::new(family.name, kind, family.labels, family.help, &family.sources.join(", "))
    };
    families.iter().map(row).collect()
}

/// Lines of `METRICS.md` for what every registry has besides.
pub fn process_rows() -> Vec<Row> {
    let mut process = Declare::default();
    process::declare(&mut process);
    process.rows
}

struct Scrape<S: 'static> {
    families: &'static [Family<S>],
    snapshot: Box<dyn Fn() -> S + Send + Sync>,
}

impl<S> fmt::Debug for Scrape<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Scrape")
    }
}

impl<S> Collector for Scrape<S> {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let snapshot = (self.snapshot)();
        for family in self.families {
            let samples = (family.read)(&snapshot);
            if samples.is_empty() {
                continue;
            }
            let (name, kind) = match family.kind {
                Kind::Counter => {
                    let stem = family.name.strip_suffix("_total").expect("a counter's name ends in _total");
                    (stem, MetricType::Counter)
                }
                Kind::Gauge => (family.name, MetricType::Gauge),
                Kind::Histogram => (family.name, MetricType::Histogram),
            };
            let mut encoder = encoder.encode_descriptor(name, &format!("{}.", family.help), None, kind)?;
            for Sample(values, reading) in samples {
                let labels: Vec<_> = family.labels.iter().copied().zip(values).collect();
                if labels.is_empty() {
                    encode(&mut encoder, &reading)?;
                } else {
                    encode(&mut encoder.encode_family(&labels)?, &reading)?;
                }
            }
        }
        Ok(())
    }
}

fn encode(encoder: &mut MetricEncoder, reading: &Reading) -> Result<(), fmt::Error> {
    match reading {
        Reading::Count(total) => encoder.encode_counter::<NoLabelSet, _, u64>(total, None),
        Reading::Value(value) => Value::new(*value).show(encoder),
        Reading::Histogram(sum, buckets) => {
            let count = buckets.iter().map(|(_, count)| count).sum();
            encoder.encode_histogram::<NoLabelSet>(*sum, count, buckets, None)
        }
    }
}
