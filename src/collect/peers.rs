//! Metrics of the node's connected P2P peers, computed from the statistics of each peer that the node returns in
//! Node.getNodesStats or getpeerinfo.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::net::IpAddr;
use std::time::Duration;

use serde_json::Value;

use super::json::{count, number};
use super::node_start::NodeIdentity;
use crate::ipc::PeerStats;
use crate::metrics::{MESSAGE_TYPES, NetworkMetrics, now};

/// Difference in seconds between a peer's clock and the node's clock. If the difference is larger, the metrics count
/// the peer's clock as wrong.
const CLOCK_OFF_SECONDS: i64 = 10;
/// Time after which a ping from the node to a peer counts as overdue if the peer has not responded.
const PING_OVERDUE: Duration = Duration::from_secs(5);
/// 1 sat/vB, in BTC/kvB. A peer with a lower fee filter accepts transactions below 1 sat/vB.
const ONE_SAT_PER_VBYTE: f64 = 0.00001;

/// Key of a peer: the node's ID for the peer, and the time at which the peer connected in Unix seconds. The time is
/// part of the key because IDs start at 0 again after a restart of the node. The node stores the time once per
/// connection, so changes of the node's clock do not change the key.
type PeerKey = (i64, i64);

/// Two numbers of transactions, for the inbound and for the outbound peers: the transactions that Bitcoin Core 32 has not
/// queued for these peers yet, because of its rate limit for announcements. Versions before 32 have no rate limit for announcements and
/// queue transactions for each peer immediately.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct AnnouncementBacklog {
    pub inbound: Option<f64>,
    pub outbound: Option<f64>,
}

impl AnnouncementBacklog {
    /// Reads the backlog from a response to getnetworkinfo.
    pub fn from_json(network_info: &Value) -> Self {
        let backlog = |direction| number(&network_info["inv_buckets"][direction], "backlog");
        AnnouncementBacklog { inbound: backlog("inbound"), outbound: backlog("outbound") }
    }
}

/// Number of transactions that the node has yet to announce to this peer, including the backlog that the node has not
/// queued for the peers yet.
fn queued(peer: &PeerStats, backlog: AnnouncementBacklog) -> Option<f64> {
    let backlog = if peer.is_inbound() { backlog.inbound } else { backlog.outbound };
    let backlog = backlog.filter(|_| peer.relays_transactions).unwrap_or(0.0);
    Some(peer.inv_to_send? as f64 + backlog)
}

/// Whether the peer accepts transactions below 1 sat/vB. A fee filter of 0 is not evidence of this, because the node
/// reports 0 until the peer has sent a fee filter, and peers without transaction relay never send a fee filter.
fn has_low_fee_filter(peer: &PeerStats) -> bool {
    let is_low = |filter| filter > 0.0 && filter < ONE_SAT_PER_VBYTE;
    peer.relays_transactions && peer.min_fee_filter.is_some_and(is_low)
}

/// One of the traffic totals that the node keeps for each peer, and that the exporter adds to a counter.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum PeerTotal {
    /// Bytes of the P2P messages in one direction (`in` or `out`) and of one message type.
    Bytes(&'static str, &'static str),
    /// Addresses from the peer that the node processed.
    AddressesProcessed,
    /// Addresses from the peer that the node dropped because the peer sent too many addresses.
    AddressesRateLimited,
}

impl PeerTotal {
    fn count(self, network: &NetworkMetrics, amount: u64) {
        match self {
            PeerTotal::Bytes(direction, kind) => network.message_bytes.inc_by([direction, kind], amount),
            PeerTotal::AddressesProcessed => network.addresses_processed.inc_by(amount),
            PeerTotal::AddressesRateLimited => network.addresses_rate_limited.inc_by(amount),
        }
    }
}

/// Values of the node itself at one poll, from which some metrics of its peers are computed: the announcement backlog
/// is added to the queues of the peers, the height of the tip is compared with the heights of the peers, and the
/// identity shows whether the counted traffic totals belong to this node.
#[derive(Clone, Copy, Default)]
pub struct NodeState {
    /// Numbers of transactions that the node holds back from all inbound and from all outbound peers.
    pub backlog: AnnouncementBacklog,
    /// Height of the node's tip.
    pub height: Option<f64>,
    /// Whether the node that reports these peers is the node that reported the previous peers.
    pub identity: NodeIdentity,
}

