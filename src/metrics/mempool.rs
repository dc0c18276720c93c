//! Metrics about the mempool, its fee rates and fee estimates, and about the node's transactions that are not in the
//! mempool: orphan transactions and private broadcasts.

use super::model::{counter, gauge};
use super::pushed::{Counter, CounterVec, Gauge, GaugeVec, area};

/// Lower bounds of the fee rate bands: for each the value of the `from` label, and the fee rate in tenths of a sat/vB.
#[rustfmt::skip]
pub const FEERATE_BANDS: [(&str, u64); 19] = [
    ("0", 0), ("0.1", 1), ("0.2", 2), ("0.5", 5), ("1", 10), ("2", 20), ("3", 30), ("5", 50), ("8", 80),
    ("13", 130), ("21", 210), ("34", 340), ("55", 550), ("89", 890), ("144", 1440), ("233", 2330),
    ("377", 3770), ("610", 6100), ("987", 9870),
];

const INFO: &[&str] = &["JSON-RPC getmempoolinfo"];
const DIAGRAM: &[&str] = &[
    "JSON-RPC getmempoolfeeratediagram (Bitcoin Core 31 and later), at most once a minute, not during initial block download",
];

const ORPHANS: &[&str] = &["JSON-RPC getorphantxs (Bitcoin Core 29 and later), at most once a minute"];

area! {
    /// Metrics about the mempool, its fee rates, fee estimates, orphan transactions and private broadcasts.
    pub struct MempoolMetrics {
        size: Gauge = gauge("bitcoin_mempool_size",
            "Transactions in the mempool", &["Node.getMempoolSize; getmempoolinfo `size`"]).of_node();
        usage: Gauge = gauge("bitcoin_mempool_bytes",
            "Memory used by the mempool", &["Node.getMempoolDynamicUsage; getmempoolinfo `usage`"]).of_node();
        max_usage: Gauge = gauge("bitcoin_mempool_max_bytes",
            "Memory limit of the mempool", &["Node.getMempoolMaxUsage; getmempoolinfo `maxmempool`"]).of_node();
        vbytes: Gauge = gauge("bitcoin_mempool_vbytes",
            "Virtual size of the mempool's transactions", &["JSON-RPC getmempoolinfo `bytes`"]).of_node();
        fees: Gauge = gauge("bitcoin_mempool_fees_satoshis", "Total fees of the mempool's transactions, in satoshis", INFO).of_node();
        min_feerate: Gauge = gauge("bitcoin_mempool_min_feerate_sat_per_vbyte",
            "Lowest fee rate that the mempool accepts", INFO).of_node();
        incremental_feerate: Gauge = gauge("bitcoin_mempool_incremental_feerate_sat_per_vbyte",
            "Increment of the fee rate that a replacement of a transaction must pay, and by which the minimum fee \
             rate of a full mempool rises",
            &["JSON-RPC getmempoolinfo `incrementalrelayfee`"]).of_node();
        relay_min_feerate: Gauge = gauge("bitcoin_mempool_relay_min_feerate_sat_per_vbyte",
            "Lowest fee rate of transactions that the node relays, even if the mempool is empty",
            &["JSON-RPC getmempoolinfo `minrelaytxfee`"]).of_node();
        loaded: Gauge = gauge("bitcoin_mempool_loaded",
            "1 after the node has finished or failed to load the mempool file of its last run, otherwise 0", INFO).of_node();
        optimal: Gauge = gauge("bitcoin_mempool_optimal",
            "1 if the node's order of the mempool's transactions by fee rate is known to be optimal, otherwise 0",
            &["JSON-RPC getmempoolinfo (Bitcoin Core 31)"]).of_node();
        unbroadcast: Gauge = gauge("bitcoin_mempool_unbroadcast",
            "Own transactions of the node that no peer has requested yet", INFO).of_node();
        fee_estimate: GaugeVec<1> = gauge("bitcoin_fee_estimate_sat_per_vbyte",
            "Estimated fee rate for confirmation within the given number of blocks: 2, 3, 6, 12, 144, or the target that \
             the node uses instead; absent without an estimate",
            &["JSON-RPC estimatesmartfee, at each new tip and once a minute"]).by(&["blocks"]).of_node();
        band_vbytes: GaugeVec<1> = gauge("bitcoin_mempool_feerate_vbytes",
            "Virtual size of the mempool's transactions in a band of fee rates. A band begins at `from` sat/vB and ends \
             where the next band begins. A transaction belongs to the band of its chunk, which is the group of \
             transactions with which it would be mined",
            DIAGRAM).by(&["from"]).of_node();
        band_fees: GaugeVec<1> = gauge("bitcoin_mempool_feerate_fees_satoshis",
            "Total fees of the mempool's transactions in a band of fee rates, in satoshis, including changes by \
             prioritisetransaction",
            DIAGRAM).by(&["from"]).of_node();
        depth_feerate: GaugeVec<1> = gauge("bitcoin_mempool_depth_feerate_sat_per_vbyte",
            "Lowest fee rate in the next `blocks` blocks, if these blocks (1,000,000 vB each) are filled with the \
             best transactions of the mempool; absent if the mempool cannot fill the blocks",
            DIAGRAM).by(&["blocks"]).of_node();
        added: Counter = counter("bitcoin_mempool_tx_added_total",
            "Transactions added to the mempool", &["ChainNotifications.transactionAddedToMempool"]);
        removed: CounterVec<1> = counter("bitcoin_mempool_tx_removed_total",
            "Transactions removed from the mempool, by reason",
            &["ChainNotifications.transactionRemovedFromMempool"]).by(&["reason"]);
        orphans: Gauge = gauge("bitcoin_orphan_transactions",
            "Orphan transactions waiting for their parents", ORPHANS).of_node();
        orphan_bytes: Gauge = gauge("bitcoin_orphan_bytes", "Serialized size of the orphan transactions", ORPHANS).of_node();
        private_broadcast_pending: Gauge = gauge("bitcoin_private_broadcast_pending",
            "Own transactions of the node that are sent over separate connections (-privatebroadcast), until other peers \
             announce them or all attempts are used",
            &["JSON-RPC getprivatebroadcastinfo (Bitcoin Core 31 and later), at most once a minute"]).of_node();
    }
}
