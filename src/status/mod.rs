//! The status page at `/` of bitcoind-ipc-exporter, and its data.
//!
//! - `page.html` is the page. It loads `metrics` and `status.json`, and nothing from other servers. It shares `common.css` and `common.js`
//!   with the page of bitcoind-usdt-exporter.
//! - `history` has the last hour of the plotted values, `blocks` the last blocks.

mod blocks;
mod history;

use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use crate::block_store;
use crate::cli::VERSION;
use crate::http::Pages;
use crate::metrics::{Format, Metrics, now};
use crate::text;

pub use blocks::LastBlocks;
pub use history::History;

/// State of the connection to the node, as the status page and `/readyz` report it.
#[derive(Clone, Debug, PartialEq)]
pub enum ConnectionState {
    /// Not connected, with the reason.
    Disconnected(String),
    /// Connected, but the first poll has not succeeded yet or the last one failed, with the reason.
    Connected(String),
    /// Connected, and the last poll succeeded.
    Polled {
        /// Names of the node's interfaces.
        interfaces: Vec<&'static str>,
        /// The node's user agent, for example `/Satoshi:31.99.0/`, if it reports one.
        node: Option<String>,
    },
}

/// Inserts the style sheet and script that both exporters share into a page.
pub fn page(html: &str) -> String {
    html.replace("/* common.css */", include_str!("common.css"))
        .replace("/* common.js */", include_str!("common.js"))
}

/// The data of the IPC exporter's status page and health checks.
pub struct Status {
    metrics: Arc<Metrics>,
    state: Mutex<ConnectionState>,
    /// The last blocks.
    pub last_blocks: LastBlocks,
    /// The last hour of the plotted values.
    pub history: History,
}

impl Status {
    /// Initial status: not connected yet.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Status {
            metrics,
            state: Mutex::new(ConnectionState::Disconnected("connecting".into())),
            last_blocks: LastBlocks::default(),
            history: History::default(),
        }
    }

    /// Sets the state of the connection. Texts in it may come from the node, so they are truncated to a limit.
    pub fn set(&self, state: ConnectionState) {
        let state = match state {
            ConnectionState::Disconnected(why) => ConnectionState::Disconnected(text::message(why)),
            ConnectionState::Connected(why) => ConnectionState::Connected(text::message(why)),
            ConnectionState::Polled { interfaces, node } => {
                ConnectionState::Polled { interfaces, node: node.map(text::label) }
            }
        };
        *self.state.lock().expect("nobody panics holding it") = state;
    }

    fn state(&self) -> ConnectionState {
        self.state.lock().expect("nobody panics holding it").clone()
    }

    /// Records the history in a loop that never returns.
    pub async fn keep_history(&self) {
        loop {
            self.history.keep(&self.metrics);
            tokio::time::sleep(history::ROW_INTERVAL).await;
        }
    }
}

impl Pages for Status {
    fn metrics(&self, format: Format) -> String {
        self.metrics.render(format)
    }

    fn ready(&self) -> Result<(), String> {
        match self.state() {
            ConnectionState::Polled { .. } => Ok(()),
            ConnectionState::Disconnected(why) | ConnectionState::Connected(why) => Err(why),
        }
    }

    fn index(&self) -> String {
        page(include_str!("page.html"))
    }

    fn status(&self) -> Option<Value> {
        let (ready, text, node) = match self.state() {
            ConnectionState::Polled { interfaces, node } => {
                let node = node.unwrap_or("unknown version".into());
                (true, String::new(), format!("{node} · {}", interfaces.join(", ")))
            }
            ConnectionState::Disconnected(why) | ConnectionState::Connected(why) => {
                (false, why, String::new())
            }
        };
        Some(json!({
            "now": now(),
            "version": format!("bitcoind-ipc-exporter {VERSION}"),
            "state": {"ready": ready, "text": text},
            "node": node,
            "blocks": self.last_blocks.all(),
            "ranks": block_store::ranks(),
            "history": self.history.json(),
        }))
    }
}

#[cfg(test)]
#[test]
fn pages_stay_small_whatever_the_node_sends() {
    let status = Status::new(Metrics::new());
    let long = || "<b>\n".repeat(1 << 20);
    for _ in 0..100 {
        status.last_blocks.tip(long(), 1, None);
    }
    for state in [
        ConnectionState::Disconnected(long()),
        ConnectionState::Connected(long()),
        ConnectionState::Polled { interfaces: vec!["Rpc"], node: Some(long()) },
    ] {
        status.set(state);
        let json = status.status().unwrap().to_string();
        assert!(json.len() < 10_000, "{} bytes", json.len());
        assert!(status.ready().err().unwrap_or_default().len() <= text::MESSAGE_BYTES);
    }
}
