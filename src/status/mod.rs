//! The status page of bitcoind-ipc-exporter at `/`, and the data that it shows.
//!
//! - `page.html` is the page. The page's script loads `/metrics` and `/status.json`; the page loads nothing from other
//!   servers. The status pages of both exporters include `common.css` and `common.js`.
//! - `history` stores the plotted values of the last hour, `blocks` the last blocks that became the tip.

mod blocks;
mod history;

use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use crate::block_store;
use crate::cli::VERSION;
use crate::http::Pages;
use crate::metrics::{Format, Metrics, now, render};
use crate::{own_process, text};

pub use blocks::LastBlocks;
pub use history::History;

/// State of the connection to the node, which the status page and `/readyz` report.
#[derive(Clone, Debug, PartialEq)]
pub enum ConnectionState {
    /// The exporter is not connected to the node, for this reason.
    Disconnected(String),
    /// The exporter is connected, but no poll has succeeded yet or the last poll failed, for this reason.
    Connected(String),
    /// The exporter is connected, and the last poll succeeded.
    Polled {
        /// Names of the node's interfaces.
        interfaces: Vec<&'static str>,
        /// The node's user agent, for example `/Satoshi:31.99.0/`; `None` if the node does not report it.
        node: Option<String>,
    },
}

/// Inserts the style sheet and the script that both exporters share into the HTML of a page.
pub fn page(html: &str) -> String {
    html.replace("/* common.css */", include_str!("common.css"))
        .replace("/* common.js */", include_str!("common.js"))
}

/// The data of the IPC exporter's status page and health checks.
pub struct Status {
    metrics: Arc<Metrics>,
    state: Mutex<ConnectionState>,
    /// The last blocks that became the tip.
    pub last_blocks: LastBlocks,
    /// The plotted values of the last hour.
    pub history: History,
}

impl Status {
    /// Creates the data with the state of an exporter that has not connected to a node yet.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        std::sync::LazyLock::force(&own_process::STARTED);
        Status {
            metrics,
            state: Mutex::new(ConnectionState::Disconnected("connecting".into())),
            last_blocks: LastBlocks::default(),
            history: History::default(),
        }
    }

    /// Sets the state of the connection. Truncates the texts in the state, because they may come from the node.
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

    /// Appends a row to the history every 15 seconds, in a loop that never returns.
    pub async fn keep_history(&self) {
        loop {
            self.history.keep(&self.metrics);
            tokio::time::sleep(history::ROW_INTERVAL).await;
        }
    }
}

impl Pages for Status {
    fn metrics(&self, format: Format) -> String {
        let families = self.metrics.families().into_iter().chain(own_process::families());
        render(&families.collect::<Vec<_>>(), &[], format)
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

    fn status(&self) -> Value {
        let (ready, text, node) = match self.state() {
            ConnectionState::Polled { interfaces, node } => {
                let node = node.unwrap_or("unknown version".into());
                (true, String::new(), format!("{node} · {}", interfaces.join(", ")))
            }
            ConnectionState::Disconnected(why) | ConnectionState::Connected(why) => {
                (false, why, String::new())
            }
        };
        json!({
            "now": now(),
            "version": format!("bitcoind-ipc-exporter {VERSION}"),
            "state": {"ready": ready, "text": text},
            "node": node,
            "blocks": self.last_blocks.all(),
            "ranks": block_store::ranks(),
            "history": self.history.json(),
        })
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
        let json = status.status().to_string();
        assert!(json.len() < 10_000, "{} bytes", json.len());
        assert!(status.ready().err().unwrap_or_default().len() <= text::MESSAGE_BYTES);
    }
}
