//! The history that the status page shows: the plotted values of the last hour, and the last blocks that became the tip
//! of the node's active chain. The last blocks are shown only here and not exported as metrics, because one label value
//! per block would create an unlimited number of series.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};

use crate::metrics::{Metrics, now};
use crate::text;

/// Interval between two rows of the history.
pub const ROW_INTERVAL: Duration = Duration::from_secs(15);
/// Maximum number of rows in the history: the rows of one hour, at one row every 15 seconds.
const MAX_ROWS: usize = 240;

/// A column of the history, which is a curve on the status page: the name of a metric's sample, and a function that
/// reads the current value of this sample.
type Column = (&'static str, fn(&Metrics) -> Option<f64>);

const COLUMNS: [Column; 10] = [
    ("bitcoin_chain_height", |metrics| metrics.chain.height.get()),
    ("bitcoin_mempool_size", |metrics| metrics.mempool.size.get()),
    ("bitcoin_mempool_bytes", |metrics| metrics.mempool.usage.get()),
    ("bitcoin_fee_estimate_sat_per_vbyte{blocks=\"2\"}", |metrics| metrics.mempool.fee_estimate.get(["2"])),
    ("bitcoin_peers", |metrics| metrics.network.peers.get()),
    ("bitcoin_bytes_recv_total", |metrics| metrics.network.bytes_received.get()),
    ("bitcoin_bytes_sent_total", |metrics| metrics.network.bytes_sent.get()),
    ("bitcoin_mempool_depth_feerate_sat_per_vbyte{blocks=\"1\"}", |metrics| depth(metrics, "1")),
    ("bitcoin_mempool_depth_feerate_sat_per_vbyte{blocks=\"3\"}", |metrics| depth(metrics, "3")),
    ("bitcoin_mempool_depth_feerate_sat_per_vbyte{blocks=\"6\"}", |metrics| depth(metrics, "6")),
];

fn depth(metrics: &Metrics, blocks: &str) -> Option<f64> {
    metrics.mempool.depth_feerate.get([blocks])
}

/// The fee rate bands of the mempool that the status page draws. A band of the page combines up to four bands of the
/// metric `bitcoin_mempool_feerate_vbytes`, because more bands could not be distinguished on the page. For each band:
/// its lowest fee rate in sat/vB, and the `from` labels of the metric's bands that it combines.
const BANDS: [(&str, &[&str]); 8] = [
    ("0", &["0", "0.1", "0.2", "0.5"]),
    ("1", &["1"]),
    ("2", &["2", "3"]),
    ("5", &["5", "8"]),
    ("13", &["13", "21"]),
    ("34", &["34", "55"]),
    ("89", &["89", "144"]),
    ("233", &["233", "377", "610", "987"]),
];

/// Total virtual size of the mempool's transactions in the fee rate bands of the metric with these `from` labels, in
/// whole vbytes; `None` if the node has not reported the size.
fn vbytes(metrics: &Metrics, from: &[&str]) -> Option<f64> {
    let bands = from.iter().map(|from| metrics.mempool.band_vbytes.get([from]));
    bands.sum::<Option<f64>>().map(f64::round)
}

/// The values of the last hour that the status page plots, oldest row first. A row has the time in Unix seconds, the
/// values of the `COLUMNS` and the values of the `BANDS`. A value that the node has not reported is `None`.
#[derive(Default)]
pub struct History(Mutex<VecDeque<Vec<Option<f64>>>>);

impl History {
    /// Appends a row with the current values, and removes the oldest row if there are more than `MAX_ROWS`.
    pub fn keep(&self, metrics: &Metrics) {
        let columns = COLUMNS.iter().map(|(_, value)| value(metrics));
        let bands = BANDS.iter().map(|(_, from)| vbytes(metrics, from));
        let row = [Some(now())].into_iter().chain(columns).chain(bands).collect();
        let mut rows = self.0.lock().expect("nobody panics holding it");
        rows.push_back(row);
        if rows.len() > MAX_ROWS {
            rows.pop_front();
        }
    }

    /// Returns the history as `{"names": [name, …], "rows": [[Unix seconds, value or null, …], …]}`, oldest row first.
    /// The name of a band is `sat/vB from`, followed by its lowest fee rate.
    pub fn json(&self) -> Value {
        let columns = COLUMNS.iter().map(|(name, _)| name.to_string());
        let bands = BANDS.iter().map(|(from, _)| format!("sat/vB from {from}"));
        let rows = self.0.lock().expect("nobody panics holding it");
        json!({"names": columns.chain(bands).collect::<Vec<_>>(), "rows": *rows})
    }
}

/// Maximum number of blocks that are stored for the status page.
const MAX_BLOCKS: usize = 10;
/// Maximum stored length of a block hash, in bytes.
const MAX_HASH_BYTES: usize = 64;

/// A block that became the tip, with the values that the status page shows.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct TipBlock {
    /// Block hash as 64 hexadecimal digits, in the byte order of `bitcoin-cli`.
    pub hash: String,
    /// Height of the block.
    pub height: i32,
    /// Time at which the exporter saw the block become the tip, in Unix seconds; `None` for the block that was the tip
    /// when the exporter connected.
    pub seen: Option<f64>,
    /// Number of transactions, including the coinbase; `None` if the node has not reported it.
    pub transactions: Option<f64>,
    /// Total size of all transactions except the coinbase, in bytes; `None` if the node has not reported it.
    pub bytes: Option<f64>,
    /// Total fees of the transactions, in satoshis; `None` if the node has not reported them.
    pub fees: Option<f64>,
}

