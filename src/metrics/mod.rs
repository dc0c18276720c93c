//! The registry and the metric families, a file per area.
//!
//! Nothing here knows where a number came from. A metric is one declaration in its area's file: name, help, type and
//! source together; `METRICS.md` is generated from those declarations.
//!
//! Two kinds differ in what happens when the node goes away: what was *read from the node* (gauges, and counters that
//! the node keeps) disappears, what *we counted* stays.

mod blocks;
mod chain;
mod exporter;
mod mempool;
mod network;
mod process;
mod reference;
mod snapshot;
mod text;
mod utxo_cache;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::encoding::{EncodeMetric, MetricEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::{MetricType, TypedMetric};
use prometheus_client::registry::Registry;

pub use blocks::{Block, Blocks};
pub use chain::Chain;
pub use exporter::Exporter;
pub use mempool::{Mempool, REMOVAL_REASONS};
pub use network::{MESSAGE_TYPES, Network};
pub use reference::{Row, markdown};
pub use snapshot::{Family, Kind, Reading, Sample, Snapshots, reference};
pub use text::Format;
pub use utxo_cache::UtxoCache;

/// Every family of the IPC exporter, and the registry that renders them.
pub struct Metrics {
    registry: Registry,
    read_from_node: Vec<Box<dyn Fn() + Send + Sync>>,
    rows: Vec<reference::Row>,
    /// The block chain: tip, headers, difficulty, blocks connected.
    pub chain: Chain,
    /// The mempool and fees.
    pub mempool: Mempool,
    /// Peers and traffic.
    pub network: Network,
    /// The UTXO cache trace.
    pub utxo_cache: UtxoCache,
    /// The exporter itself and its connection to the node.
    pub exporter: Exporter,
    /// The last blocks.
    pub last_blocks: Blocks,
}

impl Metrics {
    /// All families, registered, with no samples but those of the exporter itself.
    pub fn new() -> Arc<Self> {
        let mut declare = Declare::default();
        let chain = Chain::declare(&mut declare);
        let mempool = Mempool::declare(&mut declare);
        let network = Network::declare(&mut declare);
        let utxo_cache = UtxoCache::declare(&mut declare);
        let exporter = Exporter::declare(&mut declare);
        process::declare(&mut declare);
        let Declare { registry, read_from_node, rows } = declare;
        Arc::new(Metrics {
            registry,
            read_from_node,
            rows,
            chain,
            mempool,
            network,
            utxo_cache,
            exporter,
            last_blocks: Blocks::default(),
        })
    }

    /// Removes everything that was read from the node: it is away, and a stale number is worse than none.
    pub fn node_is_away(&self) {
        self.exporter.up.set(0);
        self.read_from_node.iter().for_each(|clear| clear());
    }

    /// All samples as a scraper reads them.
    pub fn render(&self, format: Format) -> String {
        text::render(&self.registry, format)
    }

