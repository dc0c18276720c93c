//! The node itself: version, uptime, memory.

use super::declare::Declare;
use super::families::{Labeled, NodeGauge};
use super::samples::Value;

/// The node itself. Units are in the names; see `METRICS.md` for each metric's source.
#[allow(missing_docs, reason = "each field's documentation is its metric's help text")]
pub struct Node {
    pub node_info: Labeled<4, Value>,
    pub uptime: NodeGauge,
    pub memory_locked: Labeled<1, Value>,
    pub warnings: NodeGauge,
}

impl Node {
    pub(super) fn declare(d: &mut Declare) -> Self {
        Node {
            node_info: d.gauge_by(
                "bitcoin_node_info",
                ["version", "subversion", "protocol_version", "chain"],
                "1, with the node's versions and chain as labels",
                "JSON-RPC getnetworkinfo, getblockchaininfo",
            ),
            uptime: d.gauge(
                "bitcoin_node_uptime_seconds",
                "Seconds since the node started",
                "JSON-RPC uptime",
            ),
            memory_locked: d.gauge_by(
                "bitcoin_memory_locked_bytes",
                ["state"],
                "Memory of the node's locked pool, for keys",
                "JSON-RPC getmemoryinfo",
            ),
            warnings: d.gauge(
                "bitcoin_warnings",
                "Warnings that the node currently gives",
                "JSON-RPC getnetworkinfo `warnings`",
            ),
        }
    }
}
