//! Metrics about FIBRE/UDP peers. FIBRE relays blocks over UDP, and only nodes that are built with FIBRE
//! have such peers.

use super::model::gauge;
use super::pushed::{GaugeVec, area};

area! {
    /// Metrics about FIBRE/UDP peers, by group.
    pub struct FibreMetrics {
        peers: GaugeVec<1> = gauge("bitcoin_fibre_peers",
            "FIBRE/UDP peers that the node has or tries to reach, by group of -udpport; group numbers of 64 and above are \
             `other`, receive-only peers are `receive`",
            &["JSON-RPC getudppeerinfo"]).by(&["group"]).of_node();
        connected: GaugeVec<1> = gauge("bitcoin_fibre_peers_connected",
            "FIBRE/UDP peers from which the node has received a packet", &["JSON-RPC getudppeerinfo `lastrecv`"]).by(&["group"]).of_node();
        trusted: GaugeVec<1> = gauge("bitcoin_fibre_peers_trusted",
            "FIBRE/UDP peers whose chunks are relayed before the block is validated",
            &["JSON-RPC getudppeerinfo `ultimatetrust`"]).by(&["group"]).of_node();
        round_trip: GaugeVec<2> = gauge("bitcoin_fibre_peer_round_trip_seconds",
            "Minimum, mean and maximum round trip time to the FIBRE/UDP peers of a group, over the last ten pings of each \
             peer (one ping in 15 minutes)",
            &["JSON-RPC getudppeerinfo `min_recent_rtt`, `avg_recent_rtt`, `max_recent_rtt`"]).by(&["group", "statistic"]).of_node();
        silence: GaugeVec<1> = gauge("bitcoin_fibre_peer_silence_seconds",
            "Longest time since a connected FIBRE/UDP peer of the group sent its last packet; each peer sends a packet \
             every 10 seconds",
            &["The exporter's clock minus JSON-RPC getudppeerinfo `lastrecv`"]).by(&["group"]).of_node();
    }
}