/// The traffic totals (bytes, addresses) that the node reported for each peer at the last poll. Each poll adds the
/// increase of these totals since the last poll to the traffic counters. The totals are kept when the exporter
/// reconnects.
#[derive(Default)]
pub struct PeerTraffic {
    /// Traffic totals that the node reported at the last poll, by peer and kind of total; `None` before the first poll.
    counted: Option<HashMap<(PeerKey, PeerTotal), u64>>,
    /// Time of the last poll, in Unix seconds.
    seen: i64,
}

impl PeerTraffic {
    /// Exports the metrics of the connected peers, including the traffic since the last poll.
    pub fn show(&mut self, peers: &[PeerStats], node: NodeState, network: &NetworkMetrics) {
        show_kinds(peers, network);
        show_software(peers, network);
        show_states(peers, network);
        let is_ahead = |peer: &&PeerStats| peer.best_header.map(|best| best as f64) > node.height;
        network.ahead.set(node.height.map(|_| peers.iter().filter(is_ahead).count() as f64));
        show_queues(peers, node.backlog, network);
        show_groups(peers, network);
        self.count_traffic(peers, node.identity, network, now() as i64);
    }

    /// Adds the increase of each peer's traffic totals (bytes and addresses) since the last poll to the counters. A
    /// peer that has disconnected is removed from `self`, and its counted traffic remains in the counters.
    ///
    /// The totals at the exporter's first poll are not counted, because an exporter that is restarted would otherwise
    /// count the same traffic twice. If another long-running node responds, the totals of its peers that connected
    /// before the last poll are also not counted. The responding node is treated as another node if none of its peers
    /// was connected at the last poll and there is no other evidence that it is the same node.
    fn count_traffic(
        &mut self,
        peers: &[PeerStats],
        identity: NodeIdentity,
        network: &NetworkMetrics,
        now: i64,
    ) {
        let mut present = HashMap::new();
        for peer in peers {
            for (direction, totals) in [("in", &peer.received), ("out", &peer.sent)] {
                for (kind, total) in totals {
                    // The label value is the string in MESSAGE_TYPES, and never the message type in the response, which
                    // a peer could have chosen.
                    let kind = MESSAGE_TYPES.iter().find(|known| *known == kind).unwrap_or(&"other");
                    let key = ((peer.id, peer.connected), PeerTotal::Bytes(direction, kind));
                    let sum: &mut u64 = present.entry(key).or_insert(0);
                    *sum = sum.saturating_add(*total);
                }
            }
            for (total, addresses) in [
                (PeerTotal::AddressesProcessed, peer.addresses_processed),
                (PeerTotal::AddressesRateLimited, peer.addresses_rate_limited),
            ] {
                present.extend(addresses.map(|addresses| (((peer.id, peer.connected), total), addresses)));
            }
        }
        let is_familiar = |counted: &HashMap<_, _>| present.keys().any(|key| counted.contains_key(key));
        let is_other_node =
            identity == NodeIdentity::Unknown && !self.counted.as_ref().is_some_and(is_familiar);
        for (key @ ((_, connected), counted), total) in &present {
            let before = match self.counted.as_ref().map(|counted| counted.get(key)) {
                Some(Some(before)) => *before,
                Some(None) if !is_other_node || *connected >= self.seen => 0,
                _ => *total,
            };
            counted.count(network, total.saturating_sub(before));
        }
        self.counted = Some(present);
        self.seen = now;
    }
}

/// Exports the number of peers by network, connection type and transport, and by protocol version.
fn show_kinds(peers: &[PeerStats], network: &NetworkMetrics) {
    let kinds = peers.iter().map(|peer| [peer.network, peer.connection_type, peer.transport]);
    network.peers_by.replace_with_counts(kinds);
    network.by_version.replace_with_counts(peers.iter().map(|peer| match peer.version {
        version @ 70001..=70099 => [version.to_string()],
        _ => ["other".to_string()],
    }));
}

