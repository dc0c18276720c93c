//! Metrics about orphan transactions and private broadcasts, which are not in the mempool.

use super::model::gauge;
use super::pushed::{Gauge, area};

const ORPHANS: &[&str] = &["JSON-RPC getorphantxs (Bitcoin Core 29 and later), at most once a minute"];

area! {
    /// Metrics about orphan transactions and private broadcasts.
    pub struct RelayMetrics {
        orphans: Gauge = gauge("bitcoin_orphan_transactions",
            "Orphan transactions waiting for their parents", ORPHANS).of_node();
        orphan_bytes: Gauge = gauge("bitcoin_orphan_bytes", "Serialized size of the orphan transactions", ORPHANS).of_node();
        private_broadcast_pending: Gauge = gauge("bitcoin_private_broadcast_pending",
            "Own transactions of the node that are sent over separate connections (-privatebroadcast), until other peers \
             announce them or all attempts are used",
            &["JSON-RPC getprivatebroadcastinfo (Bitcoin Core 31 and later), at most once a minute"]).of_node();
    }
}
