//! What the counts mean: every metric of `bitcoind-usdt-exporter`.

use std::sync::LazyLock;
use std::time::{SystemTime, UNIX_EPOCH};

use super::totals::Totals;
use crate::metrics::{Family, Kind, MESSAGE_TYPES, REMOVAL_REASONS, Reading, Sample};

/// Upper bounds of buckets, in seconds or numbers; at most as many as `BOUNDS` in `bpf/common.h`.
pub(super) const RECONSTRUCTION: &[f64] =
    &[0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
pub(super) const CHUNKS: &[f64] =
    &[1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0];
pub(super) const LATENCY: &[f64] = &[0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0];
pub(super) const MARGIN: &[f64] = &[0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0];
pub(super) const CONNECTION: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
pub(super) const FLUSH: &[f64] = &[0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0];
pub(super) const TXS: &[f64] =
    &[0.0, 1.0, 10.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 2000.0, 3000.0, 4000.0, 5000.0, 7500.0, 10000.0];
pub(super) const SIGOPS: &[f64] =
    &[0.0, 100.0, 1000.0, 5000.0, 10000.0, 20000.0, 30000.0, 40000.0, 60000.0, 80000.0];
pub(super) const BYTES: &[f64] = &[
    0.0,
    100.0,
    1000.0,
    10_000.0,
    50_000.0,
    100_000.0,
    250_000.0,
    500_000.0,
    1_000_000.0,
    2_000_000.0,
    4_000_000.0,
];

/// Bounds as the programs compare with them: in units of which there are `unit` in one. The first unused one takes all
/// that is larger than the others.
pub(super) fn bounds(bounds: &[f64], unit: f64) -> [u64; 15] {
    let mut scaled = [u64::MAX; 15];
    for (scaled, bound) in scaled.iter_mut().zip(bounds) {
        *scaled = (bound * unit).round() as u64;
    }
    scaled
}

/// As in `enum mechanism` of `bpf/fibre.bpf.c`.
pub(super) const MECHANISMS: [&str; 3] = ["fibre_udp", "bip152_cmpct", "other"];
const DIRECTIONS: [&str; 2] = ["in", "out"];
/// Core's `Network`, and what is unknown.
const NETWORKS: [&str; 8] =
    ["not_publicly_routable", "ipv4", "ipv6", "onion", "i2p", "cjdns", "internal", "other"];

/// Unix seconds.
static STARTED: LazyLock<f64> =
    LazyLock::new(|| SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64());

/// Remembers now as the start.
pub(super) fn started() {
    LazyLock::force(&STARTED);
}

fn one(reading: Reading) -> Vec<Sample> {
    vec![Sample(Vec::new(), reading)]
}

fn count(total: u64) -> Vec<Sample> {
    one(Reading::Count(total))
}

fn value(value: Option<i64>) -> Vec<Sample> {
    value.map(|value| one(Reading::Value(value as f64))).unwrap_or_default()
}

/// Counts by one label.
fn counts_by<'a>(labels: impl IntoIterator<Item = &'a str>, totals: &[u64]) -> Vec<Sample> {
    let samples = labels.into_iter().zip(totals);
    samples.map(|(label, total)| Sample(vec![label.into()], Reading::Count(*total))).collect()
}

macro_rules! histogram {
    ($histogram:expr, $bounds:ident / $unit:literal) => {{
        let ends = $bounds.iter().copied().chain([f64::INFINITY]);
        Reading::Histogram($histogram.sum as f64 / $unit, ends.zip($histogram.buckets).collect())
    }};
}

macro_rules! histograms_by_mechanism {
    ($histograms:expr, $bounds:ident / $unit:literal) => {
        MECHANISMS
            .iter()
            .zip($histograms)
            .map(|(mechanism, it)| Sample(vec![mechanism.to_string()], histogram!(it, $bounds / $unit)))
            .collect()
    };
}

/// Messages by direction and type, of those types that were seen.
fn messages(totals: &Totals, of: fn(&super::skeletons::net::types::messages) -> u64) -> Vec<Sample> {
    let mut samples = Vec::new();
    for (direction, types) in DIRECTIONS.iter().zip(&totals.net.messages) {
        let types = types.as_flattened();
        let known = MESSAGE_TYPES.iter().zip(types).chain([(&"other", types.last().expect("not empty"))]);
        for (kind, messages) in known.filter(|(_, messages)| messages.number > 0) {
            samples.push(Sample(vec![direction.to_string(), kind.to_string()], Reading::Count(of(messages))));
        }
    }
    samples
}

