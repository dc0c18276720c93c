//! Peers and traffic.

use super::model::{counter, gauge};
use super::pushed::{Counter, CounterVec, Gauge, GaugeVec, area};

/// The message types that become label values; the rest are `other`, whatever a peer calls them.
#[rustfmt::skip]
pub const MESSAGE_TYPES: [&str; 36] = [
    "addr", "addrv2", "block", "blocktxn", "cfcheckpt", "cfheaders", "cfilter", "cmpctblock", "feature",
    "feefilter", "filteradd", "filterclear", "filterload", "getaddr", "getblocks", "getblocktxn",
    "getcfcheckpt", "getcfheaders", "getcfilters", "getdata", "getheaders", "headers", "inv", "mempool",
    "merkleblock", "notfound", "ping", "pong", "sendaddrv2", "sendcmpct", "sendheaders", "sendtxrcncl",
    "tx", "verack", "version", "wtxidrelay",
];

const PEERS: &[&str] = &["Node.getNodesStats; getpeerinfo"];

area! {
    /// The network.
    pub struct NetworkMetrics {
        peers: Gauge = gauge("bitcoin_peers", "Connected peers", &["Node.getNodeCount; getnetworkinfo `connections`"]).of_node();
        bytes_received: Counter = counter("bitcoin_bytes_recv_total",
            "Bytes that the node received from peers since it started", &["Node.getTotalBytesRecv; getnettotals"]).of_node();
        bytes_sent: Counter = counter("bitcoin_bytes_sent_total",
            "Bytes that the node sent to peers since it started", &["Node.getTotalBytesSent; getnettotals"]).of_node();
        connections: GaugeVec<1> = gauge("bitcoin_connections",
            "Connected peers by who opened the connection: in or out",
            &["Node.getNodeCount; getnetworkinfo"]).by(&["direction"]).of_node();
        peers_by: GaugeVec<3> = gauge("bitcoin_peers_by",
            "Connected peers by network, type of connection and transport protocol",
            PEERS).by(&["network", "connection_type", "transport"]).of_node();
        ping: GaugeVec<1> = gauge("bitcoin_peer_ping_seconds",
            "Last ping time over the present peers, at percentiles 50, 90 and 100", PEERS).by(&["percentile"]).of_node();
        min_ping: GaugeVec<1> = gauge("bitcoin_peer_min_ping_seconds",
            "Each peer's shortest ping time over the present peers, at percentiles 50, 90 and 100",
            PEERS).by(&["percentile"]).of_node();
        high_bandwidth: GaugeVec<1> = gauge("bitcoin_peers_high_bandwidth",
            "BIP152 high-bandwidth peers: `to` peers that we chose, `from` peers that chose us",
            PEERS).by(&["direction"]).of_node();
        addr_relay: Gauge = gauge("bitcoin_peers_addr_relay", "Peers that take part in address relay", PEERS).of_node();
        clock_off: Gauge = gauge("bitcoin_peers_clock_off",
            "Peers whose clock differs from ours by more than 10 seconds", PEERS).of_node();
        ping_overdue: Gauge = gauge("bitcoin_peers_ping_overdue",
            "Peers that have not answered a ping for more than 5 seconds", PEERS).of_node();
        with_blocks_in_flight: Gauge = gauge("bitcoin_peers_with_blocks_in_flight",
            "Peers that we are downloading blocks from", PEERS).of_node();
        blocks_in_flight: Gauge = gauge("bitcoin_blocks_in_flight",
            "Blocks that are being downloaded; one that is requested from several peers counts once", PEERS).of_node();
        by_version: GaugeVec<1> = gauge("bitcoin_peers_by_version",
            "Peers by protocol version; versions outside 70001 to 70099 are `other`", PEERS).by(&["version"]).of_node();
        low_fee_relay: Gauge = gauge("bitcoin_peers_low_fee_relay",
            "Peers with transaction relay that have sent a fee filter below 1 sat/vB",
            &["getpeerinfo `relaytxes`, `minfeefilter` (Node.getNodesStats has no such field)"]).of_node();
        addr_rate_limited: Gauge = gauge("bitcoin_peers_addr_rate_limited",
            "Peers of whose addresses some were dropped, because they sent too many",
            &["Node.getNodesStats; getpeerinfo `addr_rate_limited`"]).of_node();
        inv_to_send: GaugeVec<1> = gauge("bitcoin_peers_inv_to_send",
            "Transactions that wait to be announced to the present peers, in their own queues and in the common backlog: `sum` \
             over all peers, `max` of one; absent without peers",
            &["getpeerinfo `inv_to_send` (Bitcoin Core 31 and later; Node.getNodesStats has no such field) plus getnetworkinfo \
               `inv_buckets` (32 and later)"]).by(&["statistic"]).of_node();
        inv_backlog: GaugeVec<1> = gauge("bitcoin_inv_backlog",
            "Transactions that wait for the rate limit of announcements to all inbound or all outbound peers",
            &["JSON-RPC getnetworkinfo `inv_buckets` (Bitcoin Core 32 and later)"]).by(&["direction"]).of_node();
        clock_offset: Gauge = gauge("bitcoin_clock_offset_seconds",
            "Median difference between the clocks of outbound peers and the node's; 0 with fewer than five of them",
            &["JSON-RPC getnetworkinfo `timeoffset`"]).of_node();
        largest_group: GaugeVec<2> = gauge("bitcoin_peers_largest_group",
            "The most peers of one direction with an address in one group: `netgroup` is an IPv4 /16 or an IPv6 /32, `as` an \
             autonomous system, absent unless the node has a map of them (-asmap)",
            &["Node.getNodesStats; getpeerinfo `addr`, `mapped_as`"]).by(&["by", "direction"]).of_node();
        groups: GaugeVec<2> = gauge("bitcoin_peers_groups",
            "Different groups that the addresses of the peers of one direction are in, as above; peers of other networks than IPv4 \
             and IPv6 are in no netgroup",
            &["Node.getNodesStats; getpeerinfo `addr`, `mapped_as`"]).by(&["by", "direction"]).of_node();
        message_bytes: CounterVec<2> = counter("bitcoin_p2p_message_bytes_total",
            "Bytes of messages with the peers seen at polls since the exporter started, by type; a peer that leaves takes nothing \
             back, and what peers of another long-running node had moved before is not counted",
            PEERS).by(&["direction", "type"]);
        banned: Gauge = gauge("bitcoin_banned", "Banned addresses and subnets", &["JSON-RPC listbanned"]).of_node();
        active: Gauge = gauge("bitcoin_network_active",
            "1 if the node connects to peers at all, else 0 (setnetworkactive)",
            &["JSON-RPC getnetworkinfo `networkactive`"]).of_node();
        reachable: GaugeVec<1> = gauge("bitcoin_network_reachable",
            "1 if the node opens connections to this network, else 0",
            &["JSON-RPC getnetworkinfo `networks`"]).by(&["network"]).of_node();
        local_addresses: Gauge = gauge("bitcoin_local_addresses",
            "Addresses of its own that the node announces to peers", &["JSON-RPC getnetworkinfo `localaddresses`"]).of_node();
        addresses: GaugeVec<2> = gauge("bitcoin_addrman_addresses",
            "Addresses of peers that the node knows: in the table `new` those that it heard of, in `tried` those that it was \
             connected to",
            &["JSON-RPC getaddrmaninfo"]).by(&["network", "table"]).of_node();
    }
}
