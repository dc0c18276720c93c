//! Metrics of the UDP peers of a FIBRE node (getudppeerinfo). FIBRE is a variant of Bitcoin Core that also relays
//! blocks over UDP. Each UDP peer belongs to a numbered group, which the operator configures with `-udpport`.

use std::collections::BTreeMap;
use std::time::Instant;

use serde_json::{Value, json};

use super::RateLimitedCalls;
use crate::collect::json::number;
use crate::metrics::{FibreMetrics, now};

/// Group IDs below this limit become label values. All higher IDs, except [`RECEIVE_GROUP`], share the label value
/// `other`, to limit the number of series, because the operator of a FIBRE node can choose any group ID.
const GROUPS: u64 = 64;
/// Group ID of the UDP peers from which the node only receives.
const RECEIVE_GROUP: u64 = u64::MAX;

/// Statistics of one group of UDP peers, from one response of the node.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct PeerGroup {
    peers: u32,
    connected: u32,
    trusted: u32,
    /// Round-trip times in seconds: the minimum over all peers of the group, the sum of the peers' mean times, and the
    /// maximum over all peers.
    round_trip: Option<[f64; 3]>,
    /// Number of peers of the group with a measured round-trip time.
    measured: u32,
    /// For the peer of the group that has sent nothing for the longest time, the time of its last packet, in Unix seconds of
    /// the node's clock.
    last_received: Option<f64>,
}

/// Reads the statistics of the UDP peers (getudppeerinfo) at each poll, to detect a silent peer soon. The call is
/// cheap, because the node only copies a list.
pub async fn poll(calls: &mut RateLimitedCalls, silence: &mut PeerSilence) {
    let answer = calls.rpc_if_known::<Value>("getudppeerinfo", json!([])).await;
    let Some(groups) = answer.as_ref().and_then(groups) else { return };
    silence.update(&groups, now(), Instant::now());
    show(groups, silence, Instant::now(), &calls.metrics().fibre);
}

/// The silence of each group of UDP peers: the time since the last packet from the peer of the group that has been
/// silent for the longest time. The time is measured with the exporter's monotonic clock, because the wall clocks of
/// the node and of the exporter can be set.
#[derive(Default)]
pub struct PeerSilence(BTreeMap<String, LastReceived>);

/// State from which the silence of one group of UDP peers is computed: the time of the last packet from the peer that
/// has been silent for the longest time, and the silence of the group when the node first returned this time.
struct LastReceived {
    /// Time of the last packet, as the node returned it, in Unix seconds.
    at: f64,
    /// Silence of the group in seconds at the time `changed`: the exporter's wall clock minus `at`.
    silence: f64,
    /// Time at which the node first returned the value `at`.
    changed: Instant,
}

impl PeerSilence {
    /// Updates the silence of each group. If the receive time (`last_received`) of a group has changed since the last
    /// update, the group's silence is `now` (Unix seconds) minus the receive time. If the receive time has not changed,
    /// the group's silence continues to grow with the exporter's monotonic clock.
    fn update(&mut self, groups: &BTreeMap<String, PeerGroup>, now: f64, changed: Instant) {
        let mut last = std::mem::take(&mut self.0);
        for (label, group) in groups {
            let Some(at) = group.last_received else { continue };
            let same = last.remove(label).filter(|last_received| last_received.at == at);
            let last_received = same.unwrap_or(LastReceived { at, silence: (now - at).max(0.0), changed });
            self.0.insert(label.clone(), last_received);
        }
    }
}

