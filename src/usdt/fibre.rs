//! Tracepoints of block relay by FIBRE, which sends blocks between nodes in UDP packets. The provider of these
//! tracepoints is `udp`.
//!
//! A relay mechanism is FIBRE/UDP or compact blocks (BIP 152). The race for a block is FIBRE's comparison of the two
//! mechanisms: FIBRE reports which of them delivered the block first, and how long each of them took.

use anyhow::Result;
use tracing::info;

use super::blocks::{BlockEvent, BlockEventKind, RawBlockHash};
use super::bpf::fibre::types::{self, counts, delivery, event, kind};
use super::group::GroupPrograms;
use super::histogram::{Buckets, TXS};
use super::maps::{self, Maps, Pod};
use crate::metrics::{Family, HistogramValue, counter, histogram};

// SAFETY: the struct consists of u64 only; see fibre.bpf.c.
unsafe impl Pod for counts {}
// SAFETY: the struct consists of integers only; see fibre.bpf.c.
unsafe impl Pod for delivery {}
// SAFETY: the struct consists of integers only; see fibre.bpf.c.
unsafe impl Pod for event {}
// SAFETY: the struct consists of integers only; see fibre.bpf.c.
unsafe impl Pod for types::rodata {}

const RECONSTRUCTION: Buckets =
    Buckets::new(1e6, &[0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0]);
const CHUNKS: Buckets =
    Buckets::new(1.0, &[1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0]);
const LATENCY: Buckets =
    Buckets::new(1e9, &[0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0]);
const MARGIN: Buckets = Buckets::new(1e9, &[0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0]);
const MISSING_TXS: Buckets = Buckets::new(
    1.0,
    &[0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 2000.0, 5000.0, 10_000.0],
);
#[rustfmt::skip]
const BYTES: Buckets = Buckets::new(1.0, &[
    0.0, 100.0, 500.0, 1000.0, 5000.0, 10_000.0, 50_000.0, 100_000.0, 250_000.0, 500_000.0, 1_000_000.0, 2_000_000.0, 4_000_000.0,
]);
#[rustfmt::skip]
const STAGE: Buckets = Buckets::new(1e6, &[
    0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 1.0,
]);

const FIBRE_UDP: &str = "fibre_udp";
const BIP152_CMPCT: &str = "bip152_cmpct";

/// Names of relay mechanisms in FIBRE's tracepoints, each with its label value. A mechanism with another name has the
/// label value `other`.
const MECHANISMS: [(&str, &str); 2] = [("FIBRE/UDP", FIBRE_UDP), ("BIP152/CMPCTBLOCK", BIP152_CMPCT)];

/// The label value of the mechanism with this index in [`MECHANISMS`]; `other` for an index beyond the last.
fn mechanism(number: u32) -> &'static str {
    MECHANISMS.get(number as usize).map_or("other", |(_, label)| label)
}

const RECONSTRUCTED: &[&str] = &["udp:block_reconstructed"];
const WON: &[&str] = &["udp:block_race_winner"];
const RACED: &[&str] = &["udp:block_race_time"];
const DETAILED: &[&str] = &["udp:block_reconstruction_detail"];

/// The exporter's code for the tracepoint group `fibre`: blocks that FIBRE reconstructs and sends, and races between
/// FIBRE and compact blocks.
pub(super) struct FibreGroup;

/// Maximum number of pairs of a relay mechanism and a peer that have their own time series.
const MAX_DELIVERIES: usize = 256;

impl GroupPrograms for FibreGroup {
    fn set_constants(&self, rodata: &mut [u8]) {
        maps::modify(rodata, |constants: &mut types::rodata| {
            constants.duration_us_bounds = RECONSTRUCTION.for_programs();
            constants.chunk_bounds = CHUNKS.for_programs();
            constants.latency_ns_bounds = LATENCY.for_programs();
            constants.margin_ns_bounds = MARGIN.for_programs();
            constants.tx_bounds = TXS.for_programs();
            constants.missing_tx_bounds = MISSING_TXS.for_programs();
            constants.byte_bounds = BYTES.for_programs();
            constants.stage_us_bounds = STAGE.for_programs();
        });
    }

    fn fill_maps(&self, maps: &Maps) -> Result<()> {
        maps.number_names("mechanisms_map", MECHANISMS.map(|(name, _)| name))
    }

