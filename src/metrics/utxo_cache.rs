//! Metrics from the UTXO cache trace, with which a node that has the IPC interface Tracing reports each change of its
//! caches of coins.

use super::model::counter;
use super::pushed::{Counter, area};

const ADD: &[&str] = &["UtxoCacheTrace.add"];
const SPEND: &[&str] = &["UtxoCacheTrace.spend"];
const UNCACHE: &[&str] = &["UtxoCacheTrace.uncache"];

area! {
    /// Counters from the UTXO cache trace. The trace reports the coins of all UTXO caches of the node, including
    /// temporary caches, for example the cache for a block template.
    pub struct UtxoCacheMetrics {
        added: Counter = counter("bitcoin_utxo_cache_add_total", "Coins added to a UTXO cache", ADD);
        added_value: Counter = counter("bitcoin_utxo_cache_add_value_total",
            "Value of the coins added to a UTXO cache, in satoshis", ADD);
        spent: Counter = counter("bitcoin_utxo_cache_spend_total", "Coins spent from a UTXO cache", SPEND);
        spent_value: Counter = counter("bitcoin_utxo_cache_spend_value_total",
            "Value of the coins spent from a UTXO cache, in satoshis", SPEND);
        uncached: Counter = counter("bitcoin_utxo_cache_uncache_total", "Unspent coins dropped from a UTXO cache", UNCACHE);
        uncached_value: Counter = counter("bitcoin_utxo_cache_uncache_value_total",
            "Value of the unspent coins dropped from a UTXO cache, in satoshis", UNCACHE);
    }
}

impl UtxoCacheMetrics {
    fn all(&self) -> [&Counter; 6] {
        [&self.added, &self.added_value, &self.spent, &self.spent_value, &self.uncached, &self.uncached_value]
    }

    /// Starts to export these counters, at 0 if they have no value yet. Called before the exporter subscribes to the
    /// trace.
    pub fn start(&self) {
        self.all().into_iter().for_each(Counter::start);
    }

    /// Removes these counters. Called when the exporter's subscription to the trace has failed or is being ended.
    pub fn stop(&self) {
        self.all().into_iter().for_each(Counter::stop);
    }
}
