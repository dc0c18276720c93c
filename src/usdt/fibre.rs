//! FIBRE block relay: provider `udp`.

use anyhow::Result;
use libbpf_rs::MapHandle;
use tracing::info;

use super::blocks::{Event, Hash, What};
use super::histogram::{Buckets, TXS};
use super::maps::{self, Tallied, Tallies, skeleton};
use super::subject::{Loaded, Opened, Tracepoints, count, counts_by, families, one};
use crate::metrics::{Reading, Sample};
use bpf::types::{counts, delivery, event, histogram, kind};

skeleton!("fibre", counts: [counts], plain: [delivery, event]);

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
const BYTES: Buckets = Buckets::new(
    1.0,
    &[
        0.0,
        100.0,
        500.0,
        1000.0,
        5000.0,
        10_000.0,
        50_000.0,
        100_000.0,
        250_000.0,
        500_000.0,
        1_000_000.0,
        2_000_000.0,
        4_000_000.0,
    ],
);

const STAGE: Buckets = Buckets::new(
    1e6,
    &[0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 1.0],
);

const FIBRE_UDP: &str = "fibre_udp";
const BIP152_CMPCT: &str = "bip152_cmpct";

/// What FIBRE calls its mechanisms, and what the labels do; all else is `other`.
const MECHANISMS: [(&str, &str); 2] = [("FIBRE/UDP", FIBRE_UDP), ("BIP152/CMPCTBLOCK", BIP152_CMPCT)];

/// The label of a mechanism's number.
fn mechanism(number: u32) -> &'static str {
    MECHANISMS.get(number as usize).map_or("other", |(_, label)| label)
}

pub(super) struct Fibre {
    counts: MapHandle,
    deliveries: Tallies<delivery>,
}

/// Pairs of a mechanism and a peer that are shown at a time.
const DELIVERIES: usize = 256;

pub(super) struct Totals {
    counts: counts,
    /// Mechanism, peer, deliveries; sorted.
    deliveries: Vec<(u32, String, u64)>,
}

impl Tracepoints for Fibre {
    type Builder = bpf::FibreSkelBuilder;
    type Totals = Totals;

    families! { "udp", bpf::FibreProgs<'static>;
        Counter "fibre_blocks_reconstructed_total" [] "Blocks reconstructed from FIBRE/UDP chunks",
            [block_reconstructed], |t| count(t.counts.reconstructed);
        Counter "fibre_chunks_received_total" [] "FIBRE chunks received for reconstructed blocks",
            [block_reconstructed], |t| count(t.counts.chunks_received);
        Counter "fibre_chunks_used_total" [] "FIBRE chunks used to reconstruct blocks",
            [block_reconstructed], |t| count(t.counts.chunks_used);
        Histogram "fibre_block_reconstruction_duration_seconds" [] "Time that the reconstruction of a block took",
            [block_reconstructed], |t| one(show(&RECONSTRUCTION, t.counts.duration_us));
        Histogram "fibre_block_chunks_used" [] "Chunks used for one block",
            [block_reconstructed], |t| one(show(&CHUNKS, t.counts.chunks));
        Counter "fibre_blocks_sent_total" [] "Blocks that the node began to send over FIBRE",
            [block_send_start], |t| count(t.counts.sent);
        Counter "fibre_block_race_wins_total" ["mechanism"] "Blocks by the mechanism that delivered them first",
            [block_race_winner], |t| counts_by(by_mechanism(&t.counts.wins));
        Counter "fibre_block_deliveries_total" ["mechanism", "peer"]
            "Blocks by the mechanism and the peer that delivered them first; of more than 256 pairs, the least recent are added to the \
             peer `other`",
            [block_race_winner], |t| deliveries(t);
        Histogram "fibre_block_race_latency_seconds" ["mechanism"] "Time until a mechanism had the block, of those that took part",
            [block_race_time], |t| both(&LATENCY, t.counts.udp_latency_ns, t.counts.compact_latency_ns);
        Histogram "fibre_race_margin_seconds" ["winner"] "Time by which the winner was ahead, when both mechanisms took part",
            [block_race_time], |t| both(&MARGIN, t.counts.udp_margin_ns, t.counts.compact_margin_ns);
        Counter "fibre_races_with_both_total" [] "Races in which both mechanisms took part",
            [block_race_time], |t| count(t.counts.races_with_both);
        Histogram "fibre_block_missing_tx_count" [] "Transactions of a reconstructed block that were not in the mempool",
            [block_reconstruction_detail], |t| one(show(&MISSING_TXS, t.counts.missing_txs));
        Histogram "fibre_block_missing_tx_bytes" [] "Bytes of the transactions that were not in the mempool",
            [block_reconstruction_detail], |t| one(show(&BYTES, t.counts.missing_bytes));
        Histogram "fibre_block_mempool_tx_count" [] "Transactions of a reconstructed block that were in the mempool",
            [block_reconstruction_detail], |t| one(show(&TXS, t.counts.mempool_txs));
        Counter "fibre_block_all_tx_from_mempool_total" [] "Reconstructed blocks whose transactions were all in the mempool",
            [block_reconstruction_detail], |t| count(t.counts.all_from_mempool);
        Histogram "fibre_block_header_chunk_duration_seconds" ["stage"]
            "Time that the stages of reading a block's header chunk took: queue, maps, chunks, finish",
            [block_header_chunk], |t| stages(&t.counts);
    }

