//! Metrics about the node's process, from `/proc`.

use super::model::{counter, gauge};
use super::pushed::{CounterVec, Gauge, area};

const PROC: &[&str] = &[
    "`/proc` of the process behind the socket, if this process is the node and not a proxy; without IPC, `/proc` of \
     the process in the file bitcoind.pid of the data directory, if its start time matches the node's uptime",
];
const PROC_OF_USER: &[&str] = &[
    "`/proc` of the process behind the socket, if this process is the node and not a proxy, and the exporter runs as \
     the node's user",
];

area! {
    /// Metrics about the node's process.
    pub struct NodeProcessMetrics {
        resident_memory: Gauge = gauge("bitcoin_node_process_resident_memory_bytes",
            "Resident memory of the node's process", PROC).of_node();
        threads: Gauge = gauge("bitcoin_node_process_threads", "Threads of the node's process", PROC).of_node();
        open_fds: Gauge = gauge("bitcoin_node_process_open_fds", "Open file descriptors of the node's process", PROC_OF_USER).of_node();
        cpu: CounterVec<1> = counter("bitcoin_node_process_cpu_seconds_total",
            "CPU time of the node, user and system, by thread: `msghand`, `scriptch` (script checks), `prevout` \
             (prefetch of spent coins, Bitcoin Core 32), `utxocompact` (compaction of the chain state), `net`, `http`, \
             `capnp-loop` (IPC), `scheduler`, and `other` for the remaining threads",
            PROC).by(&["thread"]).of_node();
        io: CounterVec<1> = counter("bitcoin_node_process_io_bytes_total",
            "Bytes that the node read from disk (`read`) and wrote to disk (`write`)", PROC_OF_USER).by(&["direction"]).of_node();
        page_faults: CounterVec<1> = counter("bitcoin_node_process_page_faults_total",
            "Page faults of the node by kind; a `major` fault had to read from disk", PROC).by(&["kind"]).of_node();
    }
}
