//! The mempool and what fees it asks.

use super::model::{counter, gauge};
use super::pushed::{Counter, CounterVec, Gauge, GaugeVec, area};

/// Where a band of feerates begins: as the `from` label has it, and in tenths of a sat/vB.
#[rustfmt::skip]
pub const FEERATE_BANDS: [(&str, u64); 19] = [
    ("0", 0), ("0.1", 1), ("0.2", 2), ("0.5", 5), ("1", 10), ("2", 20), ("3", 30), ("5", 50), ("8", 80),
    ("13", 130), ("21", 210), ("34", 340), ("55", 550), ("89", 890), ("144", 1440), ("233", 2330),
    ("377", 3770), ("610", 6100), ("987", 9870),
];

const INFO: &[&str] = &["JSON-RPC getmempoolinfo"];
const DIAGRAM: &[&str] = &[
    "JSON-RPC getmempoolfeeratediagram (Bitcoin Core 31 and later), at most once a minute, out of initial block download",
];

area! {
    /// The mempool.
    pub struct MempoolMetrics {
        size: Gauge = gauge("bitcoin_mempool_size",
            "Transactions in the mempool", &["Node.getMempoolSize; getmempoolinfo `size`"]).of_node();
        usage: Gauge = gauge("bitcoin_mempool_bytes",
            "Memory that the mempool uses", &["Node.getMempoolDynamicUsage; getmempoolinfo `usage`"]).of_node();
        max_usage: Gauge = gauge("bitcoin_mempool_max_bytes",
            "Memory that the mempool may use", &["Node.getMempoolMaxUsage; getmempoolinfo `maxmempool`"]).of_node();
        vbytes: Gauge = gauge("bitcoin_mempool_vbytes",
            "Virtual size of the mempool's transactions", &["JSON-RPC getmempoolinfo `bytes`"]).of_node();
        fees: Gauge = gauge("bitcoin_mempool_fees_satoshis", "Fees of the mempool's transactions", INFO).of_node();
        min_feerate: Gauge = gauge("bitcoin_mempool_min_feerate_sat_per_vbyte",
            "Feerate below which the mempool takes no transaction", INFO).of_node();
        incremental_feerate: Gauge = gauge("bitcoin_mempool_incremental_feerate_sat_per_vbyte",
            "Feerate that a replacement has to pay on top, and by which the minimum rises when the mempool is full",
            &["JSON-RPC getmempoolinfo `incrementalrelayfee`"]).of_node();
        relay_min_feerate: Gauge = gauge("bitcoin_mempool_relay_min_feerate_sat_per_vbyte",
            "Feerate below which the node relays no transaction, however empty the mempool is",
            &["JSON-RPC getmempoolinfo `minrelaytxfee`"]).of_node();
        loaded: Gauge = gauge("bitcoin_mempool_loaded",
            "1 if the mempool of the last run was loaded, or could not be, else 0", INFO).of_node();
        optimal: Gauge = gauge("bitcoin_mempool_optimal",
            "1 if the mempool's order by feerate is known to be the best, else 0",
            &["JSON-RPC getmempoolinfo (Bitcoin Core 31)"]).of_node();
        unbroadcast: Gauge = gauge("bitcoin_mempool_unbroadcast",
            "Transactions of this node's own that no peer has asked for yet", INFO).of_node();
        fee_estimate: GaugeVec<1> = gauge("bitcoin_fee_estimate_sat_per_vbyte",
            "Estimated feerate to be confirmed within so many blocks: targets 2, 3, 6, 12, 144, or the one that the node estimates \
             instead; absent without an estimate",
            &["JSON-RPC estimatesmartfee, at each new tip and once a minute"]).by(&["blocks"]).of_node();
        band_vbytes: GaugeVec<1> = gauge("bitcoin_mempool_feerate_vbytes",
            "Virtual size of the mempool's transactions in a band of feerates, which begins at `from` sat/vB and ends where the \
             next one begins; a transaction has the feerate of the chunk that it would be mined with",
            DIAGRAM).by(&["from"]).of_node();
        band_fees: GaugeVec<1> = gauge("bitcoin_mempool_feerate_fees_satoshis",
            "Fees of the mempool's transactions in a band of feerates, with what prioritisetransaction adds to them",
            DIAGRAM).by(&["from"]).of_node();
        depth_feerate: GaugeVec<1> = gauge("bitcoin_mempool_depth_feerate_sat_per_vbyte",
            "Feerate at the end of the best so many blocks' worth of the mempool, a block being 1,000,000 vB; absent when the \
             mempool has less",
            DIAGRAM).by(&["blocks"]).of_node();
        added: Counter = counter("bitcoin_mempool_tx_added_total",
            "Transactions added to the mempool", &["ChainNotifications.transactionAddedToMempool"]);
        removed: CounterVec<1> = counter("bitcoin_mempool_tx_removed_total",
            "Transactions removed from the mempool, by reason",
            &["ChainNotifications.transactionRemovedFromMempool"]).by(&["reason"]);
    }
}
