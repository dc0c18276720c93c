//! Peers and traffic.

use prometheus_client::metrics::counter::Counter;

use super::declare::Declare;
use super::families::{Labeled, NodeCounter, NodeGauge};
use super::samples::Value;

/// The message types that become label values; the rest are `other`, whatever a peer calls them.
pub const MESSAGE_TYPES: [&str; 36] = [
    "addr",
    "addrv2",
    "block",
    "blocktxn",
    "cfcheckpt",
    "cfheaders",
    "cfilter",
    "cmpctblock",
    "feature",
    "feefilter",
    "filteradd",
    "filterclear",
    "filterload",
    "getaddr",
    "getblocks",
    "getblocktxn",
    "getcfcheckpt",
    "getcfheaders",
    "getcfilters",
    "getdata",
    "getheaders",
    "headers",
    "inv",
    "mempool",
    "merkleblock",
    "notfound",
    "ping",
    "pong",
    "sendaddrv2",
    "sendcmpct",
    "sendheaders",
    "sendtxrcncl",
    "tx",
    "verack",
    "version",
    "wtxidrelay",
];

/// The network. Units are in the names; see `METRICS.md` for each metric's source.
#[allow(missing_docs, reason = "each field's documentation is its metric's help text")]
pub struct Network {
    pub peers: NodeGauge,
    pub bytes_received: NodeCounter,
    pub bytes_sent: NodeCounter,
    pub connections: Labeled<1, Value>,
    pub peers_by: Labeled<3, Value>,
    pub ping: Labeled<1, Value>,
    pub min_ping: Labeled<1, Value>,
    pub high_bandwidth: Labeled<1, Value>,
    pub addr_relay: NodeGauge,
    pub clock_off: NodeGauge,
    pub ping_overdue: NodeGauge,
    pub with_blocks_in_flight: NodeGauge,
    pub blocks_in_flight: NodeGauge,
    pub by_version: Labeled<1, Value>,
    pub low_fee_relay: NodeGauge,
    pub addr_rate_limited: NodeGauge,
    pub inv_to_send: Labeled<1, Value>,
    pub inv_backlog: Labeled<1, Value>,
    pub clock_offset: NodeGauge,
    pub largest_group: Labeled<2, Value>,
    pub groups: Labeled<2, Value>,
    pub message_bytes: Labeled<2, Counter>,
    pub banned: NodeGauge,
    pub active: NodeGauge,
    pub reachable: Labeled<1, Value>,
    pub local_addresses: NodeGauge,
    pub addresses: Labeled<2, Value>,
}