/// P2P services that a peer can offer: for each service its label value, and its bit number in Bitcoin Core's
/// `ServiceFlags`.
const SERVICES: [(&str, u32); 6] = [
    ("network", 0),
    ("bloom", 2),
    ("witness", 3),
    ("compact_filters", 6),
    ("network_limited", 10),
    ("p2p_v2", 11),
];

/// Exports the number of peers by the software that the peers claim to run, and by the services that they offer.
fn show_software(peers: &[PeerStats], network: &NetworkMetrics) {
    let claims = peers.iter().map(|peer| &peer.subversion).filter(|claim| !claim.is_empty());
    network.by_client.replace_with_counts(claims.map(|claim| client(claim)));
    let services: Vec<u64> = peers.iter().filter_map(|peer| peer.services).collect();
    let known = SERVICES.iter().fold(0, |known, (_, bit)| known | 1 << bit);
    let offering = |bits: u64| services.iter().filter(|offered| *offered & bits != 0).count() as f64;
    let masks = SERVICES.iter().map(|(name, bit)| (*name, 1 << bit)).chain([("other", !known)]);
    let masks = masks.filter(|_| peers.is_empty() || !services.is_empty());
    network.by_service.replace(masks.map(|(name, bits)| ([name], offering(bits))));
}

/// Parses a peer's user agent to two label values: the client (`core`, `knots` or `other`), and for Bitcoin Core its
/// major version (before version 22: `0.` and the second number). Both values are from small fixed sets, to limit the
/// number of series, because a peer can send any text as its user agent.
fn client(user_agent: &str) -> [String; 2] {
    let other = ["other".into(), String::new()];
    let Some(rest) = user_agent.strip_prefix("/Satoshi:") else { return other };
    let Some((version, rest)) = rest.split_once('/') else { return other };
    if rest.starts_with("Knots:") {
        return ["knots".into(), String::new()];
    }
    // Operators can append comments to the version (-uacomment).
    let version = version.split_once('(').map_or(version, |(version, _)| version);
    let mut numbers = version.split('.').map(|number| number.parse::<u8>());
    match (rest, numbers.next(), numbers.next()) {
        ("", Some(Ok(major @ 22..=99)), Some(Ok(_))) => ["core".into(), major.to_string()],
        ("", Some(Ok(0)), Some(Ok(minor @ 8..=21))) => ["core".into(), format!("0.{minor}")],
        _ => other,
    }
}

/// Exports percentiles of the peers' ping times, and the numbers of peers with certain properties, for example with an
/// overdue ping.
fn show_states(peers: &[PeerStats], network: &NetworkMetrics) {
    network.ping.replace(percentiles(peers.iter().filter_map(|peer| peer.ping)));
    network.min_ping.replace(percentiles(peers.iter().filter_map(|peer| peer.min_ping)));
    let how_many = |is: &dyn Fn(&PeerStats) -> bool| peers.iter().filter(|peer| is(peer)).count() as f64;
    let to = how_many(&|peer| peer.high_bandwidth_to);
    let from = how_many(&|peer| peer.high_bandwidth_from);
    network.high_bandwidth.replace([(["to"], to), (["from"], from)]);
    network.addr_relay.set(Some(how_many(&|peer| peer.addr_relay)));
    let ahead = how_many(&|peer| peer.time_offset > CLOCK_OFF_SECONDS);
    let behind = how_many(&|peer| peer.time_offset < -CLOCK_OFF_SECONDS);
    network.clock_off.replace([(["ahead"], ahead), (["behind"], behind)]);
    let is_overdue = |peer: &PeerStats| peer.ping_wait.is_some_and(|wait| wait > PING_OVERDUE);
    network.ping_overdue.set(Some(how_many(&is_overdue)));
    network.with_blocks_in_flight.set(Some(how_many(&|peer| !peer.blocks_in_flight.is_empty())));
    // Heights are collected in a set, because the node may request the same block from up to three peers.
    let in_flight: HashSet<_> = peers.iter().flat_map(|peer| &peer.blocks_in_flight).collect();
    network.blocks_in_flight.set(Some(in_flight.len() as f64));
    let has_filters = peers.is_empty() || peers.iter().any(|peer| peer.min_fee_filter.is_some());
    network.low_fee_relay.set(has_filters.then(|| how_many(&has_low_fee_filter)));
    let is_limited = |peer: &PeerStats| peer.addresses_rate_limited.is_some_and(|dropped| dropped > 0);
    network.addr_rate_limited.set(Some(how_many(&is_limited)));
}