    #[rustfmt::skip]
    fn families(&self, maps: &Maps) -> Vec<Family> {
        let counts: counts = maps.sum("counts_map");
        let stages = [
            (["queue"], histogram_value(&STAGE, counts.header_queue_us)),
            (["maps"], histogram_value(&STAGE, counts.header_maps_us)),
            (["chunks"], histogram_value(&STAGE, counts.header_chunks_us)),
            (["finish"], histogram_value(&STAGE, counts.header_finish_us)),
        ];
        vec![
            counter("fibre_blocks_reconstructed_total", "Blocks reconstructed from FIBRE/UDP chunks", RECONSTRUCTED)
                .value(counts.reconstructed),
            counter("fibre_chunks_received_total", "FIBRE chunks received for reconstructed blocks", RECONSTRUCTED)
                .value(counts.chunks_received),
            counter("fibre_chunks_used_total", "FIBRE chunks used to reconstruct blocks", RECONSTRUCTED).value(counts.chunks_used),
            histogram("fibre_block_reconstruction_duration_seconds", "Time to reconstruct a block from FIBRE chunks", RECONSTRUCTED,
                RECONSTRUCTION.bounds).value(histogram_value(&RECONSTRUCTION, counts.duration_us)),
            histogram("fibre_block_chunks_used", "FIBRE chunks used to reconstruct a block", RECONSTRUCTED, CHUNKS.bounds)
                .value(histogram_value(&CHUNKS, counts.chunks)),
            counter("fibre_blocks_sent_total", "Blocks that the node began to send over FIBRE", &["udp:block_send_start"])
                .value(counts.sent),
            counter("fibre_block_race_wins_total", "Blocks that a relay mechanism delivered first, by mechanism", WON)
                .by(&["mechanism"]).samples(by_mechanism(&counts.wins).map(|(mechanism, wins)| ([mechanism], wins))),
            counter("fibre_block_deliveries_total",
                "Blocks that a peer delivered first over a relay mechanism, by mechanism and peer. If there are more \
                 than 256 pairs of mechanism and peer, the counts of the least recent pairs are added to the peer \
                 `other`", WON)
                .by(&["mechanism", "peer"]).samples(deliveries(maps, counts.other_peers)),
            histogram("fibre_block_race_latency_seconds", "Time that FIBRE reports for a relay mechanism in the race \
                 for a block, for each mechanism that took part; in FIBRE's public source this is the time from the \
                 first data of the mechanism to the connection of the block", RACED,
                LATENCY.bounds)
                .by(&["mechanism"]).samples(by_both_mechanisms(&LATENCY, counts.udp_latency_ns, counts.compact_latency_ns)),
            histogram("fibre_race_margin_seconds", "Difference of the two times of fibre_block_race_latency_seconds, in \
                 races in which both mechanisms took part, by the mechanism with the shorter time; with FIBRE's public \
                 source, this is often not the winner, which fibre_block_race_wins_total counts", RACED,
                MARGIN.bounds)
                .by(&["winner"]).samples(by_both_mechanisms(&MARGIN, counts.udp_margin_ns, counts.compact_margin_ns)),
            counter("fibre_races_with_both_total", "Blocks for which both relay mechanisms (FIBRE/UDP and compact \
                 blocks) took part in the race", RACED).value(counts.races_with_both),
            histogram("fibre_block_missing_tx_count",
                "Transactions of a block reconstructed by FIBRE that were not in the node's mempool", DETAILED,
                MISSING_TXS.bounds).value(histogram_value(&MISSING_TXS, counts.missing_txs)),
            histogram("fibre_block_missing_tx_bytes", "Total size of the transactions of a block reconstructed by \
                 FIBRE that were not in the node's mempool", DETAILED,
                BYTES.bounds).value(histogram_value(&BYTES, counts.missing_bytes)),
            histogram("fibre_block_mempool_tx_count", "Transactions of a block reconstructed by FIBRE that were in \
                 the node's mempool", DETAILED,
                TXS.bounds).value(histogram_value(&TXS, counts.mempool_txs)),
            counter("fibre_block_all_tx_from_mempool_total", "Blocks reconstructed by FIBRE whose transactions were \
                 all in the node's mempool",
                DETAILED).value(counts.all_from_mempool),
            histogram("fibre_block_header_chunk_duration_seconds",
                "Duration of each stage in which FIBRE processes the header chunk of a block: queue, maps, chunks, finish",
                &["udp:block_header_chunk"], STAGE.bounds).by(&["stage"]).samples(stages),
        ]
    }

    fn log(&self) -> Option<fn(&[u8])> {
        Some(log)
    }

    fn block_events(&self, event: &[u8], queue: &mut Vec<BlockEvent>) {
        let Some(event) = maps::decode::<event>(event) else { return };
        let event_kind = match event.kind {
            kind::RECONSTRUCTED => {
                BlockEventKind::Fibre { height: (event.height_known != 0).then_some(event.height) }
            }
            kind::RACED => BlockEventKind::RaceFinished {
                height: event.height,
                udp_ns: Some(event.udp_ns).filter(|time| *time >= 0),
                compact_ns: Some(event.compact_ns).filter(|time| *time >= 0),
            },
            kind::WON => {
                BlockEventKind::RaceWon { height: event.height, mechanism: mechanism(event.mechanism) }
            }
            _ => return,
        };
        queue.push(BlockEvent { time_ns: event.time_ns, hash: raw_hash(&event.hash), kind: event_kind });
    }

    fn events_processed(&self, maps: &Maps) -> Vec<(&'static str, u64)> {
        let counts: counts = maps.sum("counts_map");
        vec![
            ("block_reconstructed", counts.reconstructed),
            ("block_send_start", counts.sent),
            ("block_race_winner", counts.won),
            ("block_race_time", counts.raced),
            ("block_reconstruction_detail", counts.detailed),
            ("block_header_chunk", counts.header_chunks),
        ]
    }
}

