//! Tracepoints of the UTXO cache, provider `utxocache`.

use tracing::info;

use super::blocks::{BlockEvent, BlockEventKind, RawBlockHash};
use super::bpf::utxocache::types;
use super::group::GroupPrograms;
use super::histogram::Buckets;
use super::maps::{self, Maps, Pod};
use crate::metrics::{Family, counter, gauge, histogram};

// SAFETY: the struct consists of u64 only; see utxocache.bpf.c.
unsafe impl Pod for types::counts {}
// SAFETY: the struct consists of integers only; see utxocache.bpf.c.
unsafe impl Pod for types::event {}
// SAFETY: the struct consists of integers only; see utxocache.bpf.c.
unsafe impl Pod for types::last_flush {}
// SAFETY: the struct consists of integers only; see utxocache.bpf.c.
unsafe impl Pod for types::rodata {}

const FLUSH_US: Buckets =
    Buckets::new(1e6, &[0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0]);

const ADD: &[&str] = &["utxocache:add"];
const SPENT: &[&str] = &["utxocache:spent"];
const UNCACHE: &[&str] = &["utxocache:uncache"];
const FLUSH: &[&str] = &["utxocache:flush"];

/// The exporter's code for the tracepoint group `utxocache`: coins that the node adds to the UTXO cache, spends, or
/// drops from it, and flushes of the cache to disk.
pub(super) struct UtxocacheGroup;

impl GroupPrograms for UtxocacheGroup {
    fn set_constants(&self, rodata: &mut [u8]) {
        maps::modify(rodata, |constants: &mut types::rodata| {
            constants.flush_us_bounds = FLUSH_US.for_programs();
        });
    }

    #[rustfmt::skip]
    fn families(&self, maps: &Maps) -> Vec<Family> {
        let types::counts { added, spent, uncached, flush_us } = maps.sum("counts_map");
        let types::last_flush { coins, bytes } = maps.single_value("last_flush_map");
        let if_known = |gauge: types::gauge| (gauge.known != 0).then_some(gauge.value as f64);
        vec![
            counter("bitcoin_utxo_cache_add_total",
                "Coins added to a UTXO cache, including temporary caches (for a block template or a check of the database)", ADD)
                .value(added.number),
            counter("bitcoin_utxo_cache_add_value_total", "Value of the coins added to a UTXO cache, in satoshis", ADD)
                .value(added.value),
            counter("bitcoin_utxo_cache_spend_total", "Coins spent from a UTXO cache, including temporary caches", SPENT)
                .value(spent.number),
            counter("bitcoin_utxo_cache_spend_value_total", "Value of the coins spent from a UTXO cache, in satoshis", SPENT)
                .value(spent.value),
            counter("bitcoin_utxo_cache_uncache_total", "Unspent coins dropped from a UTXO cache", UNCACHE).value(uncached.number),
            counter("bitcoin_utxo_cache_uncache_value_total", "Value of the unspent coins dropped from a UTXO cache, in satoshis", UNCACHE)
                .value(uncached.value),
            histogram("bitcoin_utxo_cache_flush_duration_seconds",
                "Time to write the UTXO cache to disk, measured with the wall clock of the node's machine; negative \
                 values are omitted", FLUSH,
                FLUSH_US.bounds).value(FLUSH_US.to_histogram(flush_us.sum, flush_us.buckets)),
            gauge("bitcoin_utxo_cache_flush_coins", "Coins in the UTXO cache at its last flush", FLUSH).value_if_known(if_known(coins)),
            gauge("bitcoin_utxo_cache_flush_bytes", "Memory used by the UTXO cache at its last flush", FLUSH)
                .value_if_known(if_known(bytes)),
        ]
    }

    fn log(&self) -> Option<fn(&[u8])> {
        Some(log)
    }

    fn block_events(&self, event: &[u8], queue: &mut Vec<BlockEvent>) {
        let Some(event) = maps::decode::<types::event>(event) else { return };
        let duration_ns = (event.duration_us.max(0) as u64).saturating_mul(1000);
        let kind = BlockEventKind::Flushed { duration_ns };
        queue.push(BlockEvent { time_ns: event.time_ns, hash: RawBlockHash::default(), kind });
    }
}

fn log(event: &[u8]) {
    let Some(event) = maps::decode::<types::event>(event) else { return };
    info!(
        duration_us = event.duration_us,
        mode = event.mode,
        coins = event.coins,
        bytes = event.bytes,
        "UTXO cache flushed"
    );
}