/// Computes the statistics of each group from a response to getudppeerinfo; `None` if the response is not an array.
/// Group 0 is in the result even if it has no peers, because every FIBRE node has this group.
fn groups(answer: &Value) -> Option<BTreeMap<String, PeerGroup>> {
    let mut groups = BTreeMap::from([("0".to_string(), PeerGroup::default())]);
    for peer in answer.as_array()? {
        let label = match peer["group"].as_u64() {
            Some(group @ ..GROUPS) => group.to_string(),
            Some(RECEIVE_GROUP) => "receive".to_string(),
            _ => "other".to_string(),
        };
        let group = groups.entry(label).or_default();
        group.peers += 1;
        group.trusted += u32::from(peer["ultimatetrust"] == true);
        if let Some(last_received) = number(peer, "lastrecv").filter(|last_received| *last_received > 0.0) {
            group.connected += 1;
            group.last_received =
                Some(group.last_received.unwrap_or(f64::INFINITY).min(seconds(last_received)));
        }
        // Before the first ping of a peer, the node returns the minimum 1000000, the mean 0 and the maximum 0. For a
        // peer that is a device on the node's own machine, all three times are 0.
        let times = ["min_recent_rtt", "avg_recent_rtt", "max_recent_rtt"].map(|field| number(peer, field));
        if let [Some(least), Some(mean), Some(most)] = times
            && mean > 0.0
        {
            let [lowest, sum, highest] = group.round_trip.unwrap_or([f64::INFINITY, 0.0, 0.0]);
            let [least, mean, most] = [least, mean, most].map(|milliseconds| milliseconds / 1000.0);
            group.round_trip = Some([lowest.min(least), sum + mean, highest.max(most)]);
            group.measured += 1;
        }
    }
    Some(groups)
}

/// Converts the field `lastrecv`, the time of the last packet from a peer, to Unix seconds. The help text of
/// getudppeerinfo documents seconds, but FIBRE 30.0 and earlier return milliseconds.
fn seconds(lastrecv: f64) -> f64 {
    /// Largest value that is interpreted as seconds. As seconds, the value is a time in the year 5138; as
    /// milliseconds, it is a time in 1973.
    const LARGEST_OF_SECONDS: f64 = 1e11;
    if lastrecv > LARGEST_OF_SECONDS { lastrecv / 1000.0 } else { lastrecv }
}

