//! Metrics about peers and P2P traffic.

use super::model::{counter, gauge};
use super::pushed::{Counter, CounterVec, Gauge, GaugeVec, area};

/// P2P message types that are used as label values. All other types are counted as `other`, because a peer can choose
/// the type of its messages, and peers could otherwise create an unlimited number of series.
#[rustfmt::skip]
pub const MESSAGE_TYPES: [&str; 36] = [
    "addr", "addrv2", "block", "blocktxn", "cfcheckpt", "cfheaders", "cfilter", "cmpctblock", "feature",
    "feefilter", "filteradd", "filterclear", "filterload", "getaddr", "getblocks", "getblocktxn",
    "getcfcheckpt", "getcfheaders", "getcfilters", "getdata", "getheaders", "headers", "inv", "mempool",
    "merkleblock", "notfound", "ping", "pong", "sendaddrv2", "sendcmpct", "sendheaders", "sendtxrcncl",
    "tx", "verack", "version", "wtxidrelay",
];

const UPLOAD: &[&str] = &["JSON-RPC getnettotals `uploadtarget`"];
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
            "Percentiles 50, 90 and 100 of the last ping times of the connected peers", PEERS).by(&["percentile"]).of_node();
        min_ping: GaugeVec<1> = gauge("bitcoin_peer_min_ping_seconds",
            "Percentiles 50, 90 and 100 of the shortest ping times of the connected peers",
            PEERS).by(&["percentile"]).of_node();
        high_bandwidth: GaugeVec<1> = gauge("bitcoin_peers_high_bandwidth",
            "BIP152 high-bandwidth peers by direction: `to` counts peers that the node selected, `from` counts peers that \
             selected the node",
            PEERS).by(&["direction"]).of_node();
        addr_relay: Gauge = gauge("bitcoin_peers_addr_relay", "Peers that take part in address relay", PEERS).of_node();
        clock_off: GaugeVec<1> = gauge("bitcoin_peers_clock_off",
            "Peers whose clock is more than 10 seconds ahead of or behind the node's clock, by direction: `ahead` or \
             `behind`",
            PEERS).by(&["direction"]).of_node();
        ping_overdue: Gauge = gauge("bitcoin_peers_ping_overdue",
            "Peers that have not responded to a ping for more than 5 seconds", PEERS).of_node();
        with_blocks_in_flight: Gauge = gauge("bitcoin_peers_with_blocks_in_flight",
            "Peers from which the node is downloading blocks", PEERS).of_node();
        blocks_in_flight: Gauge = gauge("bitcoin_blocks_in_flight",
            "Blocks that the node is downloading; a block requested from several peers counts once", PEERS).of_node();
        by_version: GaugeVec<1> = gauge("bitcoin_peers_by_version",
            "Peers by protocol version; versions outside 70001 to 70099 are `other`", PEERS).by(&["version"]).of_node();
        by_client: GaugeVec<2> = gauge("bitcoin_peers_by_client",
            "Peers by the software that their user agent claims: `core` with the major version of Bitcoin Core, \
             `knots`, or `other`; peers that have not sent a user agent are not counted",
            &["Node.getNodesStats; getpeerinfo `subver`"]).by(&["client", "version"]).of_node();
        by_service: GaugeVec<1> = gauge("bitcoin_peers_by_service",
            "Peers by the services that they offer; a peer that offers several services counts for each of them. \
             Services unknown to Bitcoin Core are `other`",
            &["Node.getNodesStats; getpeerinfo `services`"]).by(&["service"]).of_node();
        ahead: Gauge = gauge("bitcoin_peers_ahead",
            "Peers that have announced a valid header, on any branch, that is higher than the node's tip",
            &["Node.getNodesStats; getpeerinfo `synced_headers`"]).of_node();
        low_fee_relay: Gauge = gauge("bitcoin_peers_low_fee_relay",
            "Peers with transaction relay that have sent a fee filter below 1 sat/vB",
            &["getpeerinfo `relaytxes`, `minfeefilter` (Node.getNodesStats has no such field)"]).of_node();
        addr_rate_limited: Gauge = gauge("bitcoin_peers_addr_rate_limited",
            "Peers that sent more addresses than the node's rate limit permits",
            &["Node.getNodesStats; getpeerinfo `addr_rate_limited`"]).of_node();
        inv_to_send: GaugeVec<1> = gauge("bitcoin_peers_inv_to_send",
            "Transactions waiting to be announced to the connected peers, in the peers' own queues and in the common \
             backlog: `sum` is the total over all peers, `max` the largest number for one peer; absent without peers",
            &["getpeerinfo `inv_to_send` (Bitcoin Core 31 and later; Node.getNodesStats has no such field) plus getnetworkinfo \
               `inv_buckets` (32 and later)"]).by(&["statistic"]).of_node();
        inv_backlog: GaugeVec<1> = gauge("bitcoin_inv_backlog",
            "Transactions that wait to be announced because of the rate limit on announcements, in the common \
             backlog of all inbound or of all outbound peers",
            &["JSON-RPC getnetworkinfo `inv_buckets` (Bitcoin Core 32 and later)"]).by(&["direction"]).of_node();
        clock_offset: Gauge = gauge("bitcoin_clock_offset_seconds",
            "Median offset of the clocks of outbound peers from the node's clock, in seconds; 0 with fewer than five \
             outbound peers",
            &["JSON-RPC getnetworkinfo `timeoffset`"]).of_node();
        largest_group: GaugeVec<2> = gauge("bitcoin_peers_largest_group",
            "Peers in the largest address group, by direction and type of group: `netgroup` is an IPv4 /16 or an IPv6 \
             /32, `as` is an autonomous system. `as` is absent unless the node has a map of autonomous systems (-asmap)",
            &["Node.getNodesStats; getpeerinfo `addr`, `mapped_as`"]).by(&["by", "direction"]).of_node();
        groups: GaugeVec<2> = gauge("bitcoin_peers_groups",
            "Address groups with at least one connected peer, by direction and type of group: `netgroup` (an IPv4 \
             /16 or an IPv6 /32) or `as` (an autonomous system, only with -asmap)",
            &["Node.getNodesStats; getpeerinfo `addr`, `mapped_as`"]).by(&["by", "direction"]).of_node();
        message_bytes: CounterVec<2> = counter("bitcoin_p2p_message_bytes_total",
            "Bytes of P2P messages, by direction and type, of all peers that polls have seen since the exporter started. \
             Bytes of disconnected peers remain counted. If a node was already running when the exporter first polled it, \
             bytes from before that poll are not counted",
            PEERS).by(&["direction", "type"]);
        addresses_processed: Counter = counter("bitcoin_addresses_processed_total",
            "Addresses in addr messages that the node processed, for all peers that polls have seen since the \
             exporter started",
            &["Node.getNodesStats; getpeerinfo `addr_processed`"]);
        addresses_rate_limited: Counter = counter("bitcoin_addresses_rate_limited_total",
            "Addresses in addr messages that the node dropped because the peer had sent too many, for all peers that \
             polls have seen since the exporter started",
            &["Node.getNodesStats; getpeerinfo `addr_rate_limited`"]);
        added_nodes: GaugeVec<1> = gauge("bitcoin_added_nodes",
            "Nodes that the operator has added (-addnode, addnode), by state: `connected` or `disconnected`; absent without \
             added nodes",
            &["JSON-RPC getaddednodeinfo"]).by(&["state"]).of_node();
        upload_target: Gauge = gauge("bitcoin_upload_target_bytes",
            "Bytes that the node tries to send at most in 24 hours (-maxuploadtarget); absent without a target",
            UPLOAD).of_node();
        upload_left: Gauge = gauge("bitcoin_upload_target_left_bytes",
            "Bytes that the node may still send in the current period of 24 hours; absent without a target", UPLOAD).of_node();
        upload_reached: Gauge = gauge("bitcoin_upload_target_reached",
            "1 if the upload target is reached, otherwise 0; absent without a target", UPLOAD).of_node();
        upload_historical: Gauge = gauge("bitcoin_upload_target_serves_historical_blocks",
            "1 if the node still serves blocks older than a week, 0 if the upload target forbids it; absent without a target",
            UPLOAD).of_node();
        tx_send_rate: Gauge = gauge("bitcoin_inv_rate_limit_per_second",
            "Limit on the number of transactions that the node announces per second (-txsendrate)",
            &["JSON-RPC getnetworkinfo `tx_send_rate` (Bitcoin Core 32 and later)"]).of_node();
        inv_tokens: GaugeVec<2> = gauge("bitcoin_inv_tokens",
            "Tokens left in the token buckets that limit the announcement of transactions, by direction of the peers \
             and unit: `transactions`, or `bytes` of transactions",
            &["JSON-RPC getnetworkinfo `inv_buckets` (Bitcoin Core 32 and later)"]).by(&["direction", "unit"]).of_node();
        banned: Gauge = gauge("bitcoin_banned", "Banned addresses and subnets", &["JSON-RPC listbanned"]).of_node();
        active: Gauge = gauge("bitcoin_network_active",
            "1 if the node's P2P network is active, 0 if it is switched off (setnetworkactive)",
            &["JSON-RPC getnetworkinfo `networkactive`"]).of_node();
        reachable: GaugeVec<1> = gauge("bitcoin_network_reachable",
            "1 if the node opens connections to this network, otherwise 0",
            &["JSON-RPC getnetworkinfo `networks`"]).by(&["network"]).of_node();
        local_addresses: Gauge = gauge("bitcoin_local_addresses",
            "The node's own addresses that it announces to peers", &["JSON-RPC getnetworkinfo `localaddresses`"]).of_node();
        addresses: GaugeVec<2> = gauge("bitcoin_addrman_addresses",
            "Peer addresses in the node's address manager by table: `new` has addresses received from peers, `tried` has \
             addresses to which a connection has succeeded",
            &["JSON-RPC getaddrmaninfo"]).by(&["network", "table"]).of_node();
    }
}
