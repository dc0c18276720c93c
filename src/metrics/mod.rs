//! The registry and the metric families, a file per area.
//!
//! Nothing here knows where a number came from. A metric is one declaration in its area's file: name, help, type and
//! source together; `METRICS.md` is generated from those declarations.
//!
//! Two kinds differ in what happens when the node goes away: what was *read from the node* (gauges, and counters that
//! the node keeps) disappears, what *we counted* stays. What was read from the node also disappears when it is too old
//! ([`lifetime`]): each family knows when it was set last, and the exposition checks it, so that a poller that hangs shows
//! nothing old either.

mod blocks;
mod chain;
mod chainstates;
mod declare;
mod exemplars;
mod exporter;
mod families;
mod fibre;
mod mempool;
mod network;
mod next_block;
mod node;
mod node_process;
mod process;
mod reference;
mod relay;
mod samples;
mod snapshot;
mod text;
mod utxo_cache;

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::registry::Registry;

use declare::Declare;
use samples::Lifetime;

pub use blocks::Blocks;
pub use chain::Chain;
pub use chainstates::Chainstates;
pub use exemplars::Exemplar;
pub use exporter::Exporter;
pub use fibre::Fibre;
pub use mempool::{FEERATE_BANDS, Mempool, REMOVAL_REASONS};
pub use network::{MESSAGE_TYPES, Network};
pub use next_block::NextBlock;
pub use node::Node;
pub use node_process::NodeProcess;
pub use reference::{Row, markdown};
pub use relay::Relay;
pub use snapshot::{Family, Kind, Reading, Sample, Snapshots, collector, process_rows, reference};
pub use text::Format;
pub use utxo_cache::UtxoCache;

/// How long a value that is read from the node at this interval is shown after it was read: two intervals, so that one
/// failure hides nothing. Not less than some seconds, which only tests poll more often than.
pub fn lifetime(interval: Duration) -> Duration {
    const MIN_LIFETIME: Duration = Duration::from_secs(5);
    interval.saturating_mul(2).max(MIN_LIFETIME)
}

/// Every family of the IPC exporter, and the registry that renders them.
pub struct Metrics {
    registry: Registry,
    read_from_node: Vec<Box<dyn Fn() + Send + Sync>>,
    present: Vec<Box<dyn Fn() -> Option<&'static str> + Send + Sync>>,
    rows: Vec<Row>,
    polled: Lifetime,
    /// The active chain.
    pub chain: Chain,
    /// Chainstates, indexes and soft forks.
    pub chainstates: Chainstates,
    /// The node itself.
    pub node: Node,
    /// The node as a process.
    pub node_process: NodeProcess,
    /// Blocks connected and disconnected.
    pub blocks: Blocks,
    /// The mempool and fees.
    pub mempool: Mempool,
    /// Transactions on their way.
    pub relay: Relay,
    /// The next block.
    pub next_block: NextBlock,
    /// Peers and traffic.
    pub network: Network,
    /// FIBRE's peers.
    pub fibre: Fibre,
    /// The UTXO cache trace.
    pub utxo_cache: UtxoCache,
    /// The exporter itself and its connection to the node.
    pub exporter: Exporter,
}

impl Metrics {
    /// All families, registered, with no samples but those of the exporter itself.
    pub fn new() -> Arc<Self> {
        let mut declare = Declare::default();
        let chain = Chain::declare(&mut declare);
        let chainstates = Chainstates::declare(&mut declare);
        let node = Node::declare(&mut declare);
        let node_process = NodeProcess::declare(&mut declare);
        let blocks = Blocks::declare(&mut declare);
        let mempool = Mempool::declare(&mut declare);
        let relay = Relay::declare(&mut declare);
        let next_block = NextBlock::declare(&mut declare);
        let network = Network::declare(&mut declare);
        let fibre = Fibre::declare(&mut declare);
        let utxo_cache = UtxoCache::declare(&mut declare);
        let exporter = Exporter::declare(&mut declare);
        process::declare(&mut declare);
        let Declare { registry, lifetime: polled, read_from_node, present, rows } = declare;
        Arc::new(Metrics {
            registry,
            read_from_node,
            present,
            rows,
            polled,
            chain,
            chainstates,
            node,
            node_process,
            blocks,
            mempool,
            relay,
            next_block,
            network,
            fibre,
            utxo_cache,
            exporter,
        })
    }

    /// The node is polled at this interval: what was read from it is shown for two of them. Until this is called, for ever.
    pub fn set_poll_interval(&self, interval: Duration) {
        self.polled.set(lifetime(interval));
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

    /// The names of the families that have samples; without histograms and `process_*`.
    pub fn present(&self) -> impl Iterator<Item = &'static str> {
        self.present.iter().filter_map(|name| name())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_values_are_absent_before_they_are_read_and_while_it_is_away() {
        let metrics = Metrics::new();
        let shows = |what: &str| metrics.render(Format::Text).lines().any(|line| line.starts_with(what));
        assert!(!shows("bitcoin_chain_height"));
        metrics.chain.height.set(Some(7));
        metrics.network.bytes_received.set(Some(9));
        metrics.blocks.connected.inc();
        assert!(shows("bitcoin_chain_height 7") && shows("bitcoin_bytes_recv_total 9"));
        metrics.chain.height.set(Some(8));
        metrics.node_is_away();
        assert!(!shows("bitcoin_chain_height ") && !shows("bitcoin_bytes_recv_total "));
        assert!(shows("bitcoin_blocks_connected_total 1") && shows("bitcoin_up 0"));
    }

    #[test]
    fn failed_reads_hide_values_only_when_they_are_too_old() {
        let metrics = Metrics::new();
        let text = || metrics.render(Format::Text);
        let shows = |what: &str| text().lines().any(|line| line.starts_with(what));
        let set = || {
            metrics.chain.height.set(Some(7));
            metrics.chain.tips.replace([(["active"], 1.0)]);
            metrics.network.bytes_sent.set(Some(9));
            metrics.node_process.io.replace([("read", 5.0)]);
        };
        let fail = || {
            metrics.chain.height.set(None::<f64>);
            metrics.chain.height.set(Some(f64::NAN));
            metrics.chain.tips.replace([]);
            metrics.network.bytes_sent.set(None);
            metrics.node_process.io.replace([]);
        };
        let read = [
            "bitcoin_chain_height 7",
            "bitcoin_chain_tips{",
            "bitcoin_bytes_sent_total 9",
            "bitcoin_node_process_io_bytes_total{",
        ];
        set();
        fail();
        assert!(read.iter().all(|sample| shows(sample)), "{}", text());
        metrics.polled.set(Duration::ZERO);
        set();
        fail();
        metrics.blocks.connected.inc();
        assert!(!read.iter().any(|sample| shows(sample)), "{}", text());
        assert!(shows("bitcoin_blocks_connected_total 1") && shows("bitcoin_up 0"), "what was counted stays");
        assert!(!metrics.present().any(|name| name == "bitcoin_chain_height"));
        assert_eq!((metrics.chain.height.get(), metrics.chain.tips.get(["active"])), (None, None));
        // A call with its own rate limit sets how long.
        metrics.chain.tips.replace_for(Duration::MAX, [(["active"], 1.0)]);
        assert!(shows("bitcoin_chain_tips{") && !shows("bitcoin_chain_height "));
        metrics.set_poll_interval(Duration::from_secs(15));
        assert_eq!(metrics.polled.get(), Duration::from_secs(30));
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