macro_rules! family {
    ($kind:ident $name:literal [$($label:literal),*] $help:literal, $source:literal, |$totals:ident| $read:expr) => {
        Family {
            name: $name,
            kind: Kind::$kind,
            labels: &[$($label),*],
            help: $help,
            source: $source,
            read: |$totals| if $totals.sees($source) { $read } else { Vec::new() },
        }
    };
    // Known whether or not anything was attached.
    (own $kind:ident $name:literal [$($label:literal),*] $help:literal, |$totals:ident| $read:expr) => {
        Family { name: $name, kind: Kind::$kind, labels: &[$($label),*], help: $help, source: "the exporter", read: |$totals| $read }
    };
}

/// Every family, in the order of `METRICS.md`.
pub static FAMILIES: &[Family<Totals>] = &[
    family!(Counter "fibre_blocks_reconstructed_total" [] "Blocks reconstructed from FIBRE/UDP chunks",
        "udp:block_reconstructed", |t| count(t.fibre.events[0])),
    family!(Counter "fibre_chunks_received_total" [] "FIBRE chunks received for reconstructed blocks",
        "udp:block_reconstructed", |t| count(t.fibre.chunks_received)),
    family!(Counter "fibre_chunks_used_total" [] "FIBRE chunks used to reconstruct blocks",
        "udp:block_reconstructed", |t| count(t.fibre.chunks_used)),
    family!(Histogram "fibre_block_reconstruction_duration_seconds" [] "Time that the reconstruction of a block took",
        "udp:block_reconstructed", |t| one(histogram!(t.fibre.duration_us, RECONSTRUCTION / 1e6))),
    family!(Histogram "fibre_block_chunks_used" [] "Chunks used for one block",
        "udp:block_reconstructed", |t| one(histogram!(t.fibre.chunks, CHUNKS / 1.0))),
    family!(Counter "fibre_blocks_sent_total" [] "Blocks that the node began to send over FIBRE",
        "udp:block_send_start", |t| count(t.fibre.events[1])),
    family!(Counter "fibre_block_race_wins_total" ["mechanism"] "Blocks by the mechanism that delivered them first",
        "udp:block_race_winner", |t| counts_by(MECHANISMS, &t.fibre.wins)),
    family!(Counter "fibre_block_deliveries_total" ["mechanism", "peer"]
        "Blocks by the mechanism and the peer that delivered them first; from the 257th pair on the peer is `other`",
        "udp:block_race_winner", |t| deliveries(t)),
    family!(Histogram "fibre_block_race_latency_seconds" ["mechanism"] "Time until a mechanism had the block, of those that took part",
        "udp:block_race_time", |t| histograms_by_mechanism!(t.fibre.latency_ns, LATENCY / 1e9)),
    family!(Histogram "fibre_race_margin_seconds" ["winner"] "Time by which the winner was ahead, when both mechanisms took part",
        "udp:block_race_time", |t| histograms_by_mechanism!(t.fibre.margin_ns, MARGIN / 1e9)),
    family!(Counter "fibre_races_with_both_total" [] "Races in which both mechanisms took part",
        "udp:block_race_time", |t| count(t.fibre.races_with_both)),
    family!(Gauge "fibre_last_block_height" [] "Height of the block that was raced last",
        "udp:block_race_winner, udp:block_race_time", |t| value(t.last_height)),
    family!(Histogram "fibre_block_missing_tx_count" [] "Transactions of a reconstructed block that were not in the mempool",
        "udp:block_reconstruction_detail", |t| one(histogram!(t.fibre.missing_txs, TXS / 1.0))),
    family!(Histogram "fibre_block_missing_tx_bytes" [] "Bytes of the transactions that were not in the mempool",
        "udp:block_reconstruction_detail", |t| one(histogram!(t.fibre.missing_bytes, BYTES / 1.0))),
    family!(Histogram "fibre_block_mempool_tx_count" [] "Transactions of a reconstructed block that were in the mempool",
        "udp:block_reconstruction_detail", |t| one(histogram!(t.fibre.mempool_txs, TXS / 1.0))),
    family!(Counter "fibre_block_all_tx_from_mempool_total" [] "Reconstructed blocks whose transactions were all in the mempool",
        "udp:block_reconstruction_detail", |t| count(t.fibre.all_from_mempool)),
    family!(Counter "bitcoin_blocks_connected_total" [] "Blocks connected to the active chain",
        "validation:block_connected", |t| count(t.validation.txs.buckets.iter().sum())),
    family!(Histogram "bitcoin_block_connection_duration_seconds" [] "Time that connecting a block took",
        "validation:block_connected", |t| one(histogram!(t.validation.duration_ns, CONNECTION / 1e9))),
    family!(Histogram "bitcoin_block_tx_count" [] "Transactions of a connected block",
        "validation:block_connected", |t| one(histogram!(t.validation.txs, TXS / 1.0))),
    family!(Histogram "bitcoin_block_inputs" [] "Inputs of a connected block",
        "validation:block_connected", |t| one(histogram!(t.validation.inputs, TXS / 1.0))),
    family!(Histogram "bitcoin_block_sigops" [] "Cost of a connected block's signature operations",
        "validation:block_connected", |t| one(histogram!(t.validation.sigops, SIGOPS / 1.0))),
    family!(Counter "bitcoin_p2p_messages_total" ["direction", "type"] "Messages from and to peers; unknown types are `other`",
        "net:inbound_message, net:outbound_message", |t| messages(t, |messages| messages.number)),
    family!(Counter "bitcoin_p2p_message_bytes_total" ["direction", "type"] "Bytes of the messages from and to peers, without their headers",
        "net:inbound_message, net:outbound_message", |t| messages(t, |messages| messages.bytes)),
    family!(Gauge "bitcoin_connections" ["direction"] "Open connections by who opened them, in or out, from the first that is opened on",
        "net:inbound_connection, net:outbound_connection", |t| connections(t)),
    family!(Counter "bitcoin_connections_opened_total" ["direction", "network"] "Connections opened",
        "net:inbound_connection, net:outbound_connection", |t| opened(t)),
    family!(Counter "bitcoin_connections_closed_total" ["network"] "Connections closed",
        "net:closed_connection", |t| counts_by(NETWORKS, &t.net.closed)),
    family!(Counter "bitcoin_connections_evicted_total" [] "Inbound connections closed to make room for others",
        "net:evicted_inbound_connection", |t| count(t.net.evicted)),
    family!(Counter "bitcoin_connections_misbehaving_total" [] "Peers that misbehaved",
        "net:misbehaving_connection", |t| count(t.net.misbehaving)),
    family!(Counter "bitcoin_mempool_tx_added_total" [] "Transactions added to the mempool",
        "mempool:added", |t| count(t.mempool.added)),
    family!(Counter "bitcoin_mempool_added_fees_satoshis_total" [] "Fees of the transactions added to the mempool",
        "mempool:added", |t| count(t.mempool.added_fees)),
    family!(Counter "bitcoin_mempool_added_vbytes_total" [] "Virtual sizes of the transactions added to the mempool",
        "mempool:added", |t| count(t.mempool.added_vbytes)),
    family!(Counter "bitcoin_mempool_tx_removed_total" ["reason"] "Transactions removed from the mempool, by reason",
        "mempool:removed", |t| counts_by(REMOVAL_REASONS.into_iter().chain(["other"]), &t.mempool.removed)),
    family!(Counter "bitcoin_mempool_tx_replaced_total" [] "Transactions replaced by others that pay more",
        "mempool:replaced", |t| count(t.mempool.replaced)),
    family!(Counter "bitcoin_mempool_tx_rejected_total" ["reason"]
        "Transactions not accepted to the mempool, by reason; from the 65th reason on `other`",
        "mempool:rejected", |t| rejected(t)),
    family!(Counter "bitcoin_utxo_cache_add_total" [] "Coins added to a UTXO cache",
        "utxocache:add", |t| count(t.utxocache.added.number)),
    family!(Counter "bitcoin_utxo_cache_add_value_total" [] "Value of the coins added to a UTXO cache, in satoshis",
        "utxocache:add", |t| count(t.utxocache.added.value)),
    family!(Counter "bitcoin_utxo_cache_spend_total" [] "Coins spent from a UTXO cache",
        "utxocache:spent", |t| count(t.utxocache.spent.number)),
    family!(Counter "bitcoin_utxo_cache_spend_value_total" [] "Value of the coins spent from a UTXO cache, in satoshis",
        "utxocache:spent", |t| count(t.utxocache.spent.value)),
    family!(Counter "bitcoin_utxo_cache_uncache_total" [] "Coins dropped from a UTXO cache unspent",
        "utxocache:uncache", |t| count(t.utxocache.uncached.number)),
    family!(Counter "bitcoin_utxo_cache_uncache_value_total" [] "Value of the coins dropped from a UTXO cache, in satoshis",
        "utxocache:uncache", |t| count(t.utxocache.uncached.value)),
    family!(Histogram "bitcoin_utxo_cache_flush_duration_seconds" [] "Time that writing the UTXO cache to disk took",
        "utxocache:flush", |t| one(histogram!(t.utxocache.flush_us, FLUSH / 1e6))),
    family!(Gauge "bitcoin_utxo_cache_flush_coins" [] "Coins in the UTXO cache at its last flush",
        "utxocache:flush", |t| value(t.flushed[0])),
    family!(Gauge "bitcoin_utxo_cache_flush_bytes" [] "Memory of the UTXO cache at its last flush",
        "utxocache:flush", |t| value(t.flushed[1])),
    family!(own Gauge "fibre_exporter_up" [] "1 while the exporter runs", |_t| value(Some(1))),
    family!(own Gauge "fibre_exporter_start_time_seconds" [] "Start of the exporter, Unix seconds",
        |_t| one(Reading::Value(*STARTED))),
    family!(own Gauge "fibre_exporter_probes_attached" [] "Tracepoints that are attached at present",
        |t| value(Some(t.attached as i64))),
    family!(own Counter "fibre_exporter_events_processed_total" ["event_type"] "FIBRE events counted, by tracepoint",
        |t| counts_by(super::Subject::Fibre.tracepoints().iter().copied(), &t.fibre.events)),
    family!(own Counter "fibre_exporter_errors_total" ["error_type"]
        "Events that were lost or not read whole: an argument that could not be fetched, memory that is not resident, log \
         events without room",
        |t| errors(t)),
    family!(own Gauge "fibre_exporter_info" ["version"] "1, with the exporter's version",
        |_t| vec![Sample(vec![env!("CARGO_PKG_VERSION").into()], Reading::Value(1.0))]),
    family!(own Gauge "bitcoind_usdt_exporter_build_info" ["version", "revision", "rustc"]
    "1, with what this binary was built from as labels",
    |_t| vec![Sample(
        [env!("CARGO_PKG_VERSION"), env!("BUILD_REVISION"), env!("BUILD_RUSTC")].map(String::from).into(),
        Reading::Value(1.0),
    )]),
];