    /// Lines of `METRICS.md`.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }
}

/// The present time, in Unix seconds.
pub fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// A gauge's value. Whole numbers are printed as such.
#[derive(Debug, Default)]
pub struct Value(AtomicU64);

impl Value {
    fn new(value: f64) -> Self {
        Value(AtomicU64::new(value.to_bits()))
    }
    fn set(&self, value: f64) {
        self.0.store(value.to_bits(), Relaxed);
    }
    fn show(&self, encoder: &mut MetricEncoder) -> Result<(), std::fmt::Error> {
        /// Below this every whole number is an exact f64.
        const EXACT: f64 = (1u64 << 53) as f64;
        let value = f64::from_bits(self.0.load(Relaxed));
        if value.fract() == 0.0 && value.abs() < EXACT {
            encoder.encode_gauge(&(value as i64))
        } else {
            encoder.encode_gauge(&value)
        }
    }
}

impl EncodeMetric for Value {
    fn encode(&self, mut encoder: MetricEncoder) -> Result<(), std::fmt::Error> {
        self.show(&mut encoder)
    }
    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

impl TypedMetric for Value {
    const TYPE: MetricType = MetricType::Gauge;
}

type Labels = Vec<(&'static str, String)>;

/// The samples of one family, in the order of their labels. Unlike prometheus-client's `Family` it can forget samples,
/// and it prints a sample without labels without braces.
#[derive(Debug)]
struct Samples<M>(Arc<RwLock<BTreeMap<Labels, M>>>);

impl<M> Clone for Samples<M> {
    fn clone(&self) -> Self {
        Samples(self.0.clone())
    }
}

impl<M> Samples<M> {
    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<Labels, M>> {
        self.0.read().expect("nobody panics holding it")
    }
    fn write(&self) -> RwLockWriteGuard<'_, BTreeMap<Labels, M>> {
        self.0.write().expect("nobody panics holding it")
    }
}

impl<M: Default> Samples<M> {
    fn with(&self, labels: Labels, update: impl Fn(&M)) {
        if let Some(sample) = self.read().get(&labels) {
            return update(sample);
        }
        update(self.write().entry(labels).or_default());
    }
}

impl<M: EncodeMetric + TypedMetric> EncodeMetric for Samples<M> {
    fn encode(&self, mut encoder: MetricEncoder) -> Result<(), std::fmt::Error> {
        for (labels, sample) in self.read().iter() {
            if labels.is_empty() {
                return sample.encode(encoder);
            }
            sample.encode(encoder.encode_family(labels)?)?;
        }
        Ok(())
    }
    fn metric_type(&self) -> MetricType {
        M::TYPE
    }
    fn is_empty(&self) -> bool {
        self.read().is_empty()
    }
}

/// A family whose label names are fixed where it is declared.
pub struct By<const N: usize, M> {
    samples: Samples<M>,
    names: [&'static str; N],
}

impl<const N: usize, M: Default> By<N, M> {
    fn labels(&self, values: [&str; N]) -> Labels {
        self.names.into_iter().zip(values.map(str::to_string)).collect()
    }
    /// Removes all samples.
    pub fn clear(&self) {
        self.samples.write().clear();
    }
}

impl<const N: usize> By<N, Value> {
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

impl<const N: usize> By<N, Counter> {
    /// Adds `n`; zero makes the sample appear.
    pub fn inc_by(&self, labels: [&str; N], n: u64) {
        self.samples.with(self.labels(labels), |sample| {
            sample.inc_by(n);
        });
    }
}

/// A counter of seconds.
pub struct SecondsCounter(By<0, Counter<f64, AtomicU64>>);

impl SecondsCounter {
    /// Adds a time; zero makes the sample appear.
    pub fn inc_by(&self, time: Duration) {
        self.0.samples.with(Labels::new(), |sample| {
            sample.inc_by(time.as_secs_f64());
        });
    }
}

/// A gauge that was read from the node: absent until it is set, and while the node is away.
pub struct NodeGauge(By<0, Value>);

impl NodeGauge {
    /// Shows this value; `None`, the node did not give one, removes it, and so does what is no number.
    pub fn set(&self, value: Option<impl Into<f64>>) {
        match value.map(Into::into).filter(|value: &f64| value.is_finite()) {
            Some(value) => self.0.set([], value),
            None => self.0.clear(),
        }
    }
}

/// A gauge of an event that we saw: absent until it is set; kept when the node goes away.
pub struct EventGauge(NodeGauge);

impl EventGauge {
    /// Shows this value.
    pub fn set(&self, value: impl Into<f64>) {
        self.0.set(Some(value));
    }
}

/// A counter that the node keeps and we only repeat: absent while the node is away, restarts with it.
pub struct NodeCounter(By<0, Counter>);

impl NodeCounter {
    /// Shows this total; `None` removes it.
    pub fn set(&self, total: Option<u64>) {
        match total {
            Some(total) => self.0.samples.with(Labels::new(), |sample| sample.inner().store(total, Relaxed)),
            None => self.0.clear(),
        }
    }
}

/// A counter of events that we see: absent until [`start`](Self::start)ed, because a node that does not tell us of
/// such events has no count of them; kept when the node goes away.
pub struct EventCounter(By<0, Counter>);

impl EventCounter {
    /// From here on events are seen.
    pub fn start(&self) {
        self.inc_by(0);
    }
    /// One event.
    pub fn inc(&self) {
        self.inc_by(1);
    }
    /// So many.
    pub fn inc_by(&self, n: u64) {
        self.0.inc_by([], n);
    }
    /// Events are no longer seen: a count that stands still would be read as 'nothing happens'.
    pub fn stop(&self) {
        self.0.clear();
    }
}

/// Collects declarations: registers each, remembers what to clear and what METRICS.md says.
#[derive(Default)]
pub(crate) struct Declare {
    registry: Registry,
    read_from_node: Vec<Box<dyn Fn() + Send + Sync>>,
    rows: Vec<reference::Row>,
}

impl Declare {
    fn row(&mut self, name: &str, kind: &'static str, labels: &[&'static str], help: &str, source: &str) {
        self.rows.push(reference::Row::new(name, kind, labels, help, source));
    }

