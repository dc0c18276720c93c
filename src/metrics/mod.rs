//! The metric families of the IPC exporter, and the types and functions for metrics that both exporters use. Each area
//! of metrics, such as the chain, the mempool or the network, has a file.
//!
//! The code that reads values uses this module, and this module does not depend on that code. `model` has the types: a
//! family consists of a declaration (name, kind, labels, help, sources, whether values are read from the node) and
//! samples. There are two ways to create a family:
//!
//! - **pushed** (`pushed`): the `area!` block in the file of an area declares a handle for each metric (`utxo_cache` is
//!   a short example). Code that has a new value sets it through the handle: `metrics.chain.height.set(Some(7))`.
//!   Values from polls of the node are pushed.
//! - **read at the scrape**: a function returns families with their current values, and declares each family in the
//!   same expression. `own_process` and the tracepoint groups of `usdt` have such functions.
//!
//! [`render`] writes families in an exposition format. [`markdown`] writes METRICS.md from the declarations.
//!
//! A family has one of two lifetimes. Values that were *read from the node* (gauges, and totals that the node counts)
//! are removed when the connection to the node is lost, or when they are older than their [`lifetime`]. Values that
//! *the exporter counted* do not expire, and are kept when the connection to the node is lost. Each family has an
//! expiry time, which every scrape checks. Expired values are therefore not exported even if a poller hangs.

mod blocks;
mod chain;
mod exporter;
mod exposition;
mod fibre;
mod mempool;
mod model;
mod network;
mod next_block;
mod node;
mod pushed;
mod reference;
mod utxo_cache;

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pushed::{PushedFamily, Registry};

pub use blocks::BlockMetrics;
pub use chain::ChainMetrics;
pub use exporter::ExporterMetrics;
pub use exposition::{Format, render};
pub use fibre::FibreMetrics;
pub use mempool::{FEERATE_BANDS, MempoolMetrics};
pub use model::{
    Declaration, Exemplar, Family, HistogramValue, Kind, Sample, Value, counter, gauge, histogram,
};
pub use network::{MESSAGE_TYPES, NetworkMetrics};
pub use next_block::NextBlockMetrics;
pub use node::{NodeMetrics, ZMQ_TYPES};
pub use pushed::{Counter, CounterVec, Gauge, GaugeVec};
pub use reference::markdown;
pub use utxo_cache::UtxoCacheMetrics;

/// Time for which a value is exported after it was read from the node, if the node is polled at this interval. The time
/// is two intervals, and the value therefore remains exported if a single poll fails. The minimum of five seconds
/// matters only for tests, which poll at shorter intervals.
pub fn lifetime(interval: Duration) -> Duration {
    const MIN_LIFETIME: Duration = Duration::from_secs(5);
    interval.saturating_mul(2).max(MIN_LIFETIME)
}

/// All metric families of the IPC exporter whose values are pushed, by area. The IPC exporter has one value of this
/// type, through which its code sets the values of the metrics.
pub struct Metrics {
    pushed: Vec<Arc<PushedFamily>>,
    /// Metrics about the active chain, chainstates, indexes and soft forks.
    pub chain: ChainMetrics,
    /// Metrics about the node itself and its process.
    pub node: NodeMetrics,
    /// Metrics about the contents of the tip block, and about connected and disconnected blocks.
    pub blocks: BlockMetrics,
    /// Metrics about the mempool, fees, orphan transactions and private broadcasts.
    pub mempool: MempoolMetrics,
    /// Metrics about the next block, from block templates of the node.
    pub next_block: NextBlockMetrics,
    /// Metrics about peers and traffic.
    pub network: NetworkMetrics,
    /// Metrics about FIBRE/UDP peers, to which a node with FIBRE relays blocks over UDP.
    pub fibre: FibreMetrics,
    /// Metrics about the node's caches of coins, from the UTXO cache trace of the node's Tracing interface.
    pub utxo_cache: UtxoCacheMetrics,
    /// Metrics about the exporter itself and its connection to the node.
    pub exporter: ExporterMetrics,
}

