//! Messages and connections: provider `net`.

use anyhow::Result;
use libbpf_rs::{MapCore, MapFlags, MapHandle};

use super::maps::{self, skeleton};
use super::subject::{Loaded, Tracepoints, count, counts_by, families};
use crate::metrics::{MESSAGE_TYPES, Reading, Sample};
use bpf::types::{connections, counts, direction, messages};

skeleton!("net", counts: [counts], plain: [connections]);

/// Core's `Network`, by number, and what is unknown.
const NETWORKS: [&str; 8] =
    ["not_publicly_routable", "ipv4", "ipv6", "onion", "i2p", "cjdns", "internal", "other"];

pub(super) struct Net {
    counts: MapHandle,
    connections: MapHandle,
}

pub(super) struct Totals {
    counts: counts,
    open: connections,
}

impl Tracepoints for Net {
    type Builder = bpf::NetSkelBuilder;
    type Totals = Totals;

    families! { "net", bpf::NetProgs<'static>;
        Counter "bitcoin_p2p_messages_total" ["direction", "type"] "Messages from and to peers; unknown types are `other`",
            [inbound_message, outbound_message], |t| by_type(&t.counts, |messages| messages.number);
        Counter "bitcoin_p2p_message_bytes_total" ["direction", "type"] "Bytes of the messages from and to peers, without their headers",
            [inbound_message, outbound_message], |t| by_type(&t.counts, |messages| messages.bytes);
        Gauge "bitcoin_connections" ["direction"] "Open connections by who opened them, in or out, from the first that is opened on",
            [inbound_connection, outbound_connection], |t| open(&t.open);
        Counter "bitcoin_connections_opened_total" ["direction", "network"] "Connections opened",
            [inbound_connection, outbound_connection], |t| opened(&t.counts);
        Counter "bitcoin_connections_closed_total" ["network"] "Connections closed",
            [closed_connection], |t| counts_by(by_network(t.counts.closed));
        Counter "bitcoin_connections_evicted_total" [] "Inbound connections closed to make room for others",
            [evicted_inbound_connection], |t| count(t.counts.evicted);
        Counter "bitcoin_connections_misbehaving_total" [] "Peers that misbehaved",
            [misbehaving_connection], |t| count(t.counts.misbehaving);
    }

    fn new(programs: &Loaded<Self>) -> Result<Self> {
        maps::number_names(&programs.maps.types_map, MESSAGE_TYPES)?;
        Ok(Net {
            counts: MapHandle::try_from(&programs.maps.counts_map)?,
            connections: MapHandle::try_from(&programs.maps.connections_map)?,
        })
    }

    fn read(&self) -> Totals {
        Totals {
            counts: maps::sum(&self.counts).unwrap_or_default(),
            open: maps::single_value(&self.connections).unwrap_or_default(),
        }
    }

    /// Its connections have ended, too.
    fn node_ended(&self) {
        let _ = self.connections.update(&[0; 4], &[0; size_of::<connections>()], MapFlags::ANY);
    }
}

fn by_direction(counts: &counts) -> [(&'static str, &direction); 2] {
    [("in", &counts.inbound), ("out", &counts.outbound)]
}

/// The array has as many counts as the programs tell networks apart.
fn by_network(counts: [u64; NETWORKS.len()]) -> impl Iterator<Item = (&'static str, u64)> {
    NETWORKS.into_iter().zip(counts)
}

/// Messages by direction and type, of those types that were seen.
fn by_type(counts: &counts, of: fn(&messages) -> u64) -> Vec<Sample> {
    let mut samples = Vec::new();
    for (direction, counts) in by_direction(counts) {
        let types = maps::by_name(MESSAGE_TYPES, &counts.messages);
        for (kind, messages) in types.filter(|(_, messages)| messages.number > 0) {
            samples.push(Sample(vec![direction.into(), kind.into()], Reading::Count(of(messages))));
        }
    }
    samples
}

fn open(open: &connections) -> Vec<Sample> {
    let directions = [("in", open.inbound), ("out", open.outbound)];
    let known = directions.into_iter().filter(|(_, gauge)| gauge.known != 0);
    known
        .map(|(direction, gauge)| Sample(vec![direction.into()], Reading::Value(gauge.value as f64)))
        .collect()
}

fn opened(counts: &counts) -> Vec<Sample> {
    let mut samples = Vec::new();
    for (direction, counts) in by_direction(counts) {
        for (network, opened) in by_network(counts.opened) {
            samples.push(Sample(vec![direction.into(), network.into()], Reading::Count(opened)));
        }
    }
    samples
}
