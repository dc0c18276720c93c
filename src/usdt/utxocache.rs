//! The UTXO cache: provider `utxocache`.

use anyhow::Result;
use libbpf_rs::MapHandle;
use tracing::info;

use super::blocks::{Event, Hash, What};
use super::histogram::Buckets;
use super::maps::{self, skeleton};
use super::subject::{Loaded, Opened, Tracepoints, count, families, gauge, one};

skeleton!("utxocache", counts: [counts], plain: [event, last_flush]);

const FLUSH: Buckets =
    Buckets::new(1e6, &[0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0]);

pub(super) struct Utxocache {
    counts: MapHandle,
    last_flush: MapHandle,
}

pub(super) struct Totals {
    counts: bpf::types::counts,
    last: bpf::types::last_flush,
}

impl Tracepoints for Utxocache {
    type Builder = bpf::UtxocacheSkelBuilder;
    type Totals = Totals;

    families! { "utxocache", bpf::UtxocacheProgs<'static>;
        Counter "bitcoin_utxo_cache_add_total" [] "Coins added to a UTXO cache; temporary ones count, too: of a block template, of a check of the database",
            [add], |t| count(t.counts.added.number);
        Counter "bitcoin_utxo_cache_add_value_total" [] "Value of the coins added to a UTXO cache, in satoshis",
            [add], |t| count(t.counts.added.value);
        Counter "bitcoin_utxo_cache_spend_total" [] "Coins spent from a UTXO cache; temporary ones count, too",
            [spent], |t| count(t.counts.spent.number);
        Counter "bitcoin_utxo_cache_spend_value_total" [] "Value of the coins spent from a UTXO cache, in satoshis",
            [spent], |t| count(t.counts.spent.value);
        Counter "bitcoin_utxo_cache_uncache_total" [] "Coins dropped from a UTXO cache unspent",
            [uncache], |t| count(t.counts.uncached.number);
        Counter "bitcoin_utxo_cache_uncache_value_total" [] "Value of the coins dropped from a UTXO cache, in satoshis",
            [uncache], |t| count(t.counts.uncached.value);
        Histogram "bitcoin_utxo_cache_flush_duration_seconds" [] "Time that writing the UTXO cache to disk took, by the wall clock of the node; negative ones are omitted",
            [flush], |t| one(FLUSH.reading(t.counts.flush_us.sum, t.counts.flush_us.buckets));
        Gauge "bitcoin_utxo_cache_flush_coins" [] "Coins in the UTXO cache at its last flush",
            [flush], |t| gauge(t.last.coins.known, t.last.coins.value);
        Gauge "bitcoin_utxo_cache_flush_bytes" [] "Memory of the UTXO cache at its last flush",
            [flush], |t| gauge(t.last.bytes.known, t.last.bytes.value);
    }

    fn configure(programs: &mut Opened<Self>) {
        if let Some(constants) = &mut programs.maps.rodata_data {
            constants.flush_us_bounds = FLUSH.for_programs();
        }
    }

    fn new(programs: &Loaded<Self>) -> Result<Self> {
        Ok(Utxocache {
            counts: MapHandle::try_from(&programs.maps.counts_map)?,
            last_flush: MapHandle::try_from(&programs.maps.last_flush_map)?,
        })
    }

    fn read(&self) -> Totals {
        Totals {
            counts: maps::sum(&self.counts).unwrap_or_default(),
            last: maps::single_value(&self.last_flush).unwrap_or_default(),
        }
    }

    const LOG: Option<fn(&[u8])> = Some(log);
    const OF_BLOCKS: fn(&[u8], &mut Vec<Event>) = |event, queue| {
        let event = maps::decode::<bpf::types::event>(event);
        queue.extend(event.map(|event| {
            let duration_ns = (event.duration_us.max(0) as u64).saturating_mul(1000);
            Event { time_ns: event.time_ns, hash: Hash::default(), what: What::Flushed { duration_ns } }
        }));
    };
}

fn log(event: &[u8]) {
    let Some(event) = maps::decode::<bpf::types::event>(event) else { return };
    info!(
        duration_us = event.duration_us,
        mode = event.mode,
        coins = event.coins,
        bytes = event.bytes,
        "UTXO cache flushed"
    );
}