impl Network {
    pub(super) fn declare(d: &mut Declare) -> Self {
        const PEERS: &str = "Node.getNodesStats; getpeerinfo";
        Network {
            peers: d.gauge("bitcoin_peers", "Connected peers", "Node.getNodeCount; getnetworkinfo `connections`"),
            bytes_received: d.node_counter(
                "bitcoin_bytes_recv_total",
                "Bytes that the node received from peers since it started",
                "Node.getTotalBytesRecv; getnettotals",
            ),
            bytes_sent: d.node_counter(
                "bitcoin_bytes_sent_total",
                "Bytes that the node sent to peers since it started",
                "Node.getTotalBytesSent; getnettotals",
            ),
            connections: d.gauge_by(
                "bitcoin_connections",
                ["direction"],
                "Connected peers by who opened the connection: in or out",
                "Node.getNodeCount; getnetworkinfo",
            ),
            peers_by: d.gauge_by(
                "bitcoin_peers_by",
                ["network", "connection_type", "transport"],
                "Connected peers by network, type of connection and transport protocol",
                PEERS,
            ),
            ping: d.gauge_by(
                "bitcoin_peer_ping_seconds",
                ["percentile"],
                "Last ping time over the present peers, at percentiles 50, 90 and 100",
                PEERS,
            ),
            min_ping: d.gauge_by(
                "bitcoin_peer_min_ping_seconds",
                ["percentile"],
                "Each peer's shortest ping time over the present peers, at percentiles 50, 90 and 100",
                PEERS,
            ),
            high_bandwidth: d.gauge_by(
                "bitcoin_peers_high_bandwidth",
                ["direction"],
                "BIP152 high-bandwidth peers: `to` peers that we chose, `from` peers that chose us",
                PEERS,
            ),
            addr_relay: d.gauge("bitcoin_peers_addr_relay", "Peers that take part in address relay", PEERS),
            clock_off: d.gauge(
                "bitcoin_peers_clock_off",
                "Peers whose clock differs from ours by more than 10 seconds",
                PEERS,
            ),
            ping_overdue: d.gauge(
                "bitcoin_peers_ping_overdue",
                "Peers that have not answered a ping for more than 5 seconds",
                PEERS,
            ),
            with_blocks_in_flight: d.gauge(
                "bitcoin_peers_with_blocks_in_flight",
                "Peers that we are downloading blocks from",
                PEERS,
            ),
            blocks_in_flight: d.gauge(
                "bitcoin_blocks_in_flight",
                "Blocks that are being downloaded; one that is requested from several peers counts once",
                PEERS,
            ),
            by_version: d.gauge_by(
                "bitcoin_peers_by_version",
                ["version"],
                "Peers by protocol version; versions outside 70001 to 70099 are `other`",
                PEERS,
            ),
            low_fee_relay: d.gauge(
                "bitcoin_peers_low_fee_relay",
                "Peers with transaction relay that have sent a fee filter below 1 sat/vB",
                "getpeerinfo `relaytxes`, `minfeefilter` (Node.getNodesStats has no such field)",
            ),
            addr_rate_limited: d.gauge(
                "bitcoin_peers_addr_rate_limited",
                "Peers of whose addresses some were dropped, because they sent too many",
                "Node.getNodesStats; getpeerinfo `addr_rate_limited`",
            ),
            inv_to_send: d.gauge_by(
                "bitcoin_peers_inv_to_send",
                ["statistic"],
                "Transactions that wait to be announced to the present peers, in their own queues and in the common backlog: `sum` \
                 over all peers, `max` of one; absent without peers",
                "getpeerinfo `inv_to_send` (Bitcoin Core 31 and later; Node.getNodesStats has no such field) plus \
                 getnetworkinfo `inv_buckets` (32 and later)",
            ),
            inv_backlog: d.gauge_by(
                "bitcoin_inv_backlog",
                ["direction"],
                "Transactions that wait for the rate limit of announcements to all inbound or all outbound peers",
                "JSON-RPC getnetworkinfo `inv_buckets` (Bitcoin Core 32 and later)",
            ),
            clock_offset: d.gauge(
                "bitcoin_clock_offset_seconds",
                "Median difference between the clocks of outbound peers and the node's; 0 with fewer than five of them",
                "JSON-RPC getnetworkinfo `timeoffset`",
            ),
            largest_group: d.gauge_by(
                "bitcoin_peers_largest_group",
                ["by", "direction"],
                "The most peers of one direction with an address in one group: `netgroup` is an IPv4 /16 or an IPv6 /32, `as` an \
                 autonomous system, absent unless the node has a map of them (-asmap)",
                "Node.getNodesStats; getpeerinfo `addr`, `mapped_as`",
            ),
            groups: d.gauge_by(
                "bitcoin_peers_groups",
                ["by", "direction"],
                "Different groups that the addresses of the peers of one direction are in, as above; peers of other networks than \
                 IPv4 and IPv6 are in no netgroup",
                "Node.getNodesStats; getpeerinfo `addr`, `mapped_as`",
            ),
            message_bytes: d.counter_by(
                "bitcoin_p2p_message_bytes_total",
                ["direction", "type"],
                "Bytes of messages with the peers seen at polls since the exporter started, by type; a peer that leaves takes nothing \
                 back, and what peers of another long-running node had moved before is not counted",
                PEERS,
            ),
            banned: d.gauge("bitcoin_banned", "Banned addresses and subnets", "JSON-RPC listbanned"),
            active: d.gauge(
                "bitcoin_network_active",
                "1 if the node connects to peers at all, else 0 (setnetworkactive)",
                "JSON-RPC getnetworkinfo `networkactive`",
            ),
            reachable: d.gauge_by(
                "bitcoin_network_reachable",
                ["network"],
                "1 if the node opens connections to this network, else 0",
                "JSON-RPC getnetworkinfo `networks`",
            ),
            local_addresses: d.gauge(
                "bitcoin_local_addresses",
                "Addresses of its own that the node announces to peers",
                "JSON-RPC getnetworkinfo `localaddresses`",
            ),
            addresses: d.gauge_by(
                "bitcoin_addrman_addresses",
                ["network", "table"],
                "Addresses of peers that the node knows: in the table `new` those that it heard of, in `tried` those that it was \
                 connected to",
                "JSON-RPC getaddrmaninfo",
            ),
        }
    }
}