impl Metrics {
    /// Creates all families for tests and for METRICS.md. Values that are read from the node do not expire. At first,
    /// only some families about the exporter itself have samples.
    pub fn new() -> Arc<Self> {
        Self::with_poll_lifetime(Duration::MAX)
    }

    /// Like [`new`](Self::new), for an exporter that polls the node at this interval. Values read from the node expire
    /// after two intervals.
    pub fn polled_every(interval: Duration) -> Arc<Self> {
        Self::with_poll_lifetime(lifetime(interval))
    }

    fn with_poll_lifetime(poll_lifetime: Duration) -> Arc<Self> {
        let mut registry = Registry { pushed: Vec::new(), poll_lifetime };
        let metrics = Metrics {
            chain: ChainMetrics::declare(&mut registry),
            node: NodeMetrics::declare(&mut registry),
            blocks: BlockMetrics::declare(&mut registry),
            mempool: MempoolMetrics::declare(&mut registry),
            next_block: NextBlockMetrics::declare(&mut registry),
            network: NetworkMetrics::declare(&mut registry),
            fibre: FibreMetrics::declare(&mut registry),
            utxo_cache: UtxoCacheMetrics::declare(&mut registry),
            exporter: ExporterMetrics::declare(&mut registry),
            pushed: registry.pushed,
        };
        metrics.exporter.start();
        Arc::new(metrics)
    }

    /// Removes all values that were read from the node. Called when the connection to the node is lost.
    pub fn clear_node_values(&self) {
        self.exporter.up.set(Some(0));
        self.pushed.iter().filter(|family| family.declaration.of_node).for_each(|family| family.clear());
    }

    /// All families with their current samples, in the order in which METRICS.md lists them.
    pub fn families(&self) -> Vec<Family> {
        self.pushed.iter().map(|family| family.family()).collect()
    }

    /// All samples in the given exposition format.
    #[cfg(test)]
    pub fn render(&self, format: Format) -> String {
        render(&self.families(), &[], format)
    }

    /// Names of the families that currently have samples, and are therefore exported.
    pub fn present(&self) -> Vec<&'static str> {
        let families = self.families().into_iter().filter(|family| !family.samples.is_empty());
        families.map(|family| family.declaration.name).collect()
    }
}

