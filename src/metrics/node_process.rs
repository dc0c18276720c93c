//! The node as a process.

use super::declare::Declare;
use super::families::{NodeCounters, NodeGauge};

/// The node as a process. Units are in the names; see `METRICS.md` for each metric's source.
#[allow(missing_docs, reason = "each field's documentation is its metric's help text")]
pub struct NodeProcess {
    pub resident_memory: NodeGauge,
    pub threads: NodeGauge,
    pub open_fds: NodeGauge,
    pub cpu: NodeCounters,
    pub io: NodeCounters,
    pub page_faults: NodeCounters,
}

impl NodeProcess {
    pub(super) fn declare(d: &mut Declare) -> Self {
        const PROC: &str = "`/proc` of the process behind the socket, if it is the node and not a proxy";
        const PROC_OF_USER: &str = "`/proc` of the process behind the socket, if it is the node and not a proxy, and the exporter runs as the node's user";
        NodeProcess {
            resident_memory: d.gauge(
                "bitcoin_node_process_resident_memory_bytes",
                "Resident memory of the node",
                PROC,
            ),
            threads: d.gauge("bitcoin_node_process_threads", "Threads of the node", PROC),
            open_fds: d.gauge(
                "bitcoin_node_process_open_fds",
                "Open file descriptors of the node",
                PROC_OF_USER,
            ),
            cpu: d.node_counters(
                "bitcoin_node_process_cpu_seconds_total",
                "thread",
                "CPU time of the node, user and system: msghand, scriptch (script checks), net, http, capnp-loop (IPC), scheduler; \
                 `other` is the rest",
                PROC,
            ),
            io: d.node_counters(
                "bitcoin_node_process_io_bytes_total",
                "direction",
                "Bytes that the node made disks `read` and `write`",
                PROC_OF_USER,
            ),
            page_faults: d.node_counters(
                "bitcoin_node_process_page_faults_total",
                "kind",
                "Page faults of the node: `major` ones had to wait for a disk",
                PROC,
            ),
        }
    }
}
