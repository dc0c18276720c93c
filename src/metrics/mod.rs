//! The registry and the metric families, a file per area.
//!
//! Nothing here knows where a number came from. A metric is one declaration in its area's file: name, help, type and
//! source together; `METRICS.md` is generated from those declarations.
//!
//! Two kinds differ in what happens when the node goes away: what was *read from the node* (gauges, and counters that
//! the node keeps) disappears, what *we counted* stays.

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
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::registry::Registry;

use declare::Declare;

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

/// Every family of the IPC exporter, and the registry that renders them.
pub struct Metrics {
    registry: Registry,
    read_from_node: Vec<Box<dyn Fn() + Send + Sync>>,
    present: Vec<Box<dyn Fn() -> Option<&'static str> + Send + Sync>>,
    rows: Vec<Row>,
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
        let Declare { registry, read_from_node, present, rows } = declare;
        Arc::new(Metrics {
            registry,
            read_from_node,
            present,
            rows,
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
    fn a_value_the_node_did_not_give_is_absent_and_so_is_everything_of_a_node_that_is_away() {
        let metrics = Metrics::new();
        let shows = |what: &str| metrics.render(Format::Text).lines().any(|line| line.starts_with(what));
        assert!(!shows("bitcoin_chain_height"));
        metrics.chain.height.set(Some(7));
        metrics.network.bytes_received.set(Some(9));
        metrics.blocks.connected.inc();
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