/// The current time in Unix seconds.
pub fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_values_are_absent_without_the_node() {
        let metrics = Metrics::new();
        let shows = |what: &str| metrics.render(Format::Text).lines().any(|line| line.starts_with(what));
        assert!(!shows("bitcoin_chain_height"));
        metrics.chain.height.set(Some(7));
        metrics.network.bytes_received.set(Some(9));
        metrics.blocks.connected.inc();
        assert!(shows("bitcoin_chain_height 7") && shows("bitcoin_bytes_recv_total 9"));
        metrics.chain.height.set(Some(8));
        metrics.clear_node_values();
        assert!(!shows("bitcoin_chain_height ") && !shows("bitcoin_bytes_recv_total "));
        assert!(shows("bitcoin_blocks_connected_total 1") && shows("bitcoin_up 0"));
    }

    #[test]
    fn failed_reads_hide_values_only_when_they_are_too_old() {
        let shows = |metrics: &Metrics, what: &str| {
            metrics.render(Format::Text).lines().any(|line| line.starts_with(what))
        };
        let set = |metrics: &Metrics| {
            metrics.chain.height.set(Some(7));
            metrics.chain.tips.replace([(["active"], 1.0)]);
            metrics.network.bytes_sent.set(Some(9));
            metrics.node.process_io.replace_if_any([(["read"], 5.0)]);
        };
        let fail = |metrics: &Metrics| {
            metrics.chain.height.set(None::<f64>);
            metrics.chain.height.set(Some(f64::NAN));
            metrics.chain.tips.replace_if_any([]);
            metrics.network.bytes_sent.set(None);
            metrics.node.process_io.replace_if_any([]);
        };
        let read = [
            "bitcoin_chain_height 7",
            "bitcoin_chain_tips{",
            "bitcoin_bytes_sent_total 9",
            "bitcoin_node_process_io_bytes_total{",
        ];
        let metrics = Metrics::new();
        set(&metrics);
        fail(&metrics);
        assert!(read.iter().all(|sample| shows(&metrics, sample)), "{}", metrics.render(Format::Text));
        let metrics = Metrics::with_poll_lifetime(Duration::ZERO);
        set(&metrics);
        fail(&metrics);
        metrics.blocks.connected.inc();
        assert!(!read.iter().any(|sample| shows(&metrics, sample)), "{}", metrics.render(Format::Text));
        assert!(shows(&metrics, "bitcoin_blocks_connected_total 1"), "what was counted stays");
        assert!(shows(&metrics, "bitcoin_up 0"), "what was counted stays");
        assert!(!metrics.present().contains(&"bitcoin_chain_height"));
        assert_eq!((metrics.chain.height.get(), metrics.chain.tips.get(["active"])), (None, None));
        // Values from a call that is made less often than the polls have a lifetime that the caller sets.
        metrics.chain.tips.replace_for(Duration::MAX, [(["active"], 1.0)]);
        assert!(shows(&metrics, "bitcoin_chain_tips{") && !shows(&metrics, "bitcoin_chain_height "));
    }

    #[test]
    fn values_that_are_polled_expire_after_two_intervals() {
        let metrics = Metrics::polled_every(Duration::from_secs(15));
        let lifetimes = metrics.pushed.iter().map(|family| (family.declaration.of_node, family.lifetime));
        let (node, exporter): (Vec<_>, Vec<_>) = lifetimes.partition(|(of_node, _)| *of_node);
        assert!(node.iter().all(|(_, lifetime)| *lifetime == Duration::from_secs(30)));
        assert!(exporter.iter().all(|(_, lifetime)| *lifetime == Duration::MAX));
    }

    #[test]
    fn replacing_samples_forgets_the_ones_that_are_gone() {
        let metrics = Metrics::new();
        metrics.chain.tips.replace([(["active"], 1.0), (["valid-fork"], 2.0)]);
        metrics.chain.tips.replace([(["active"], 1.0)]);
        let text = metrics.render(Format::Text);
        assert!(text.contains("bitcoin_chain_tips{status=\"active\"} 1\n") && !text.contains("valid-fork"));
        metrics.chain.tips.replace([]);
        assert!(!metrics.render(Format::Text).contains("bitcoin_chain_tips{"), "an answer without any");
    }

    #[test]
    fn histogram_counts_a_value_in_the_first_bucket_that_reaches_it() {
        let metrics = Metrics::new();
        let histogram = &metrics.next_block.duration;
        histogram.observe(1.0); // ignored: not started
        let shows = |line: &str| metrics.render(Format::Text).contains(line);
        assert!(!shows("bitcoin_template_duration_seconds"));
        histogram.start();
        [0.0, 0.001, 0.0011, 11.0].into_iter().for_each(|seconds| histogram.observe(seconds));
        histogram.start();
        assert!(shows("bitcoin_template_duration_seconds_bucket{le=\"0.001\"} 2\n"));
        assert!(shows("bitcoin_template_duration_seconds_bucket{le=\"0.0025\"} 3\n"));
        assert!(shows("bitcoin_template_duration_seconds_bucket{le=\"10.0\"} 3\n"));
        assert!(shows("bitcoin_template_duration_seconds_bucket{le=\"+Inf\"} 4\n"));
        assert!(shows("bitcoin_template_duration_seconds_sum 11.0021\n"));
    }

    #[test]
    fn scrape_keeps_what_it_has_taken() {
        let metrics = Metrics::new();
        metrics.chain.tips.replace([(["active"], 1.0)]);
        let taken = metrics.chain.tips.get(["active"]).zip(Some(metrics.families()));
        metrics.chain.tips.replace([(["active"], 2.0)]);
        let (before, families) = taken.unwrap();
        let tips = families.iter().find(|family| family.declaration.name == "bitcoin_chain_tips").unwrap();
        assert_eq!(
            (tips.samples[0].value.number(), metrics.chain.tips.get(["active"])),
            (Some(before), Some(2.0))
        );
    }
}