/// The last blocks that became the tip, newest first.
#[derive(Default)]
pub struct LastBlocks(Mutex<VecDeque<TipBlock>>);

impl LastBlocks {
    fn kept(&self) -> MutexGuard<'_, VecDeque<TipBlock>> {
        self.0.lock().expect("nobody panics holding it")
    }

    /// Records a new tip. The hash, which has 64 digits, is truncated to 64 bytes, because a faulty or malicious server
    /// could return a longer text.
    pub fn tip(&self, hash: String, height: i32, seen: Option<f64>) {
        let hash = text::bounded(hash, MAX_HASH_BYTES);
        let mut kept = self.kept();
        if kept.front().is_some_and(|tip| tip.hash == hash) {
            return; // the exporter reconnected, and the tip has not changed
        }
        kept.push_front(TipBlock { hash, height, seen, ..Default::default() });
        kept.truncate(MAX_BLOCKS);
    }

    /// Sets the number of transactions, the size and the fees of a recorded block.
    pub fn describe(&self, hash: &str, transactions: Option<f64>, bytes: Option<f64>, fees: Option<f64>) {
        if let Some(block) = self.kept().iter_mut().find(|block| block.hash == hash) {
            (block.transactions, block.bytes, block.fees) = (transactions, bytes, fees);
        }
    }

    /// All recorded blocks, newest first.
    pub fn all(&self) -> Vec<TipBlock> {
        self.kept().iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Format;

    #[test]
    fn history_keeps_an_hour_with_its_gaps() {
        let metrics = Metrics::new();
        let history = History::default();
        metrics.chain.height.set(Some(7));
        metrics.mempool.fee_estimate.replace([(["2"], 2.5), (["3"], 1.5)]);
        metrics.network.bytes_sent.set(Some(9));
        history.keep(&metrics);
        metrics.clear_node_values();
        history.keep(&metrics);
        let json = history.json();
        assert_eq!(json["names"][3], "bitcoin_fee_estimate_sat_per_vbyte{blocks=\"2\"}");
        let row = &json["rows"][0];
        assert_eq!(
            (&row[1], &row[2], &row[4], &row[7]),
            (&json!(7.0), &json!(null), &json!(2.5), &json!(9.0))
        );
        assert_eq!(json["rows"][1][1], json!(null));
        (0..1000).for_each(|_| history.keep(&metrics));
        assert_eq!(history.json()["rows"].as_array().unwrap().len(), MAX_ROWS);
    }

    #[test]
    fn feerate_bands_cover_the_mempool() {
        let metrics = Metrics::new();
        let history = History::default();
        history.keep(&metrics);
        let shown: Vec<_> = BANDS.iter().flat_map(|(_, from)| *from).copied().collect();
        metrics.mempool.band_vbytes.replace(shown.iter().map(|from| ([*from], 100.25)));
        history.keep(&metrics);
        let json = history.json();
        let bands = |row: usize| &json["rows"][row].as_array().unwrap()[1 + COLUMNS.len()..];
        assert_eq!(bands(0), vec![json!(null); BANDS.len()]);
        let expected = BANDS.iter().map(|(_, from)| json!((100.25 * from.len() as f64).round()));
        assert_eq!(bands(1), expected.collect::<Vec<_>>());
        assert_eq!(json["names"][1 + COLUMNS.len()], "sat/vB from 1");
        // The bands of the page together contain each band of the metric once, and each band of the page is named after
        // its lowest fee rate.
        assert_eq!(shown, crate::metrics::FEERATE_BANDS.map(|(from, _)| from));
        assert!(BANDS.iter().all(|(begins, from)| from[0] == *begins));
    }

    #[test]
    fn columns_have_the_names_of_their_samples() {
        let metrics = Metrics::new();
        metrics.chain.height.set(Some(1));
        metrics.mempool.size.set(Some(2));
        metrics.mempool.usage.set(Some(3));
        metrics.mempool.fee_estimate.replace([(["2"], 4.0)]);
        metrics.network.peers.set(Some(5));
        metrics.network.bytes_received.set(Some(6));
        metrics.network.bytes_sent.set(Some(7));
        metrics.mempool.depth_feerate.replace([(["1"], 8.0), (["3"], 9.0), (["6"], 10.0)]);
        let text = metrics.render(Format::Text);
        for (name, value) in COLUMNS {
            let line = format!("\n{name} {}\n", value(&metrics).unwrap());
            assert!(text.contains(&line), "{line} in {text}");
        }
    }
}