fn show(groups: BTreeMap<String, PeerGroup>, silence: &PeerSilence, now: Instant, metrics: &FibreMetrics) {
    let groups: Vec<_> = groups.iter().map(|(label, group)| (label.as_str(), *group)).collect();
    let each = |count: fn(&PeerGroup) -> u32| {
        groups.iter().map(move |(label, group)| ([*label], f64::from(count(group))))
    };
    metrics.peers.replace(each(|group| group.peers));
    metrics.connected.replace(each(|group| group.connected));
    metrics.trusted.replace(each(|group| group.trusted));
    let round_trips = groups.iter().filter_map(|(label, group)| {
        let [least, sum, most] = group.round_trip?;
        let mean = sum / f64::from(group.measured);
        Some([([*label, "minimum"], least), ([*label, "mean"], mean), ([*label, "maximum"], most)])
    });
    metrics.round_trip.replace(round_trips.flatten());
    let silence = silence.0.iter().map(|(label, last_received)| {
        let seconds = last_received.silence + (now - last_received.changed).as_secs_f64();
        // The value is rounded to milliseconds, the resolution of the node's receive times.
        ([label.as_str()], (seconds * 1000.0).round() / 1000.0)
    });
    metrics.silence.replace(silence);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{Format, Metrics};
    use std::time::Duration;

    const NOW: f64 = 1_764_000_100.0;

    fn shown(answer: &Value) -> String {
        let metrics = Metrics::new();
        let (groups, mut silence) = (groups(answer).unwrap_or_default(), PeerSilence::default());
        let now = Instant::now();
        silence.update(&groups, NOW, now);
        show(groups, &silence, now, &metrics.fibre);
        let text = metrics.render(Format::Text);
        text.lines()
            .filter(|line| line.starts_with("bitcoin_fibre_peer"))
            .map(|line| format!("{line}\n"))
            .collect()
    }

    #[test]
    fn peers_are_summed_up_by_group_and_no_address_is_shown() {
        let peer = |group: u64, lastrecv: u64, [min, max, avg]: [f64; 3]| {
            json!({"addr": "192.0.2.1:8336", "group": group, "lastrecv": lastrecv, "ultimatetrust": group == 0,
                   "min_recent_rtt": min, "max_recent_rtt": max, "avg_recent_rtt": avg})
        };
        let none = [1_000_000.0, 0.0, 0.0];
        let answer = json!([
            peer(0, 1_764_000_090_500, [10.0, 30.0, 20.0]), // milliseconds
            peer(0, 1_764_000_099, [20.0, 50.0, 40.0]),     // lastrecv in seconds
            peer(0, 0, none),                               // no response yet
            peer(3, 1_764_000_100_900, none),               // the node's clock is ahead
            peer(u64::MAX, 1_764_000_000_000, [0.0, 0.0, 0.0]),
            peer(64, 0, none),
        ]);
        assert_eq!(
            shown(&answer),
            "bitcoin_fibre_peers{group=\"0\"} 3\n\
             bitcoin_fibre_peers{group=\"3\"} 1\n\
             bitcoin_fibre_peers{group=\"other\"} 1\n\
             bitcoin_fibre_peers{group=\"receive\"} 1\n\
             bitcoin_fibre_peers_connected{group=\"0\"} 2\n\
             bitcoin_fibre_peers_connected{group=\"3\"} 1\n\
             bitcoin_fibre_peers_connected{group=\"other\"} 0\n\
             bitcoin_fibre_peers_connected{group=\"receive\"} 1\n\
             bitcoin_fibre_peers_trusted{group=\"0\"} 3\n\
             bitcoin_fibre_peers_trusted{group=\"3\"} 0\n\
             bitcoin_fibre_peers_trusted{group=\"other\"} 0\n\
             bitcoin_fibre_peers_trusted{group=\"receive\"} 0\n\
             bitcoin_fibre_peer_round_trip_seconds{group=\"0\",statistic=\"maximum\"} 0.05\n\
             bitcoin_fibre_peer_round_trip_seconds{group=\"0\",statistic=\"mean\"} 0.03\n\
             bitcoin_fibre_peer_round_trip_seconds{group=\"0\",statistic=\"minimum\"} 0.01\n\
             bitcoin_fibre_peer_silence_seconds{group=\"0\"} 9.5\n\
             bitcoin_fibre_peer_silence_seconds{group=\"3\"} 0\n\
             bitcoin_fibre_peer_silence_seconds{group=\"receive\"} 100\n"
        );
    }

    #[test]
    fn silence_does_not_follow_steps_of_the_clock() {
        let begin = Instant::now();
        let (metrics, mut silence) = (Metrics::new(), PeerSilence::default());
        let mut after = |seconds: u64, now: f64, last_received: f64| {
            let groups = groups(&json!([{"group": 0, "lastrecv": last_received}])).unwrap();
            let at = begin + Duration::from_secs(seconds);
            silence.update(&groups, now, at);
            show(groups, &silence, at, &metrics.fibre);
            metrics.fibre.silence.get(["0"])
        };
        assert_eq!(after(0, NOW, NOW - 3.0), Some(3.0));
        assert_eq!(after(15, NOW + 3615.0, NOW - 3.0), Some(18.0), "+1 h");
        assert_eq!(after(30, NOW + 20.0, NOW - 3.0), Some(33.0), "-10 s");
        assert_eq!(after(45, NOW + 35.0, NOW + 34.0), Some(1.0), "a new packet");
        assert_eq!(after(60, NOW + 40.0, NOW + 41.0), Some(0.0), "the node's clock is ahead");
    }

    #[test]
    fn node_without_peers_has_zeros_and_without_fibre_nothing() {
        let none = "bitcoin_fibre_peers{group=\"0\"} 0\n\
                    bitcoin_fibre_peers_connected{group=\"0\"} 0\n\
                    bitcoin_fibre_peers_trusted{group=\"0\"} 0\n";
        assert_eq!(shown(&json!([])), none);
        assert_eq!(shown(&Value::Null), "");
        assert_eq!(shown(&json!({"no": "list"})), "");
        let odd = json!([{"group": -1, "lastrecv": "x", "avg_recent_rtt": -5}, 17, null]);
        assert!(shown(&odd).contains("bitcoin_fibre_peers{group=\"other\"} 3\n"), "{}", shown(&odd));
    }
}