    fn configure(programs: &mut Opened<Self>) {
        if let Some(constants) = &mut programs.maps.rodata_data {
            constants.duration_us_bounds = RECONSTRUCTION.for_programs();
            constants.chunk_bounds = CHUNKS.for_programs();
            constants.latency_ns_bounds = LATENCY.for_programs();
            constants.margin_ns_bounds = MARGIN.for_programs();
            constants.tx_bounds = TXS.for_programs();
            constants.missing_tx_bounds = MISSING_TXS.for_programs();
            constants.byte_bounds = BYTES.for_programs();
            constants.stage_us_bounds = STAGE.for_programs();
        }
    }

    fn new(programs: &Loaded<Self>) -> Result<Self> {
        maps::number_names(&programs.maps.mechanisms_map, MECHANISMS.map(|(name, _)| name))?;
        Ok(Fibre {
            counts: MapHandle::try_from(&programs.maps.counts_map)?,
            deliveries: Tallies::new(
                MapHandle::try_from(&programs.maps.deliveries_map)?,
                DELIVERIES,
                |delivery: &delivery| delivery.mechanism,
            ),
        })
    }

    fn read(&self) -> Totals {
        let Tallied { present, removed } = self.deliveries.read();
        let deliveries =
            present.iter().map(|(delivery, count)| (delivery.mechanism, maps::text(&delivery.peer), *count));
        let mut deliveries: Vec<_> = deliveries.collect();
        deliveries.sort();
        let mut counts = self.counts();
        for (count, mechanism) in counts.other_peers.iter_mut().zip(0..) {
            *count += removed.get(&mechanism).copied().unwrap_or_default();
        }
        Totals { counts, deliveries }
    }

    const LOG: Option<fn(&[u8])> = Some(log);
    const OF_BLOCKS: fn(&[u8], &mut Vec<Event>) = |event, queue| {
        let Some(event) = maps::decode::<event>(event) else { return };
        let what = match event.kind {
            kind::RECONSTRUCTED => What::Fibre { height: (event.height_known != 0).then_some(event.height) },
            kind::RACED => What::Raced {
                height: event.height,
                udp_ns: Some(event.udp_ns).filter(|time| *time >= 0),
                compact_ns: Some(event.compact_ns).filter(|time| *time >= 0),
            },
            kind::WON => What::Won { height: event.height, mechanism: mechanism(event.mechanism) },
            _ => return,
        };
        queue.push(Event { time_ns: event.time_ns, hash: raw_hash(&event.hash), what });
    };

    fn events_processed(&self) -> Vec<(&'static str, u64)> {
        let counts = self.counts();
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

impl Fibre {
    fn counts(&self) -> counts {
        maps::sum(&self.counts).unwrap_or_default()
    }
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

/// The hash of a block from 64 hex digits and a NUL, or from 32 raw bytes.
fn raw_hash(bytes: &[u8; 65]) -> Hash {
    let text = match bytes {
        [digits @ .., 0] if digits.iter().all(u8::is_ascii_hexdigit) => std::str::from_utf8(digits).ok(),
        _ => None,
    };
    let byte = |index: usize| u8::from_str_radix(text?.get(2 * (31 - index)..2 * (32 - index))?, 16).ok();
    let read: Option<Vec<u8>> = (0..32).map(byte).collect();
    let read = read.and_then(|read| Hash::try_from(read).ok());
    read.unwrap_or_else(|| *bytes.first_chunk().expect("65 are more than 32"))
}

fn stages(counts: &counts) -> Vec<Sample> {
    let stages = [
        ("queue", counts.header_queue_us),
        ("maps", counts.header_maps_us),
        ("chunks", counts.header_chunks_us),
        ("finish", counts.header_finish_us),
    ];
    stages.map(|(stage, counted)| Sample(vec![stage.into()], show(&STAGE, counted))).into()
}

fn show(buckets: &Buckets, counted: histogram) -> Reading {
    buckets.reading(counted.sum, counted.buckets)
}

fn both(buckets: &Buckets, udp: histogram, compact: histogram) -> Vec<Sample> {
    [(FIBRE_UDP, udp), (BIP152_CMPCT, compact)]
        .map(|(mechanism, counted)| Sample(vec![mechanism.into()], show(buckets, counted)))
        .into()
}

fn by_mechanism(counts: &[u64]) -> impl Iterator<Item = (&'static str, u64)> {
    maps::by_name(MECHANISMS.map(|(_, label)| label), counts).map(|(label, &count)| (label, count))
}

fn deliveries(totals: &Totals) -> Vec<Sample> {
    let named = totals.deliveries.iter().map(|(number, peer, deliveries)| {
        Sample(vec![mechanism(*number).into(), peer.clone()], Reading::Count(*deliveries))
    });
    let others = by_mechanism(&totals.counts.other_peers).filter(|(_, deliveries)| *deliveries > 0);
    let others = others
        .map(|(mechanism, count)| Sample(vec![mechanism.into(), "other".into()], Reading::Count(count)));
    named.chain(others).collect()
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
        // Raw bytes that happen to be digits: the text would have to end behind the 64th.
        bytes[64] = b'0';
        let reversed: String = bytes[..32].iter().rev().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(block_hash(&bytes), reversed);
    }
}
