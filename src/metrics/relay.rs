//! Transactions on their way: not in the mempool yet, or not to be seen there.

use super::model::gauge;
use super::pushed::{Gauge, area};

const ORPHANS: &[&str] = &["JSON-RPC getorphantxs (Bitcoin Core 29 and later), at most once a minute"];

area! {
    /// Relay of transactions.
    pub struct RelayMetrics {
        orphans: Gauge = gauge("bitcoin_orphan_transactions",
            "Transactions that are kept until those come whose outputs they spend", ORPHANS).of_node();
        orphan_bytes: Gauge = gauge("bitcoin_orphan_bytes", "Serialized size of those transactions", ORPHANS).of_node();
        private_broadcast_pending: Gauge = gauge("bitcoin_private_broadcast_pending",
            "Transactions of this node's own that are sent over connections of their own (-privatebroadcast), until they come back \
             from other peers or all attempts are spent",
            &["JSON-RPC getprivatebroadcastinfo (Bitcoin Core 31 and later), at most once a minute"]).of_node();
    }
}