/// Exports the number of transactions that the node has yet to announce to its peers, as the sum and the maximum over
/// all peers.
fn show_queues(peers: &[PeerStats], backlog: AnnouncementBacklog, network: &NetworkMetrics) {
    let waiting: Vec<_> = peers.iter().filter_map(|peer| queued(peer, backlog)).collect();
    let statistics = [("sum", waiting.iter().sum()), ("max", waiting.iter().copied().fold(0.0, f64::max))];
    let present = if waiting.is_empty() { &[][..] } else { &statistics };
    network.inv_to_send.replace(present.iter().map(|&(statistic, queued)| ([statistic], queued)));
}

/// Exports the number of peer groups, and the size of the largest group. The peers of a group are in the same
/// autonomous system or in the same address range.
fn show_groups(peers: &[PeerStats], network: &NetworkMetrics) {
    let groups = ["in", "out"].map(|direction| {
        let inbound = direction == "in";
        let peers = || peers.iter().filter(move |peer| peer.is_inbound() == inbound);
        let by_as = group_sizes(peers().filter_map(|peer| peer.mapped_as));
        let by_netgroup = group_sizes(peers().filter_map(netgroup));
        [("as", by_as), ("netgroup", by_netgroup)].map(|(by, sizes)| ([by, direction], sizes))
    });
    let knows_as = peers.iter().any(|peer| peer.mapped_as.is_some());
    let groups = groups.iter().flatten().filter(|([by, _], _)| *by != "as" || knows_as);
    let largest = |sizes: &[usize]| sizes.iter().copied().max().unwrap_or(0) as f64;
    network.largest_group.replace(groups.clone().map(|(labels, sizes)| (*labels, largest(sizes))));
    network.groups.replace(groups.map(|(labels, sizes)| (*labels, sizes.len() as f64)));
}

/// Returns the number of occurrences of each distinct value.
fn group_sizes<T: Eq + Hash>(values: impl Iterator<Item = T>) -> Vec<usize> {
    let mut occurrences = HashMap::new();
    for value in values {
        *occurrences.entry(value).or_insert(0) += 1;
    }
    occurrences.into_values().collect()
}

/// The address range that contains a peer's public address: the /16 of an IPv4 address, or the /32 of an IPv6 address.
/// An attacker with one address in a range can get more addresses in it cheaply, so Bitcoin Core opens at most one
/// connection to each range. Bitcoin Core calls such a range a netgroup. Core's netgroups are the same ranges as here,
/// except for IPv6 addresses of tunnels over IPv4.
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

/// Returns the 50th, 90th and 100th percentile of durations in seconds, each with its label value. The p-th percentile
/// is the smallest value for which at least p % of the values are not larger. The result is empty if there are no
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