    fn by<const N: usize, M>(&mut self, name: &str, names: [&'static str; N], help: &str) -> By<N, M>
    where
        M: EncodeMetric + TypedMetric + std::fmt::Debug + Send + Sync + 'static,
    {
        let samples = Samples(Arc::default());
        self.registry.register(name, help, samples.clone());
        By { samples, names }
    }

    fn cleared_with_node<const N: usize, M: Send + Sync + 'static>(&mut self, by: &By<N, M>) {
        let samples = by.samples.clone();
        self.read_from_node.push(Box::new(move || samples.write().clear()));
    }

    fn gauge(&mut self, name: &'static str, help: &str, source: &str) -> NodeGauge {
        NodeGauge(self.gauge_by(name, [], help, source))
    }

    fn event_gauge(&mut self, name: &'static str, help: &str, source: &str) -> EventGauge {
        EventGauge(NodeGauge(self.own_gauge_by(name, [], help, source)))
    }

    fn gauge_by<const N: usize>(
        &mut self,
        name: &'static str,
        names: [&'static str; N],
        help: &str,
        source: &str,
    ) -> By<N, Value> {
        let by = self.own_gauge_by(name, names, help, source);
        self.cleared_with_node(&by);
        by
    }

    /// A gauge about ourselves, which stays when the node goes away.
    fn own_gauge_by<const N: usize>(
        &mut self,
        name: &'static str,
        names: [&'static str; N],
        help: &str,
        source: &str,
    ) -> By<N, Value> {
        self.row(name, "gauge", &names, help, source);
        self.by(name, names, help)
    }

    fn node_counter(&mut self, name: &'static str, help: &str, source: &str) -> NodeCounter {
        let by = self.counter_by(name, [], help, source);
        self.cleared_with_node(&by);
        NodeCounter(by)
    }

    fn events(&mut self, name: &'static str, help: &str, source: &str) -> EventCounter {
        EventCounter(self.counter_by(name, [], help, source))
    }

    fn seconds(&mut self, name: &'static str, help: &str, source: &str) -> SecondsCounter {
        self.row(name, "counter", &[], help, source);
        SecondsCounter(self.by(
            name.strip_suffix("_total").expect("a counter's name ends in _total"),
            [],
            help,
        ))
    }

    /// `name` is the full name, with `_total`.
    fn counter_by<const N: usize>(
        &mut self,
        name: &'static str,
        names: [&'static str; N],
        help: &str,
        source: &str,
    ) -> By<N, Counter> {
        self.row(name, "counter", &names, help, source);
        self.by(name.strip_suffix("_total").expect("a counter's name ends in _total"), names, help)
    }

    fn histogram(&mut self, name: &'static str, help: &str, source: &str, buckets: &[f64]) -> Histogram {
        self.row(name, "histogram", &[], help, source);
        let histogram = Histogram::new(buckets.iter().copied());
        self.registry.register(name, help, histogram.clone());
        histogram
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_the_node_did_not_give_is_absent_and_so_is_everything_of_a_node_that_is_away() {
        let metrics = Metrics::new();
        let shows = |what: &str| metrics.render(Format::Text).lines().any(|line| line.starts_with(what));
        assert!(!shows("bitcoin_chain_height"));
        metrics.chain.height.set(Some(7));
        metrics.network.bytes_received.set(Some(9));
        metrics.chain.blocks_connected.inc();
        assert!(shows("bitcoin_chain_height 7") && shows("bitcoin_bytes_recv_total 9"));
        metrics.chain.height.set(None::<f64>);
        assert!(!shows("bitcoin_chain_height "));
        metrics.chain.height.set(Some(8));
        metrics.node_is_away();
        assert!(!shows("bitcoin_chain_height ") && !shows("bitcoin_bytes_recv_total "));
        assert!(shows("bitcoin_blocks_connected_total 1") && shows("bitcoin_up 0"));
    }

    #[test]
    fn gauges_print_whole_numbers_whole_and_others_exactly() {
        let metrics = Metrics::new();
        metrics.chain.difficulty.set(Some(126_411_437_451_912.23));
        metrics.chain.height.set(Some(-1));
        let text = metrics.render(Format::Text);
        let difficulty = text.lines().find_map(|line| line.strip_prefix("bitcoin_difficulty ")).unwrap();
        assert_eq!(difficulty.parse(), Ok(126_411_437_451_912.23));
        assert!(text.contains("\nbitcoin_chain_height -1\n"), "{text}");
    }

    #[test]
    fn replacing_samples_forgets_the_ones_that_are_gone() {
        let metrics = Metrics::new();
        metrics.chain.tips.replace([(["active"], 1.0), (["valid-fork"], 2.0)]);
        metrics.chain.tips.replace([(["active"], 1.0)]);
        let text = metrics.render(Format::Text);
        assert!(text.contains("bitcoin_chain_tips{status=\"active\"} 1\n") && !text.contains("valid-fork"));
    }
}
