//! The UTXO cache trace.

use super::declare::Declare;
use super::families::EventCounter;

/// One kind of UTXO cache event: how many, and of what value.
pub struct Coins {
    /// Coins.
    pub count: EventCounter,
    /// Their value in satoshis.
    pub value: EventCounter,
}

impl Coins {
    fn all(&self) -> [&EventCounter; 2] {
        [&self.count, &self.value]
    }

    /// One coin of `value` satoshis. A negative value, which no coin has, counts as none.
    pub fn inc(&self, value: i64) {
        self.count.inc();
        self.value.inc_by(u64::try_from(value).unwrap_or(0));
    }
}

/// The UTXO cache trace, temporary caches included.
#[allow(missing_docs, reason = "each field's documentation is its metric's help text")]
pub struct UtxoCache {
    pub added: Coins,
    pub spent: Coins,
    pub uncached: Coins,
}

impl UtxoCache {
    pub(super) fn declare(d: &mut Declare) -> Self {
        let mut coins = |count, count_help, value, value_help, source| Coins {
            count: d.events(count, count_help, source),
            value: d.events(value, value_help, source),
        };
        UtxoCache {
            added: coins(
                "bitcoin_utxo_cache_add_total",
                "Coins added to a UTXO cache",
                "bitcoin_utxo_cache_add_value_total",
                "Value of the coins added to a UTXO cache, in satoshis",
                "UtxoCacheTrace.add",
            ),
            spent: coins(
                "bitcoin_utxo_cache_spend_total",
                "Coins spent from a UTXO cache",
                "bitcoin_utxo_cache_spend_value_total",
                "Value of the coins spent from a UTXO cache, in satoshis",
                "UtxoCacheTrace.spend",
            ),
            uncached: coins(
                "bitcoin_utxo_cache_uncache_total",
                "Coins dropped from a UTXO cache unspent",
                "bitcoin_utxo_cache_uncache_value_total",
                "Value of the coins dropped from a UTXO cache, in satoshis",
                "UtxoCacheTrace.uncache",
            ),
        }
    }

    fn all(&self) -> impl Iterator<Item = &EventCounter> {
        [&self.added, &self.spent, &self.uncached].into_iter().flat_map(Coins::all)
    }

    /// From here on the trace is seen.
    pub fn start(&self) {
        self.all().for_each(EventCounter::start);
    }

    /// The trace was given up.
    pub fn stop(&self) {
        self.all().for_each(EventCounter::stop);
    }
}
