//! Metrics about peers and P2P traffic.

use super::model::{counter, gauge};
use super::pushed::{Counter, CounterVec, Gauge, GaugeVec, area};

/// P2P message types that are used as label values. All others are counted as `other`, so that peers cannot create series.
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
    /// Metrics about peers, P2P traffic and known addresses.
    pub struct NetworkMetrics {
        peers: Gauge = gauge("bitcoin_peers", "Connected peers", &["Node.getNodeCount; getnetworkinfo `connections`"]).of_node();
        bytes_received: Counter = counter("bitcoin_bytes_recv_total",
            "Bytes received from peers since the node started", &["Node.getTotalBytesRecv; getnettotals"]).of_node();
        bytes_sent: Counter = counter("bitcoin_bytes_sent_total",
            "Bytes sent to peers since the node started", &["Node.getTotalBytesSent; getnettotals"]).of_node();
        connections: GaugeVec<1> = gauge("bitcoin_connections",
            "Connected peers by direction: `in` (opened by the peer) or `out` (opened by the node)",
            &["Node.getNodeCount; getnetworkinfo"]).by(&["direction"]).of_node();
        peers_by: GaugeVec<3> = gauge("bitcoin_peers_by",
            "Connected peers by network, connection type and transport protocol",
            PEERS).by(&["network", "connection_type", "transport"]).of_node();
        ping: GaugeVec<1> = gauge("bitcoin_peer_ping_seconds",
            "Last ping time of the connected peers, at percentiles 50, 90 and 100", PEERS).by(&["percentile"]).of_node();
        min_ping: GaugeVec<1> = gauge("bitcoin_peer_min_ping_seconds",
            "Shortest ping time of each connected peer, at percentiles 50, 90 and 100",
            PEERS).by(&["percentile"]).of_node();
        high_bandwidth: GaugeVec<1> = gauge("bitcoin_peers_high_bandwidth",
            "BIP152 high-bandwidth peers: `to` peers selected by the node, `from` peers that selected the node",
            PEERS).by(&["direction"]).of_node();
        addr_relay: Gauge = gauge("bitcoin_peers_addr_relay", "Peers that take part in address relay", PEERS).of_node();
        clock_off: Gauge = gauge("bitcoin_peers_clock_off",
            "Peers whose clock differs from the node's by more than 10 seconds", PEERS).of_node();
        ping_overdue: Gauge = gauge("bitcoin_peers_ping_overdue",
            "Peers with a ping unanswered for more than 5 seconds", PEERS).of_node();
        with_blocks_in_flight: Gauge = gauge("bitcoin_peers_with_blocks_in_flight",
            "Peers from which the node is downloading blocks", PEERS).of_node();
        blocks_in_flight: Gauge = gauge("bitcoin_blocks_in_flight",
            "Blocks being downloaded; a block requested from several peers counts once", PEERS).of_node();
        by_version: GaugeVec<1> = gauge("bitcoin_peers_by_version",
            "Peers by protocol version; versions outside 70001 to 70099 are `other`", PEERS).by(&["version"]).of_node();
        low_fee_relay: Gauge = gauge("bitcoin_peers_low_fee_relay",
            "Peers with transaction relay that have sent a fee filter below 1 sat/vB",
            &["getpeerinfo `relaytxes`, `minfeefilter` (Node.getNodesStats has no such field)"]).of_node();
        addr_rate_limited: Gauge = gauge("bitcoin_peers_addr_rate_limited",
            "Peers with rate-limited addr messages",
            &["Node.getNodesStats; getpeerinfo `addr_rate_limited`"]).of_node();
        inv_to_send: GaugeVec<1> = gauge("bitcoin_peers_inv_to_send",
            "Transactions waiting to be announced to the connected peers, in their own queues and in the common backlog: \
             `sum` over all peers, `max` for one peer; absent without peers",
            &["getpeerinfo `inv_to_send` (Bitcoin Core 31 and later; Node.getNodesStats has no such field) plus getnetworkinfo \
               `inv_buckets` (32 and later)"]).by(&["statistic"]).of_node();
        inv_backlog: GaugeVec<1> = gauge("bitcoin_inv_backlog",
            "Transactions held back by the rate limit of announcements to all inbound or all outbound peers",
            &["JSON-RPC getnetworkinfo `inv_buckets` (Bitcoin Core 32 and later)"]).by(&["direction"]).of_node();
        clock_offset: Gauge = gauge("bitcoin_clock_offset_seconds",
            "Median offset of the clocks of outbound peers from the node's, in seconds; 0 with fewer than five outbound \
             peers",
            &["JSON-RPC getnetworkinfo `timeoffset`"]).of_node();
        largest_group: GaugeVec<2> = gauge("bitcoin_peers_largest_group",
            "Peers of one direction in the largest group of addresses: `netgroup` is an IPv4 /16 or an IPv6 /32, `as` an \
             autonomous system, absent unless the node has a map of them (-asmap)",
            &["Node.getNodesStats; getpeerinfo `addr`, `mapped_as`"]).by(&["by", "direction"]).of_node();
        groups: GaugeVec<2> = gauge("bitcoin_peers_groups",
            "Number of groups of addresses (as above) of the peers of one direction; only IPv4 and IPv6 peers have a \
             netgroup",
            &["Node.getNodesStats; getpeerinfo `addr`, `mapped_as`"]).by(&["by", "direction"]).of_node();
        message_bytes: CounterVec<2> = counter("bitcoin_p2p_message_bytes_total",
            "Bytes of P2P messages, by type, of the peers seen at polls since the exporter started. Bytes of disconnected \
             peers remain counted; bytes that the peers of a node that was already running exchanged before are not \
             counted",
            PEERS).by(&["direction", "type"]);
        banned: Gauge = gauge("bitcoin_banned", "Banned addresses and subnets", &["JSON-RPC listbanned"]).of_node();
        active: Gauge = gauge("bitcoin_network_active",
            "1 if the node's network is active, 0 if it is switched off (setnetworkactive)",
            &["JSON-RPC getnetworkinfo `networkactive`"]).of_node();
        reachable: GaugeVec<1> = gauge("bitcoin_network_reachable",
            "1 if the node opens connections to this network, otherwise 0",
            &["JSON-RPC getnetworkinfo `networks`"]).by(&["network"]).of_node();
        local_addresses: Gauge = gauge("bitcoin_local_addresses",
            "Own addresses that the node announces to peers", &["JSON-RPC getnetworkinfo `localaddresses`"]).of_node();
        addresses: GaugeVec<2> = gauge("bitcoin_addrman_addresses",
            "Peer addresses in the node's address manager: received from peers (table `new`), or with a successful \
             connection (`tried`)",
            &["JSON-RPC getaddrmaninfo"]).by(&["network", "table"]).of_node();
    }
}