/// Reads the peers from a response to getpeerinfo; `None` if the response is not an array.
pub fn from_json(peers: &Value) -> Option<Vec<PeerStats>> {
    use crate::ipc::{CONNECTION_TYPES, NETWORKS, TRANSPORTS, ip_address};
    let known_name = |names: &[&'static str], name: &Value| {
        names.iter().copied().find(|known| Some(*known) == name.as_str()).unwrap_or("other")
    };
    let seconds =
        |peer: &Value, field| number(peer, field).and_then(|value| Duration::try_from_secs_f64(value).ok());
    let is = |peer: &Value, field: &str| peer[field] == true;
    let by_type = |totals: &Value| {
        let totals = totals.as_object().into_iter().flatten();
        totals.filter_map(|(kind, total)| Some((kind.clone(), total.as_u64()?))).collect()
    };
    let peers = peers.as_array()?.iter().map(|peer| PeerStats {
        id: peer["id"].as_i64().unwrap_or(-1),
        connected: peer["conntime"].as_i64().unwrap_or(0),
        network: known_name(&NETWORKS, &peer["network"]),
        address: peer["addr"].as_str().and_then(ip_address),
        mapped_as: count(peer, "mapped_as").and_then(|number| u32::try_from(number).ok()),
        connection_type: known_name(&CONNECTION_TYPES, &peer["connection_type"]),
        transport: known_name(&TRANSPORTS, &peer["transport_protocol_type"]),
        version: peer["version"].as_i64().unwrap_or(0),
        subversion: peer["subver"].as_str().unwrap_or_default().to_string(),
        services: peer["services"].as_str().and_then(|bits| u64::from_str_radix(bits, 16).ok()),
        best_header: peer["synced_headers"].as_i64().filter(|height| *height >= 0),
        ping: seconds(peer, "pingtime"),
        min_ping: seconds(peer, "minping"),
        ping_wait: seconds(peer, "pingwait"),
        high_bandwidth_to: is(peer, "bip152_hb_to"),
        high_bandwidth_from: is(peer, "bip152_hb_from"),
        addr_relay: is(peer, "addr_relay_enabled"),
        addresses_processed: count(peer, "addr_processed"),
        addresses_rate_limited: count(peer, "addr_rate_limited"),
        inv_to_send: count(peer, "inv_to_send"),
        time_offset: peer["timeoffset"].as_i64().unwrap_or(0),
        blocks_in_flight: peer["inflight"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_i64)
            .collect(),
        relays_transactions: is(peer, "relaytxes"),
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
    fn traffic_of_departed_peers_and_unknown_types_is_kept() {
        let metrics = Metrics::new();
        let mut peers = PeerTraffic::default();
        let peer = |id, tx, odd| PeerStats {
            id,
            received: vec![("tx".into(), tx), ("*other*".into(), odd), ("evil\"} 1".into(), odd)],
            ..PeerStats::default()
        };
        peers.show(&[], NodeState::default(), &metrics.network);
        peers.show(&[peer(1, 100, 1), peer(2, 50, 0)], NodeState::default(), &metrics.network);
        peers.show(&[peer(2, 70, 3)], NodeState::default(), &metrics.network);
        // A decrease of a peer's total is invalid, and the counters keep their values.
        peers.show(&[peer(2, 60, 3)], NodeState::default(), &metrics.network);
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
    fn clients_are_few_whatever_peers_claim() {
        let core = |version| ["core", version];
        for (user_agent, expected) in [
            ("/Satoshi:31.99.0/", core("31")),
            ("/Satoshi:22.0.0/", core("22")),
            ("/Satoshi:0.21.1/", core("0.21")),
            ("/Satoshi:27.1.0(my node; x)/", core("27")),
            ("/Satoshi:29.2.0/Knots:20251110/", ["knots", ""]),
            ("/Satoshi:1.0.0/", ["other", ""]),
            ("/Satoshi:200.0.0/", ["other", ""]),
            ("/Satoshi:0.99.0/", ["other", ""]),
            ("/Satoshi:27/", ["other", ""]),
            ("/Satoshi:27.0.0", ["other", ""]),
            ("/Satoshi:27.0.0/UASF:1/", ["other", ""]),
            ("/btcwire:0.5.0/", ["other", ""]),
            ("/Satoshi:x.y/\"} 1", ["other", ""]),
        ] {
            assert_eq!(client(user_agent), expected, "{user_agent}");
        }
    }

    #[test]
    fn addresses_of_departed_peers_stay_counted() {
        let metrics = Metrics::new();
        let mut peers = PeerTraffic::default();
        let peer = |id, processed, limited| PeerStats {
            id,
            addresses_processed: Some(processed),
            addresses_rate_limited: Some(limited),
            ..PeerStats::default()
        };
        peers.show(&[peer(1, 1000, 10)], NodeState::default(), &metrics.network);
        peers.show(&[peer(1, 1100, 10), peer(2, 40, 5)], NodeState::default(), &metrics.network);
        peers.show(&[peer(2, 45, 5)], NodeState::default(), &metrics.network);
        assert_eq!(metrics.network.addresses_processed.get(), Some(145.0));
        assert_eq!(metrics.network.addresses_rate_limited.get(), Some(5.0));
    }

    #[test]
    fn peers_ahead_are_compared_with_the_tip() {
        let metrics = Metrics::new();
        let mut peers = PeerTraffic::default();
        let peer = |best_header| PeerStats { best_header, ..PeerStats::default() };
        let all = [peer(Some(100)), peer(Some(101)), peer(Some(99)), peer(None)];
        let at = |height| NodeState { height, ..NodeState::default() };
        peers.show(&all, at(Some(100.0)), &metrics.network);
        assert_eq!(metrics.network.ahead.get(), Some(1.0));
        let metrics = Metrics::new();
        peers.show(&all, at(None), &metrics.network);
        assert_eq!(metrics.network.ahead.get(), None, "the height is not known");
    }

    #[test]
    fn totals_near_the_limit_do_not_overflow() {
        let metrics = Metrics::new();
        let mut peers = PeerTraffic::default();
        let mut poll = |first, second| {
            let received = vec![("evil".into(), first), ("other".into(), second), ("tx".into(), first)];
            peers.show(
                &[PeerStats { received, ..PeerStats::default() }],
                NodeState::default(),
                &metrics.network,
            );
        };
        poll(0, 0);
        poll(u64::MAX, u64::MAX);
        poll(0, 0);
        poll(u64::MAX, 1);
        let text = metrics.render(Format::Text);
        for kind in ["other", "tx"] {
            let line =
                format!("bitcoin_p2p_message_bytes_total{{direction=\"in\",type=\"{kind}\"}} {}\n", u64::MAX);
            assert!(text.contains(&line), "{text}");
        }
    }

    #[test]
    fn peers_that_are_gone_are_not_shown() {
        let metrics = Metrics::new();
        let mut peers = PeerTraffic::default();
        let peer = PeerStats {
            network: "ipv4",
            version: 70016,
            ping: Some(Duration::from_millis(5)),
            inv_to_send: Some(7),
            ..PeerStats::default()
        };
        peers.show(&[peer], NodeState::default(), &metrics.network);
        let families = [
            "bitcoin_peers_by{",
            "bitcoin_peers_by_version{",
            "bitcoin_peer_ping_seconds{",
            "bitcoin_peers_inv_to_send{",
        ];
        let text = metrics.render(Format::Text);
        assert!(families.iter().all(|family| text.contains(family)), "{text}");
        peers.show(&[], NodeState::default(), &metrics.network);
        let text = metrics.render(Format::Text);
        assert!(!families.iter().any(|family| text.contains(family)), "{text}");
    }

    #[test]
    fn traffic_is_counted_once_over_restarts_and_clock_steps() {
        let metrics = Metrics::new();
        let mut peers = PeerTraffic::default();
        let mut counts = |id, connected, total| {
            let sent = vec![("tx".into(), total)];
            let peer = PeerStats { id, connected, sent, ..PeerStats::default() };
            peers.show(&[peer], NodeState::default(), &metrics.network);
            let text = metrics.render(Format::Text);
            let sample = "bitcoin_p2p_message_bytes_total{direction=\"out\",type=\"tx\"} ";
            text.lines().find_map(|line| line.strip_prefix(sample)?.parse::<u64>().ok()).unwrap()
        };
        assert_eq!(counts(0, 1000, 1000), 0, "before the exporter was started");
        assert_eq!(counts(0, 1000, 1500), 500);
        assert_eq!(counts(0, 1000, 1500), 500, "whatever the node's clock does");
        assert_eq!(counts(0, 1300, 1700), 2200, "the node was restarted: another peer of the same number");
    }

    #[test]
    fn traffic_of_another_node_counts_from_the_last_poll() {
        let metrics = Metrics::new();
        let mut peers = PeerTraffic::default();
        let mut count = |now, of_other: bool, seen: &[(i64, i64, u64)]| {
            let peer = |&(id, connected, total): &(i64, i64, u64)| PeerStats {
                id,
                connected,
                sent: vec![("tx".into(), total)],
                ..PeerStats::default()
            };
            let identity = if of_other { NodeIdentity::Unknown } else { NodeIdentity::Same };
            peers.count_traffic(&seen.iter().map(peer).collect::<Vec<_>>(), identity, &metrics.network, now);
            let text = metrics.render(Format::Text);
            let sample = "bitcoin_p2p_message_bytes_total{direction=\"out\",type=\"tx\"} ";
            text.lines().find_map(|line| line.strip_prefix(sample)?.parse::<u64>().ok()).unwrap()
        };
        assert_eq!(count(1000, false, &[(0, 500, 100)]), 0);
        assert_eq!(count(1015, false, &[(0, 500, 200), (1, 1010, 50)]), 150);
        // Another node responds, with two peers: the first peer connected long ago, the second peer after the last
        // poll.
        assert_eq!(count(1030, true, &[(7, 100, 9_000_000), (8, 1020, 30)]), 180);
        assert_eq!(count(1045, false, &[(7, 100, 9_000_005), (8, 1020, 30)]), 185);
        // A peer that was seen before is evidence of the same node, so peer 9 is counted although its connection time
        // is before the last poll.
        assert_eq!(count(1060, true, &[(7, 100, 9_000_010), (8, 1020, 30), (9, 900, 10)]), 200);
    }

    #[test]
    fn peers_are_grouped_by_neighbourhood() {
        let peer = |network, address: &str| PeerStats {
            network,
            address: ip_address(address),
            ..PeerStats::default()
        };
        let groups = |peers: &[PeerStats]| {
            let sizes = group_sizes(peers.iter().filter_map(netgroup));
            (sizes.len(), sizes.into_iter().max())
        };
        let spread = [
            peer("ipv4", "192.0.2.1:8333"),
            peer("ipv4", "198.51.100.1:8333"),
            peer("ipv6", "[2001:db8::1]:8333"),
            peer("ipv6", "[2001:db9::1]:8333"),
        ];
        assert_eq!(groups(&spread), (4, Some(1)));
        let near = [peer("ipv4", "192.0.200.7:53123"), peer("ipv6", "[2001:db8:ffff::2]:8333")];
        assert_eq!(groups(&[&spread[..], &near].concat()), (4, Some(2)));
        // Peers without a group: addresses that cost an attacker nothing (Tor, I2P), that are not the peer's own, or
        // that are unknown.
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
        assert_eq!(groups(&others), (0, None));
    }

    #[test]
    fn groups_are_counted_by_direction() {
        let peer = |connection_type, address: &str, mapped_as| PeerStats {
            network: "ipv4",
            address: ip_address(address),
            connection_type,
            mapped_as,
            ..PeerStats::default()
        };
        let mut peers = vec![
            peer("inbound", "192.0.2.1:1000", None),
            peer("inbound", "192.0.3.1:1000", None),
            peer("inbound", "192.0.4.1:1000", None),
            peer("outbound-full-relay", "198.51.100.1:8333", None),
            peer("manual", "203.0.113.1:8333", None),
        ];
        let shown = |peers: &[PeerStats]| {
            let metrics = Metrics::new();
            PeerTraffic::default().show(peers, NodeState::default(), &metrics.network);
            let Metrics { network, .. } = &*metrics;
            [["netgroup", "in"], ["netgroup", "out"], ["as", "in"], ["as", "out"]]
                .map(|labels| network.largest_group.get(labels).zip(network.groups.get(labels)))
        };
        assert_eq!(shown(&peers), [Some((3.0, 1.0)), Some((1.0, 2.0)), None, None]);
        assert_eq!(shown(&[]), [Some((0.0, 0.0)), Some((0.0, 0.0)), None, None]);
        (peers[3].mapped_as, peers[4].mapped_as) = (Some(64496), Some(64496));
        assert_eq!(shown(&peers)[2..], [Some((0.0, 0.0)), Some((2.0, 1.0))]);
    }

    #[test]
    fn block_requested_from_two_peers_is_one_in_flight() {
        let peer = |blocks: &[i64]| PeerStats { blocks_in_flight: blocks.into(), ..PeerStats::default() };
        let metrics = Metrics::new();
        let peers = [peer(&[7, 8]), peer(&[8]), peer(&[])];
        PeerTraffic::default().show(&peers, NodeState::default(), &metrics.network);
        let text = metrics.render(Format::Text);
        assert!(text.contains("\nbitcoin_blocks_in_flight 2\n"), "{text}");
        assert!(text.contains("\nbitcoin_peers_with_blocks_in_flight 2\n"), "{text}");
    }

    #[test]
    fn peer_without_transaction_relay_has_no_low_fee_filter() {
        let peer = |relays_transactions, filter| PeerStats {
            relays_transactions,
            min_fee_filter: Some(filter),
            ..PeerStats::default()
        };
        assert!(has_low_fee_filter(&peer(true, 0.000001)));
        assert!(!has_low_fee_filter(&peer(true, 0.00001)));
        assert!(!has_low_fee_filter(&peer(false, 0.0)), "-blocksonly, or block-relay-only");
        assert!(!has_low_fee_filter(&peer(true, 0.0)), "has not sent a filter");
    }

    #[test]
    fn common_backlog_waits_for_each_peer_of_its_direction() {
        let peer = |connection_type, relays_transactions, inv_to_send| PeerStats {
            connection_type,
            relays_transactions,
            inv_to_send,
            ..PeerStats::default()
        };
        let info = json!({"inv_buckets": {"inbound": {"backlog": 900}, "outbound": {"backlog": 40}}});
        let backlog = AnnouncementBacklog::from_json(&info);
        assert_eq!(backlog, AnnouncementBacklog { inbound: Some(900.0), outbound: Some(40.0) });
        assert_eq!(queued(&peer("inbound", true, Some(7)), backlog), Some(907.0));
        assert_eq!(queued(&peer("manual", true, Some(0)), backlog), Some(40.0));
        assert_eq!(queued(&peer("block-relay-only", false, Some(0)), backlog), Some(0.0));
        assert_eq!(queued(&peer("inbound", true, None), backlog), None);
        let none = AnnouncementBacklog::from_json(&json!({}));
        assert_eq!(
            (none, queued(&peer("inbound", true, Some(7)), none)),
            (AnnouncementBacklog::default(), Some(7.0))
        );
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
             "timeoffset": -11, "relaytxes": true, "inv_to_send": u64::MAX, "bytessent_per_msg": {"ping": 32, "inv": "x"}},
            {"id": null, "network": 7, "pingtime": -1, "inflight": {}, "bytessent_per_msg": [], "inv_to_send": u64::MAX,
             "mapped_as": u64::MAX, "addr": 7},
            17
        ]))
        .unwrap();
        assert_eq!(
            (peers[0].network, peers[0].connection_type, peers[0].transport),
            ("onion", "manual", "v2")
        );
        assert_eq!(
            (peers[0].ping, &*peers[0].blocks_in_flight),
            (Some(Duration::from_millis(250)), &[1, 2][..])
        );
        assert_eq!(peers[0].sent, [("ping".to_string(), 32)]);
        assert_eq!((peers[1].network, peers[1].ping, peers[1].blocks_in_flight.len()), ("other", None, 0));
        assert_eq!(peers.len(), 3);
        assert_eq!(from_json(&json!({"no": "list"})), None);
        let metrics = Metrics::new();
        PeerTraffic::default().show(&peers, NodeState::default(), &metrics.network);
        let text = metrics.render(Format::Text);
        for line in [
            "bitcoin_peers_clock_off{direction=\"behind\"} 1",
            "bitcoin_peers_low_fee_relay 1",
            "bitcoin_blocks_in_flight 2",
        ] {
            assert!(text.contains(&format!("\n{line}\n")), "{line} in {text}");
        }
    }
}
