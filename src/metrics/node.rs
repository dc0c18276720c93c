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
    pub warnings: Labeled<1, Value>,
    pub start_time: NodeGauge,
    pub file_system_free: NodeGauge,
    pub file_system_size: NodeGauge,
}

impl Node {
    pub(super) fn declare(d: &mut Declare) -> Self {
        Node {
            node_info: d.gauge_by(
                "bitcoin_node_info",
                ["version", "subversion", "protocol_version", "chain"],
                "1, with the node's versions and chain as labels; without getnetworkinfo the versions are empty",
                "JSON-RPC getnetworkinfo, getblockchaininfo",
            ),
            uptime: d.gauge(
                "bitcoin_node_uptime_seconds",
                "Seconds since the node started, as it reports them: up to Bitcoin Core 30 by its wall clock",
                "JSON-RPC uptime",
            ),
            memory_locked: d.gauge_by(
                "bitcoin_memory_locked_bytes",
                ["state"],
                "Memory of the node's locked pool, for keys",
                "JSON-RPC getmemoryinfo",
            ),
            warnings: d.gauge_by(
                "bitcoin_warnings",
                ["kind"],
                "Present warnings of the node by kind: `large_work_invalid_chain`, `fatal_internal_error`, `clock_out_of_sync`, \
                 `unknown_new_rules_activated`, `pre_release`, `other`; with `-deprecatedrpc=warnings` the node returns one warning, \
                 and the other kinds are absent. Their text is logged when it changes",
                "JSON-RPC getnetworkinfo, else getblockchaininfo `warnings`",
            ),
            start_time: d.gauge(
                "bitcoin_node_start_time_seconds",
                "Start of the node, Unix seconds; changes when the node is restarted, not when a clock is set. Rounded down; two \
                 exporters that do not see the node's process can differ by a second",
                "The node's process; without it JSON-RPC uptime",
            ),
            file_system_free: d.gauge(
                "bitcoin_datadir_filesystem_free_bytes",
                "Free space for unprivileged users on the file system that holds the node's data directory; absent if the directory is \
                 not known or on another machine",
                "statvfs, of the directory of the socket, the cookie or the log (JSON-RPC getrpcinfo), or --datadir",
            ),
            file_system_size: d.gauge(
                "bitcoin_datadir_filesystem_size_bytes",
                "Size of the file system that holds the node's data directory",
                "statvfs, as above",
            ),
        }
    }
}