fn deliveries(totals: &Totals) -> Vec<Sample> {
    let named = totals.deliveries.iter().filter_map(|(mechanism, peer, deliveries)| {
        Some(Sample(vec![(*MECHANISMS.get(*mechanism)?).into(), peer.clone()], Reading::Count(*deliveries)))
    });
    let others = MECHANISMS.iter().zip(totals.fibre.other_peers).filter(|(_, deliveries)| *deliveries > 0);
    let others = others.map(|(mechanism, deliveries)| {
        Sample(vec![mechanism.to_string(), "other".into()], Reading::Count(deliveries))
    });
    named.chain(others).collect()
}

fn connections(totals: &Totals) -> Vec<Sample> {
    let known = DIRECTIONS.iter().zip(totals.connections);
    known
        .filter_map(|(direction, open)| {
            Some(Sample(vec![direction.to_string()], Reading::Value(open? as f64)))
        })
        .collect()
}

fn opened(totals: &Totals) -> Vec<Sample> {
    let mut samples = Vec::new();
    for (direction, networks) in DIRECTIONS.iter().zip(totals.net.opened) {
        for (network, opened) in NETWORKS.iter().zip(networks) {
            samples.push(Sample(vec![direction.to_string(), network.to_string()], Reading::Count(opened)));
        }
    }
    samples
}

fn rejected(totals: &Totals) -> Vec<Sample> {
    let other = ("other".to_string(), totals.mempool.rejected_other);
    let reasons = totals.rejected.iter().chain((other.1 > 0).then_some(&other));
    reasons.map(|(reason, rejected)| Sample(vec![reason.clone()], Reading::Count(*rejected))).collect()
}

fn errors(totals: &Totals) -> Vec<Sample> {
    let mut sums = [0; 3];
    macro_rules! add {
        ($($subject:ident),*) => {
            $(let errors = totals.$subject.errors;
            for (sum, errors) in sums.iter_mut().zip([errors.argument, errors.unreadable, errors.lost]) {
                *sum += errors;
            })*
        };
    }
    add!(fibre, validation, net, mempool, utxocache);
    counts_by(["argument", "unreadable", "lost"], &sums)
}
