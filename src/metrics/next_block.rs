//! Metrics about the next block: the contents of the last block template that the exporter requested.

use super::model::{gauge, histogram};
use super::pushed::{Gauge, Histogram, area};

/// Bucket bounds in seconds for the time until the node returns a block template. The node needs about a millisecond
/// with an empty mempool, and 10 to 300 ms with a full mempool.
const BUCKETS: [f64; 13] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

const ASSEMBLED: &[&str] = &["JSON-RPC getmininginfo, for nodes without the Mining interface"];

area! {
    /// Metrics about the next block, from block templates.
    pub struct NextBlockMetrics {
        transactions: Gauge = gauge("bitcoin_next_block_transactions",
            "Transactions in a new block template, without the coinbase. From Bitcoin Core 31 on, the template reserves \
             8,000 weight units for the coinbase, regardless of -blockreservedweight",
            &["Mining.createNewBlock, BlockTemplate.getTxFees"]).of_node();
        weight: Gauge = gauge("bitcoin_next_block_weight",
            "Weight of the transactions in a new block template, without the coinbase",
            &["Mining.createNewBlock, BlockTemplate.getBlock"]).of_node();
        fees: Gauge = gauge("bitcoin_next_block_fees_satoshis",
            "Total fees of the transactions in a new block template, in satoshis",
            &["Mining.createNewBlock, BlockTemplate.getTxFees"]).of_node();
        sigops: Gauge = gauge("bitcoin_next_block_sigops",
            "Signature operation cost of the transactions in a new block template, without the coinbase, as counted for \
             the limit of 80,000",
            &["Mining.createNewBlock, BlockTemplate.getTxSigops"]).of_node();
        duration: Histogram = histogram("bitcoin_template_duration_seconds",
            "Time until the node responded to a request for a block template", &["Mining.createNewBlock"], &BUCKETS);
        after_tip: Histogram = histogram("bitcoin_template_after_tip_seconds",
            "Time from the notification of a new tip to the receipt of the first template built on that tip",
            &["Mining.waitTipChanged, Mining.createNewBlock"], &BUCKETS);
        min_feerate: Gauge = gauge("bitcoin_block_min_feerate_sat_per_vbyte",
            "Lowest fee rate of transactions that the node puts into block templates (-blockmintxfee)",
            &["JSON-RPC getmininginfo `blockmintxfee` (Bitcoin Core 30 and later)"]).of_node();
        assembled_transactions: Gauge = gauge("bitcoin_assembled_block_transactions",
            "Transactions in the last block template that the node built, for any client and at any time, without the \
             coinbase; absent before the first template",
            ASSEMBLED).of_node();
        assembled_weight: Gauge = gauge("bitcoin_assembled_block_weight",
            "Weight of the last block template that the node built, including the weight reserved for the header and the coinbase",
            ASSEMBLED).of_node();
    }
}

impl NextBlockMetrics {
    /// Starts to export the histograms, without observations at first. Called when the exporter begins to request block
    /// templates.
    pub fn start(&self) {
        self.duration.start();
        self.after_tip.start();
    }

    /// The gauges about the transactions of a block template: number, weight, fees, and signature operation cost.
    pub fn totals(&self) -> [&Gauge; 4] {
        [&self.transactions, &self.weight, &self.fees, &self.sigops]
    }

    /// Removes these gauges. Called when the exporter has no current block template, for example because the node has a
    /// new tip.
    pub fn clear(&self) {
        self.totals().into_iter().for_each(Gauge::clear);
    }
}
