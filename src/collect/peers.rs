//! Each peer's statistics, counted over the present peers.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::json::{count, flag, number};
use crate::ipc::PeerStats;
use crate::metrics::{MESSAGE_TYPES, Network};

/// A peer's clock is off when it differs by more.
const CLOCK_OFF_SECONDS: u64 = 10;
/// A ping is overdue when it has been unanswered for longer.
const PING_OVERDUE: Duration = Duration::from_secs(5);
/// 1 sat/vB in BTC/kvB; peers that filter at less take cheaper transactions.
const ONE_SAT_PER_VBYTE: f64 = 0.00001;

/// What is remembered of the peers between polls, and from one connection to the next: how much traffic of each was counted already.
#[derive(Default)]
pub struct Peers {
    counted: HashMap<(i64, &'static str, &'static str), u64>,
    /// The node's uptime in seconds, and when it was answered.
    uptime: Option<(f64, Instant)>,
}

impl Peers {
    /// The node's uptime in seconds, when it was asked for and when it was answered. One that has not grown with the time is another process's,
    /// whose peers have moved nothing yet that was counted.
    pub fn node_is_up_for(&mut self, uptime: f64, asked: Instant, answered: Instant) {
        /// Uptimes are whole seconds.
        const TOLERATED: f64 = 2.0;
        let grown = |(last, answered): (f64, Instant)| {
            uptime + TOLERATED >= last + asked.saturating_duration_since(answered).as_secs_f64()
        };
        if !self.uptime.is_none_or(grown) {
            self.counted.clear();
        }
        self.uptime = Some((uptime, answered));
    }

    /// Shows the present peers.
    pub fn show(&mut self, peers: &[PeerStats], network: &Network) {
        let how_many = |is: &dyn Fn(&PeerStats) -> bool| peers.iter().filter(|peer| is(peer)).count() as f64;
        let mut by_kind: BTreeMap<_, f64> = BTreeMap::new();
        let mut by_version: BTreeMap<String, f64> = BTreeMap::new();
        for peer in peers {
            *by_kind.entry([peer.network, peer.connection_type, peer.transport]).or_default() += 1.0;
            let version = match peer.version {
                version @ 70001..=70099 => version.to_string(),
                _ => "other".to_string(),
            };
            *by_version.entry(version).or_default() += 1.0;
        }
        network.peers_by.replace(by_kind);
        network.by_version.replace(by_version.iter().map(|(version, &peers)| ([version.as_str()], peers)));
        network.ping.replace(percentiles(peers.iter().filter_map(|peer| peer.ping)));
        network.min_ping.replace(percentiles(peers.iter().filter_map(|peer| peer.min_ping)));
        network.high_bandwidth.set(["to"], how_many(&|peer| peer.high_bandwidth_to));
        network.high_bandwidth.set(["from"], how_many(&|peer| peer.high_bandwidth_from));
        network.addr_relay.set(Some(how_many(&|peer| peer.addr_relay)));
        network.clock_off.set(Some(how_many(&|peer| peer.time_offset.unsigned_abs() > CLOCK_OFF_SECONDS)));
        network
            .ping_overdue
            .set(Some(how_many(&|peer| peer.ping_wait.is_some_and(|wait| wait > PING_OVERDUE))));
        network.with_blocks_in_flight.set(Some(how_many(&|peer| peer.blocks_in_flight > 0)));
        network
            .blocks_in_flight
            .set(Some(peers.iter().map(|peer| peer.blocks_in_flight as f64).sum::<f64>()));
        let tells_filter = peers.is_empty() || peers.iter().any(|peer| peer.min_fee_filter.is_some());
        network.low_fee_relay.set(
            tells_filter.then(|| {
                how_many(&|peer| peer.min_fee_filter.is_some_and(|filter| filter < ONE_SAT_PER_VBYTE))
            }),
        );
        network
            .addr_rate_limited
            .set(Some(how_many(&|peer| peer.addresses_rate_limited.is_some_and(|dropped| dropped > 0))));
        let waiting: Vec<_> =
            peers.iter().filter_map(|peer| peer.inv_to_send).map(|queued| queued as f64).collect();
        let statistics =
            [("sum", waiting.iter().sum()), ("max", waiting.iter().copied().fold(0.0, f64::max))];
        let told = if waiting.is_empty() { &[][..] } else { &statistics };
        network.inv_to_send.replace(told.iter().map(|&(statistic, queued)| ([statistic], queued)));
        let by_as = largest(peers.iter().filter_map(|peer| peer.mapped_as));
        let by_netgroup = largest(peers.iter().filter_map(netgroup)).unwrap_or(0);
        let groups = by_as.map(|peers| ("as", peers)).into_iter().chain([("netgroup", by_netgroup)]);
        network.largest_group.replace(groups.map(|(by, peers)| ([by], peers as f64)));
        self.count_traffic(peers, network);
    }

