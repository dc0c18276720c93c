//! Metrics about the node itself (version, uptime, memory), and about the node's process, which the exporter reads from
//! `/proc`.

use super::model::{counter, gauge};
use super::pushed::{CounterVec, Gauge, GaugeVec, area};

const RPC: &[&str] = &["JSON-RPC getrpcinfo `active_commands`"];

/// Types of ZMQ notifications that are used as label values; all other types have the label value `other`.
pub const ZMQ_TYPES: [&str; 5] = ["pubhashblock", "pubhashtx", "pubrawblock", "pubrawtx", "pubsequence"];

const PROC: &[&str] = &[
    "`/proc` of the process behind the socket, if this process is the node and not a proxy; without IPC, `/proc` of \
     the process in the file bitcoind.pid of the data directory, if its start time matches the node's uptime",
];
const PROC_OF_USER: &[&str] = &[
    "`/proc` of the process behind the socket, if this process is the node and not a proxy, and the exporter runs as \
     the node's user",
];

area! {
    /// Metrics about the node itself and its process.
    pub struct NodeMetrics {
        node_info: GaugeVec<4> = gauge("bitcoin_node_info",
            "Always 1, with the node's versions and chain as labels; without getnetworkinfo, the versions are empty",
            &["JSON-RPC getnetworkinfo, getblockchaininfo"]).by(&["version", "subversion", "protocol_version", "chain"]).of_node();
        version: Gauge = gauge("bitcoin_node_version",
            "Version of the node as a number: 310000 for Bitcoin Core 31.0", &["JSON-RPC getnetworkinfo `version`"]).of_node();
        protocol_version: Gauge = gauge("bitcoin_node_protocol_version",
            "Version of the P2P protocol that the node speaks", &["JSON-RPC getnetworkinfo `protocolversion`"]).of_node();
        uptime: Gauge = gauge("bitcoin_node_uptime_seconds",
            "Uptime that the node reports, in seconds; Bitcoin Core up to 30 measures it with the wall clock",
            &["JSON-RPC uptime"]).of_node();
        memory_locked: GaugeVec<1> = gauge("bitcoin_memory_locked_bytes",
            "Memory in the node's pool of locked memory, which stores keys, by state: `used`, `free` or `locked`",
            &["JSON-RPC getmemoryinfo"]).by(&["state"]).of_node();
        warnings: GaugeVec<1> = gauge("bitcoin_warnings",
            "Number of current warnings of the node by kind: `large_work_invalid_chain`, `fatal_internal_error`, \
             `clock_out_of_sync`, `unknown_new_rules_activated`, `pre_release`, `other`. With \
             `-deprecatedrpc=warnings` the node returns only one warning, and the other kinds are absent. The \
             exporter logs the text of the warnings when the text changes",
            &["JSON-RPC getnetworkinfo `warnings`; getblockchaininfo `warnings`"]).by(&["kind"]).of_node();
        rpc_active: Gauge = gauge("bitcoin_rpc_active_commands",
            "JSON-RPC calls that the node is executing, over HTTP and IPC, without the exporter's own call", RPC).of_node();
        rpc_longest: Gauge = gauge("bitcoin_rpc_longest_command_seconds",
            "Time for which the longest-running JSON-RPC call to the node has been running, in seconds, without the \
             exporter's own call; 0 if no call is running", RPC).of_node();
        zmq_publishers: GaugeVec<1> = gauge("bitcoin_zmq_publishers",
            "ZMQ publishers of the node by type of notification; all types are 0 if none is configured, and absent if the node was built \
             without ZMQ",
            &["JSON-RPC getzmqnotifications"]).by(&["type"]).of_node();
        start_time: Gauge = gauge("bitcoin_node_start_time_seconds",
            "Start time of the node, Unix seconds, rounded down. It changes when the node restarts, not when a clock \
             is set. The values of two exporters that cannot see the node's process can differ by a second",
            &["Start time of the node's process in `/proc`; if the process is not visible, JSON-RPC uptime"]).of_node();
        file_system_free: Gauge = gauge("bitcoin_datadir_filesystem_free_bytes",
            "Free space for unprivileged users on the file system that holds the node's data directory; absent if the directory is \
             not known or on another machine",
            &["statvfs of the folder of the socket, of the cookie or of debug.log (its path is from JSON-RPC \
               getrpcinfo), or of --datadir"]).of_node();
        file_system_size: Gauge = gauge("bitcoin_datadir_filesystem_size_bytes",
            "Size of the file system that holds the node's data directory",
            &["statvfs of the folder of the socket, of the cookie or of debug.log (its path is from JSON-RPC \
               getrpcinfo), or of --datadir"]).of_node();
        process_resident_memory: Gauge = gauge("bitcoin_node_process_resident_memory_bytes",
            "Resident memory of the node's process", PROC).of_node();
        process_threads: Gauge = gauge("bitcoin_node_process_threads", "Threads of the node's process", PROC).of_node();
        process_open_fds: Gauge = gauge("bitcoin_node_process_open_fds", "Open file descriptors of the node's process", PROC_OF_USER).of_node();
        process_cpu: CounterVec<1> = counter("bitcoin_node_process_cpu_seconds_total",
            "CPU time of the node, user and system, by thread: `msghand`, `scriptch` (script checks), `prevout` \
             (prefetch of spent coins, Bitcoin Core 32), `utxocompact` (compaction of the chain state), `net`, `http`, \
             `capnp-loop` (IPC), `scheduler`, and `other` for the remaining threads",
            PROC).by(&["thread"]).of_node();
        process_io: CounterVec<1> = counter("bitcoin_node_process_io_bytes_total",
            "Bytes that the node read from disk (`read`) and wrote to disk (`write`)", PROC_OF_USER).by(&["direction"]).of_node();
        process_page_faults: CounterVec<1> = counter("bitcoin_node_process_page_faults_total",
            "Page faults of the node by kind; a `major` fault had to read from disk", PROC).by(&["kind"]).of_node();
    }
}
