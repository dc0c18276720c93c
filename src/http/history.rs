//! The last hour of some samples, for a page that plots them.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::Duration;

use serde_json::{Value, json};

use crate::metrics::now;

/// Between two rows.
pub const EVERY: Duration = Duration::from_secs(15);
/// An hour of them.
const ROWS: usize = 240;

/// Samples by name, over time. What was absent is absent here.
pub struct History {
    names: &'static [&'static str],
    rows: Mutex<VecDeque<(f64, Vec<Option<f64>>)>>,
}

impl History {
    /// Of the samples with these names, labels included.
    pub fn of(names: &'static [&'static str]) -> Self {
        History { names, rows: Mutex::default() }
    }

    /// Keeps what this text, as `/metrics` gives it, says now.
    pub fn keep(&self, metrics: &str) {
        let mut values = vec![None; self.names.len()];
        for (sample, value) in metrics.lines().filter_map(|line| line.rsplit_once(' ')) {
            if let Some(column) = self.names.iter().position(|name| *name == sample) {
                values[column] = value.parse().ok();
            }
        }
        let mut rows = self.rows.lock().expect("nobody panics holding it");
        rows.push_back((now(), values));
        let outdated = rows.len().saturating_sub(ROWS);
        rows.drain(..outdated);
    }

    /// `{"names": [name, …], "rows": [[Unix seconds, value or null, …], …]}`, oldest first.
    pub fn json(&self) -> Value {
        let rows = self.rows.lock().expect("nobody panics holding it");
        let rows: Vec<Value> = rows
            .iter()
            .map(|(at, values)| {
                let mut row = vec![json!(at)];
                row.extend(values.iter().map(|value| json!(value)));
                row.into()
            })
            .collect();
        json!({"names": self.names, "rows": rows})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_hour_is_kept_with_its_gaps() {
        let history = History::of(&["a", "b{c=\"d\"}"]);
        history.keep("# TYPE a gauge\na 1\nb{c=\"d\"} 2.5\nb{c=\"e\"} 7\n");
        history.keep("a 3\n");
        let json = history.json();
        assert_eq!(json["names"][1], "b{c=\"d\"}");
        assert_eq!((&json["rows"][0][1], &json["rows"][0][2]), (&json!(1.0), &json!(2.5)));
        assert_eq!((&json["rows"][1][1], &json["rows"][1][2]), (&json!(3.0), &json!(null)));
        (0..1000).for_each(|_| history.keep("a 4\n"));
        assert_eq!(history.json()["rows"].as_array().unwrap().len(), ROWS);
    }
}
