//! Declaring metrics: registers each, remembers what to clear when the node goes away, and what METRICS.md says.

use std::fmt::Debug;

use prometheus_client::encoding::EncodeMetric;
use prometheus_client::metrics::TypedMetric;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::families::{
    EventCounter, EventHistogram, Labeled, NodeCounter, NodeCounters, NodeGauge, OwnGauge, SecondsCounter,
};
use super::reference::Row;
use super::samples::{Lifetime, Samples, Value};

/// Collects declarations: registers each, remembers what to clear and what METRICS.md says.
#[derive(Default)]
pub(super) struct Declare {
    pub registry: Registry,
    /// Of what is read at each poll.
    pub lifetime: Lifetime,
    pub read_from_node: Vec<Box<dyn Fn() + Send + Sync>>,
    /// For each family its name, if it has samples.
    pub present: Vec<Box<dyn Fn() -> Option<&'static str> + Send + Sync>>,
    pub rows: Vec<Row>,
}

impl Declare {
    pub fn row(&mut self, name: &str, kind: &'static str, labels: &[&'static str], help: &str, source: &str) {
        self.rows.push(Row::new(name, kind, labels, help, source));
    }

    /// Registers a family. `name` is the full name.
    fn family<const N: usize, M>(
        &mut self,
        name: &'static str,
        names: [&'static str; N],
        help: &str,
    ) -> Labeled<N, M>
    where
        M: EncodeMetric + TypedMetric + Debug + Send + Sync + 'static,
    {
        let samples = Samples::new();
        self.registry.register(registered(name), help, samples.clone());
        let present = samples.clone();
        self.present.push(Box::new(move || (!present.is_empty()).then_some(name)));
        Labeled { samples, names, lifetime: None }
    }

    /// What is read from the node goes with it, and is not shown when it is too old.
    fn read_from_node<const N: usize, M: Send + Sync + 'static>(
        &mut self,
        family: Labeled<N, M>,
    ) -> Labeled<N, M> {
        let samples = family.samples.clone();
        self.read_from_node.push(Box::new(move || samples.clear()));
        Labeled { lifetime: Some(self.lifetime.clone()), ..family }
    }

    pub fn gauge(&mut self, name: &'static str, help: &str, source: &str) -> NodeGauge {
        NodeGauge(self.gauge_by(name, [], help, source))
    }

    pub fn gauge_by<const N: usize>(
        &mut self,
        name: &'static str,
        names: [&'static str; N],
        help: &str,
        source: &str,
    ) -> Labeled<N, Value> {
        let family = self.own_gauge_by(name, names, help, source);
        self.read_from_node(family)
    }

    /// A gauge of the exporter's own.
    pub fn own_gauge(&mut self, name: &'static str, help: &str, source: &str) -> OwnGauge {
        OwnGauge(self.own_gauge_by(name, [], help, source))
    }

    /// A gauge of the exporter's own, which stays when the node goes away.
    pub fn own_gauge_by<const N: usize>(
        &mut self,
        name: &'static str,
        names: [&'static str; N],
        help: &str,
        source: &str,
    ) -> Labeled<N, Value> {
        self.row(name, "gauge", &names, help, source);
        self.family(name, names, help)
    }

    pub fn node_counter(&mut self, name: &'static str, help: &str, source: &str) -> NodeCounter {
        let family = self.counter_by(name, [], help, source);
        NodeCounter(self.read_from_node(family))
    }

    pub fn node_counters(
        &mut self,
        name: &'static str,
        label: &'static str,
        help: &str,
        source: &str,
    ) -> NodeCounters {
        self.row(name, "counter", &[label], help, source);
        let family = self.family(name, [label], help);
        NodeCounters(self.read_from_node(family))
    }

    pub fn events(&mut self, name: &'static str, help: &str, source: &str) -> EventCounter {
        EventCounter(self.counter_by(name, [], help, source))
    }

    pub fn seconds(&mut self, name: &'static str, help: &str, source: &str) -> SecondsCounter {
        self.row(name, "counter", &[], help, source);
        SecondsCounter(self.family(name, [], help))
    }

    /// `name` is the full name, with `_total`.
    pub fn counter_by<const N: usize>(
        &mut self,
        name: &'static str,
        names: [&'static str; N],
        help: &str,
        source: &str,
    ) -> Labeled<N, Counter> {
        self.row(name, "counter", &names, help, source);
        self.family(name, names, help)
    }

    /// A histogram that is absent until it is started.
    pub fn event_histogram(
        &mut self,
        name: &'static str,
        help: &str,
        source: &str,
        buckets: &'static [f64],
    ) -> EventHistogram {
        self.row(name, "histogram", &[], help, source);
        EventHistogram { samples: self.family(name, [], help), buckets }
    }

    pub fn histogram(&mut self, name: &'static str, help: &str, source: &str, buckets: &[f64]) -> Histogram {
        self.row(name, "histogram", &[], help, source);
        let histogram = Histogram::new(buckets.iter().copied());
        self.registry.register(name, help, histogram.clone());
        histogram
    }
}

/// The name without the `_total` of a counter, which prometheus-client appends.
fn registered(name: &str) -> &str {
    name.strip_suffix("_total").unwrap_or(name)
}