    /// Adds what each peer's totals have grown by since the last poll. A peer's number is never used again, and one
    /// that is gone is forgotten: what it had moved stays counted.
    fn count_traffic(&mut self, peers: &[PeerStats], network: &Network) {
        let mut present = HashMap::new();
        for peer in peers {
            for (direction, totals) in [("in", &peer.received), ("out", &peer.sent)] {
                for (kind, total) in totals {
                    // An array's own strings, so that nothing a peer chose becomes a label.
                    let kind = MESSAGE_TYPES.iter().find(|known| *known == kind).unwrap_or(&"other");
                    *present.entry((peer.id, direction, *kind)).or_insert(0) += total;
                }
            }
        }
        for (key @ (_, direction, kind), total) in &present {
            let counted = self.counted.get(key).copied().unwrap_or(0);
            network.message_bytes.inc_by([direction, kind], total.saturating_sub(counted));
        }
        self.counted = present;
    }
}

/// How often the most frequent value occurs; `None` without values.
fn largest<T: Eq + Hash>(values: impl Iterator<Item = T>) -> Option<usize> {
    let mut occurrences = HashMap::new();
    for value in values {
        *occurrences.entry(value).or_insert(0) += 1;
    }
    occurrences.into_values().max()
}

/// The /16 of a public IPv4 address, the /32 of an IPv6 one: whoever holds one address there can have more of them cheaply. Bitcoin
/// Core opens at most one connection into each (its netgroups, but for those of tunnels).
fn netgroup(peer: &PeerStats) -> Option<(bool, [u8; 4])> {
    match (peer.network, peer.address?.to_canonical()) {
        ("ipv4" | "ipv6", IpAddr::V4(address)) => {
            let [first, second, ..] = address.octets();
            Some((false, [first, second, 0, 0]))
        }
        ("ipv6", IpAddr::V6(address)) => address.octets().first_chunk().map(|prefix| (true, *prefix)),
        _ => None,
    }
}

