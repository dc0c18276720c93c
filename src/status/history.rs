//! The last hour of what the page plots.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::Duration;

use serde_json::{Value, json};

use crate::metrics::{Metrics, now};

/// Between two rows.
pub const INTERVAL: Duration = Duration::from_secs(15);
/// An hour of them.
const MAX_ROWS: usize = 240;

/// A line of the page's plots: the sample's name, as the page knows it, and its present value.
type Column = (&'static str, fn(&Metrics) -> Option<f64>);

const COLUMNS: [Column; 7] = [
    ("bitcoin_chain_height", |metrics| metrics.chain.height.get()),
    ("bitcoin_mempool_size", |metrics| metrics.mempool.size.get()),
    ("bitcoin_mempool_bytes", |metrics| metrics.mempool.usage.get()),
    ("bitcoin_fee_estimate_sat_per_vbyte{blocks=\"1\"}", |metrics| metrics.mempool.fee_estimate.get(["1"])),
    ("bitcoin_peers", |metrics| metrics.network.peers.get()),
    ("bitcoin_bytes_recv_total", |metrics| metrics.network.bytes_received.get()),
    ("bitcoin_bytes_sent_total", |metrics| metrics.network.bytes_sent.get()),
];

/// Values over time. What was absent is absent here.
#[derive(Default)]
pub struct History(Mutex<VecDeque<(f64, [Option<f64>; COLUMNS.len()])>>);

impl History {
    /// Adds a row of the present values.
    pub fn keep(&self, metrics: &Metrics) {
        let values = COLUMNS.map(|(_, value)| value(metrics));
        let mut rows = self.0.lock().expect("nobody panics holding it");
        rows.push_back((now(), values));
        let outdated = rows.len().saturating_sub(MAX_ROWS);
        rows.drain(..outdated);
    }

    /// `{"names": [name, …], "rows": [[Unix seconds, value or null, …], …]}`, oldest first.
    pub fn json(&self) -> Value {
        let rows = self.0.lock().expect("nobody panics holding it");
        let rows: Vec<Value> = rows
            .iter()
            .map(|(at, values)| {
                let values = values.iter().map(|value| json!(value));
                std::iter::once(json!(at)).chain(values).collect()
            })
            .collect();
        json!({"names": COLUMNS.map(|(name, _)| name), "rows": rows})
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Format;

    #[test]
    fn an_hour_is_kept_with_its_gaps() {
        let metrics = Metrics::new();
        let history = History::default();
        metrics.chain.height.set(Some(7));
        metrics.mempool.fee_estimate.replace([(["1"], 2.5), (["3"], 1.5)]);
        metrics.network.bytes_sent.set(Some(9));
        history.keep(&metrics);
        metrics.node_is_away();
        history.keep(&metrics);
        let json = history.json();
        assert_eq!(json["names"][3], "bitcoin_fee_estimate_sat_per_vbyte{blocks=\"1\"}");
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
    fn columns_have_the_names_of_their_samples() {
        let metrics = Metrics::new();
        metrics.chain.height.set(Some(1));
        metrics.mempool.size.set(Some(2));
        metrics.mempool.usage.set(Some(3));
        metrics.mempool.fee_estimate.replace([(["1"], 4.0)]);
        metrics.network.peers.set(Some(5));
        metrics.network.bytes_received.set(Some(6));
        metrics.network.bytes_sent.set(Some(7));
        let text = metrics.render(Format::Text);
        for (name, value) in COLUMNS {
            let line = format!("\n{name} {}\n", value(&metrics).unwrap());
            assert!(text.contains(&line), "{line} in {text}");
        }
    }
}
