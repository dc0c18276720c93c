//! FIBRE's peers, where the node is a FIBRE node.

use super::declare::Declare;
use super::families::Labeled;
use super::samples::Value;

/// FIBRE's UDP peers by group. Units are in the names; see `METRICS.md` for each metric's source.
#[allow(missing_docs, reason = "each field's documentation is its metric's help text")]
pub struct Fibre {
    pub peers: Labeled<1, Value>,
    pub connected: Labeled<1, Value>,
    pub trusted: Labeled<1, Value>,
    pub round_trip: Labeled<2, Value>,
    pub silence: Labeled<1, Value>,
}

impl Fibre {
    pub(super) fn declare(d: &mut Declare) -> Self {
        Fibre {
            peers: d.gauge_by(
                "bitcoin_fibre_peers",
                ["group"],
                "FIBRE/UDP peers that the node has or tries to reach, by group of -udpport; a group from 64 on is `other`, what is only \
                 received from is `receive`",
                "JSON-RPC getudppeerinfo",
            ),
            connected: d.gauge_by(
                "bitcoin_fibre_peers_connected",
                ["group"],
                "FIBRE/UDP peers that have answered",
                "JSON-RPC getudppeerinfo `lastrecv`",
            ),
            trusted: d.gauge_by(
                "bitcoin_fibre_peers_trusted",
                ["group"],
                "FIBRE/UDP peers whose chunks are passed on before the block was checked",
                "JSON-RPC getudppeerinfo `ultimatetrust`",
            ),
            round_trip: d.gauge_by(
                "bitcoin_fibre_peer_round_trip_seconds",
                ["group", "statistic"],
                "Round trips to a group's FIBRE/UDP peers, of each the last ten pings (one in 15 minutes): minimum, mean, maximum",
                "JSON-RPC getudppeerinfo `min_recent_rtt`, `avg_recent_rtt`, `max_recent_rtt`",
            ),
            silence: d.gauge_by(
                "bitcoin_fibre_peer_silence_seconds",
                ["group"],
                "Time since the most silent of a group's connected FIBRE/UDP peers was heard; they say something every 10 seconds",
                "JSON-RPC getudppeerinfo `lastrecv`, against the exporter's clock",
            ),
        }
    }
}