/// The 50th, 90th and 100th percentile: the smallest value that this share of the values does not exceed. None without
/// values.
fn percentiles(values: impl Iterator<Item = Duration>) -> Vec<([&'static str; 1], f64)> {
    let mut values: Vec<_> = values.collect();
    values.sort();
    let at = |percent: usize| values.get((values.len() * percent).div_ceil(100).max(1) - 1);
    [("50", 50), ("90", 90), ("100", 100)]
        .into_iter()
        .filter_map(|(label, percent)| Some(([label], at(percent)?.as_secs_f64())))
        .collect()
}

/// The peers of a getpeerinfo answer; `None` if it is not a list.
pub fn from_json(peers: &Value) -> Option<Vec<PeerStats>> {
    use crate::ipc::{CONNECTION_TYPES, NETWORKS, TRANSPORTS, ip_address};
    let known = |names: &[&'static str], name: &Value| {
        names.iter().copied().find(|known| Some(*known) == name.as_str()).unwrap_or("other")
    };
    let seconds =
        |peer: &Value, field| number(peer, field).and_then(|value| Duration::try_from_secs_f64(value).ok());
    let is = |peer: &Value, field| flag(peer, field) == Some(1);
    let by_type = |totals: &Value| {
        let totals = totals.as_object().into_iter().flatten();
        totals.filter_map(|(kind, total)| Some((kind.clone(), total.as_u64()?))).collect()
    };
    let peers = peers.as_array()?.iter().map(|peer| PeerStats {
        id: peer["id"].as_i64().unwrap_or(-1),
        network: known(&NETWORKS, &peer["network"]),
        address: peer["addr"].as_str().and_then(ip_address),
        mapped_as: count(peer, "mapped_as").and_then(|number| u32::try_from(number).ok()),
        connection_type: known(&CONNECTION_TYPES, &peer["connection_type"]),
        transport: known(&TRANSPORTS, &peer["transport_protocol_type"]),
        version: peer["version"].as_i64().unwrap_or(0),
        ping: seconds(peer, "pingtime"),
        min_ping: seconds(peer, "minping"),
        ping_wait: seconds(peer, "pingwait"),
        high_bandwidth_to: is(peer, "bip152_hb_to"),
        high_bandwidth_from: is(peer, "bip152_hb_from"),
        addr_relay: is(peer, "addr_relay_enabled"),
        addresses_rate_limited: count(peer, "addr_rate_limited"),
        inv_to_send: count(peer, "inv_to_send"),
        time_offset: peer["timeoffset"].as_i64().unwrap_or(0),
        blocks_in_flight: peer["inflight"].as_array().map_or(0, Vec::len),
        min_fee_filter: number(peer, "minfeefilter"),
        sent: by_type(&peer["bytessent_per_msg"]),
        received: by_type(&peer["bytesrecv_per_msg"]),
    });
    Some(peers.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ipc::ip_address;
    use crate::metrics::{Format, Metrics};
    use serde_json::json;

    #[test]
    fn a_peer_that_leaves_takes_no_traffic_back_and_unknown_types_are_other() {
        let metrics = Metrics::new();
        let mut peers = Peers::default();
        let peer = |id, tx, odd| PeerStats {
            id,
            received: vec![("tx".into(), tx), ("*other*".into(), odd), ("evil\"} 1".into(), odd)],
            ..PeerStats::default()
        };
        peers.show(&[peer(1, 100, 1), peer(2, 50, 0)], &metrics.network);
        peers.show(&[peer(2, 70, 3)], &metrics.network);
        peers.show(&[peer(2, 60, 3)], &metrics.network); // nonsense of the node's: nothing is taken back
        let text = metrics.render(Format::Text);
        assert!(
            text.contains("bitcoin_p2p_message_bytes_total{direction=\"in\",type=\"tx\"} 170\n"),
            "{text}"
        );
        assert!(
            text.contains("bitcoin_p2p_message_bytes_total{direction=\"in\",type=\"other\"} 8\n"),
            "{text}"
        );
        assert!(!text.contains("evil"));
    }

    #[test]
    fn another_process_has_other_peers_with_the_same_numbers() {
        let metrics = Metrics::new();
        let mut peers = Peers::default();
        let now = Instant::now();
        let mut sees = |uptime, after: u64, total| {
            let at = now + Duration::from_secs(after);
            peers.node_is_up_for(uptime, at, at);
            let peer = PeerStats { id: 0, sent: vec![("tx".into(), total)], ..PeerStats::default() };
            peers.show(&[peer], &metrics.network);
            let text = metrics.render(Format::Text);
            let sample = "bitcoin_p2p_message_bytes_total{direction=\"out\",type=\"tx\"} ";
            text.lines().find_map(|line| line.strip_prefix(sample)?.parse::<u64>().ok()).unwrap()
        };
        assert_eq!(sees(100.0, 0, 1000), 1000);
        assert_eq!(sees(160.0, 60, 1500), 1500);
        assert_eq!(sees(159.0, 61, 1500), 1500, "whole seconds");
        assert_eq!(sees(30.0, 120, 1700), 3200, "restarted");
    }

    #[test]
    fn peers_of_one_neighbourhood_are_told_from_those_of_many() {
        let peer = |network, address: &str| PeerStats {
            network,
            address: ip_address(address),
            ..PeerStats::default()
        };
        let groups = |peers: &[PeerStats]| largest(peers.iter().filter_map(netgroup));
        let spread = [
            peer("ipv4", "192.0.2.1:8333"),
            peer("ipv4", "198.51.100.1:8333"),
            peer("ipv6", "[2001:db8::1]:8333"),
            peer("ipv6", "[2001:db9::1]:8333"),
        ];
        assert_eq!(groups(&spread), Some(1));
        let near = [peer("ipv4", "192.0.200.7:53123"), peer("ipv6", "[2001:db8:ffff::2]:8333")];
        assert_eq!(groups(&[&spread[..], &near].concat()), Some(2));
        // Their addresses cost nothing, are somebody else's, or are unknown.
        let others = [
            peer("onion", "127.0.0.1:50000"),
            peer("onion", "127.0.0.1:50001"),
            peer("i2p", "x.b32.i2p:0"),
            peer("cjdns", "[fc00::1]:8333"),
            peer("cjdns", "[fc00::2]:8333"),
            peer("not_publicly_routable", "127.0.0.1:1"),
            peer("not_publicly_routable", "127.0.0.1:2"),
            peer("ipv4", "host.example:8333"),
        ];
        assert_eq!(groups(&others), None);
    }

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let values = |n: u64| percentiles((1..=n).map(Duration::from_secs));
        assert_eq!(values(0), []);
        assert_eq!(values(1), [(["50"], 1.0), (["90"], 1.0), (["100"], 1.0)]);
        assert_eq!(values(10), [(["50"], 5.0), (["90"], 9.0), (["100"], 10.0)]);
    }

    #[test]
    fn getpeerinfo_is_read_with_fields_missing_or_of_other_types() {
        let peers = from_json(&json!([
            {"id": 3, "network": "onion", "connection_type": "manual", "transport_protocol_type": "v2", "version": 70016,
             "pingtime": 0.25, "minping": 0.125, "bip152_hb_to": true, "inflight": [1, 2], "minfeefilter": 0.000001,
             "timeoffset": -11, "inv_to_send": u64::MAX, "bytessent_per_msg": {"ping": 32, "inv": "x"}},
            {"id": null, "network": 7, "pingtime": -1, "inflight": {}, "bytessent_per_msg": [], "inv_to_send": u64::MAX,
             "mapped_as": u64::MAX, "addr": 7},
            17
        ]))
        .unwrap();
        assert_eq!(
            (peers[0].network, peers[0].connection_type, peers[0].transport),
            ("onion", "manual", "v2")
        );
        assert_eq!((peers[0].ping, peers[0].blocks_in_flight), (Some(Duration::from_millis(250)), 2));
        assert_eq!(peers[0].sent, [("ping".to_string(), 32)]);
        assert_eq!((peers[1].network, peers[1].ping, peers[1].blocks_in_flight), ("other", None, 0));
        assert_eq!(peers.len(), 3);
        assert_eq!(from_json(&json!({"no": "list"})), None);
        let metrics = Metrics::new();
        Peers::default().show(&peers, &metrics.network);
        let text = metrics.render(Format::Text);
        for line in
            ["bitcoin_peers_clock_off 1", "bitcoin_peers_low_fee_relay 1", "bitcoin_blocks_in_flight 2"]
        {
            assert!(text.contains(&format!("\n{line}\n")), "{line} in {text}");
        }
    }
}