/// Number of blocks that a peer delivered first, by relay mechanism and peer, sorted. `unknown` has, by mechanism,
/// the number of these blocks whose peer did not fit into the BPF map.
fn deliveries(maps: &Maps, mut unknown: [u64; 4]) -> Vec<([String; 2], u64)> {
    let (mut present, removed) =
        maps.tallies("deliveries_map", MAX_DELIVERIES, |delivery: &delivery| delivery.mechanism);
    present.sort_by_key(|(delivery, _)| (delivery.mechanism, maps::text(&delivery.peer)));
    for (count, mechanism) in unknown.iter_mut().zip(0..) {
        *count += removed.get(&mechanism).copied().unwrap_or_default();
    }
    let named = present.iter().map(|(delivery, count)| {
        ([mechanism(delivery.mechanism).to_string(), maps::text(&delivery.peer)], *count)
    });
    let others = by_mechanism(&unknown).filter(|(_, deliveries)| *deliveries > 0);
    named.chain(others.map(|(mechanism, count)| ([mechanism.into(), "other".into()], count))).collect()
}

fn log(event: &[u8]) {
    let Some(event) = maps::decode::<event>(event) else { return };
    let (block_hash, peer) = (maps::hash(&raw_hash(&event.hash)), maps::text(&event.peer));
    let block_height = (event.height_known != 0).then_some(event.height);
    match event.kind {
        kind::RECONSTRUCTED => info!(
            block_height,
            block_hash,
            source = peer,
            chunks_used = event.chunks_used,
            chunks_received = event.chunks_received,
            peers = event.peers,
            duration_us = event.duration_us,
            "block reconstructed from FIBRE/UDP"
        ),
        kind::WON => {
            info!(block_height, block_hash, mechanism = mechanism(event.mechanism), peer, "block race won")
        }
        kind::RACED => info!(
            block_height,
            block_hash,
            udp_ns = event.udp_ns,
            udp_peer = peer,
            compact_ns = event.compact_ns,
            compact_peer = maps::text(&event.compact_peer),
            "block race"
        ),
        kind::DETAILED => info!(
            block_height,
            block_hash,
            transactions = event.transactions,
            from_mempool = event.from_mempool,
            missing = event.missing,
            missing_bytes = event.missing_bytes,
            "where a block's transactions came from"
        ),
        _ => {}
    }
}

/// The block hash that a FIBRE tracepoint passed, either as 64 hex digits and a NUL or as 32 raw bytes.
fn raw_hash(bytes: &[u8; 65]) -> RawBlockHash {
    let text = match bytes {
        [digits @ .., 0] if digits.iter().all(u8::is_ascii_hexdigit) => std::str::from_utf8(digits).ok(),
        _ => None,
    };
    let byte = |index: usize| u8::from_str_radix(text?.get(2 * (31 - index)..2 * (32 - index))?, 16).ok();
    let read: Option<Vec<u8>> = (0..32).map(byte).collect();
    let read = read.and_then(|read| RawBlockHash::try_from(read).ok());
    read.unwrap_or_else(|| *bytes.first_chunk().expect("65 are more than 32"))
}

fn histogram_value(buckets: &Buckets, counted: types::histogram) -> HistogramValue {
    buckets.to_histogram(counted.sum, counted.buckets)
}

fn by_both_mechanisms(
    buckets: &Buckets,
    udp: types::histogram,
    compact: types::histogram,
) -> [([&'static str; 1], HistogramValue); 2] {
    [([FIBRE_UDP], histogram_value(buckets, udp)), ([BIP152_CMPCT], histogram_value(buckets, compact))]
}

fn by_mechanism(counts: &[u64]) -> impl Iterator<Item = (&'static str, u64)> {
    maps::by_name(MECHANISMS.map(|(_, label)| label), counts).map(|(label, &count)| (label, count))
}

#[cfg(test)]
mod tests {
    use super::{maps, raw_hash};

    fn block_hash(bytes: &[u8; 65]) -> String {
        maps::hash(&raw_hash(bytes))
    }

    #[test]
    fn both_forms_of_a_hash_read_the_same() {
        let raw: [u8; 32] = std::array::from_fn(|index| 200 + index as u8);
        let written: String = raw.iter().rev().map(|byte| format!("{byte:02x}")).collect();
        let mut bytes = [0xff; 65];
        bytes[..32].copy_from_slice(&raw);
        assert_eq!(block_hash(&bytes), written);
        bytes[32..].fill(0);
        assert_eq!(block_hash(&bytes), written, "nothing could be read behind it");
        for digits in [written.clone(), written.to_uppercase()] {
            bytes[..64].copy_from_slice(digits.as_bytes());
            bytes[64] = 0;
            assert_eq!(block_hash(&bytes), written);
        }
        // Without a NUL after the 64th digit, the bytes are a raw hash, even if they are all hex digits.
        bytes[64] = b'0';
        let reversed: String = bytes[..32].iter().rev().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(block_hash(&bytes), reversed);
    }
}
