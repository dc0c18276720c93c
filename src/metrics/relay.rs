//! Transactions on their way: not in the mempool yet, or not to be seen there.

use super::declare::Declare;
use super::families::NodeGauge;

/// Relay of transactions. Units are in the names; see `METRICS.md` for each metric's source.
#[allow(missing_docs, reason = "each field's documentation is its metric's help text")]
pub struct Relay {
    pub orphans: NodeGauge,
    pub orphan_bytes: NodeGauge,
    pub private_broadcast_pending: NodeGauge,
}

impl Relay {
    pub(super) fn declare(d: &mut Declare) -> Self {
        const ORPHANS: &str = "JSON-RPC getorphantxs (Bitcoin Core 29 and later), at most once a minute";
        Relay {
            orphans: d.gauge(
                "bitcoin_orphan_transactions",
                "Transactions that are kept until those come whose outputs they spend",
                ORPHANS,
            ),
            orphan_bytes: d.gauge("bitcoin_orphan_bytes", "Serialized size of those transactions", ORPHANS),
            private_broadcast_pending: d.gauge(
                "bitcoin_private_broadcast_pending",
                "Transactions of this node's own that are sent over connections of their own (-privatebroadcast), until they come \
                 back from other peers or all attempts are spent",
                "JSON-RPC getprivatebroadcastinfo (Bitcoin Core 31 and later), at most once a minute",
            ),
        }
    }
}
