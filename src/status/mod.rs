//! The status page of bitcoind-ipc-exporter, which the exporter serves over HTTP at `/`, and the data that the page
//! shows.
//!
//! - `page.html` is the page. The page's script loads `/metrics` and `/status.json`; the page loads nothing from other
//!   servers. The status pages of both exporters include `common.css` and `common.js`.
//! - `history` stores the values of the last hour that the page plots, and the last blocks that became the tip of the
//!   node's active chain.

mod history;

use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use crate::block_store;
use crate::cli::VERSION;
use crate::http::Pages;
use crate::metrics::{Format, Metrics, now, render};
use crate::{own_process, text};

pub use history::{History, LastBlocks};

/// Inserts the style sheet and the script that both exporters share into the HTML of a page.
pub fn page(html: &str) -> String {
    html.replace("/* common.css */", include_str!("common.css"))
        .replace("/* common.js */", include_str!("common.js"))
}

/// The data that the IPC exporter returns over HTTP on its status page and in responses to health checks: the state of
/// the connection to the node, and the recent history.
pub struct Status {
    metrics: Arc<Metrics>,
    /// The node's user agent and IPC interfaces if the last poll of the node succeeded, otherwise the reason why the
    /// exporter has no current values.
    node: Mutex<Result<String, String>>,
    /// The last blocks that became the tip.
    pub last_blocks: LastBlocks,
    /// The values of the last hour that the status page plots.
    pub history: History,
}

impl Status {
    /// Creates the data of an exporter that has not connected to a node yet.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        std::sync::LazyLock::force(&own_process::STARTED);
        Status {
            metrics,
            node: Mutex::new(Err("connecting".into())),
            last_blocks: LastBlocks::default(),
            history: History::default(),
        }
    }

    /// Records a successful poll of a node with these interfaces. `user_agent` is, for example, `/Satoshi:31.99.0/`;
    /// `None` if the node does not report it.
    pub fn set_polled(&self, user_agent: Option<String>, interfaces: &[&str]) {
        let user_agent = user_agent.map_or("unknown version".into(), text::label);
        self.set(Ok(format!("{user_agent} · {}", interfaces.join(", "))));
    }

    /// Records the reason why the exporter has no current values: it is not connected to a node, has not polled the
    /// node yet, or the last poll failed. Truncates the reason, because the text may come from the node and may have
    /// any length.
    pub fn set_not_ready(&self, why: String) {
        self.set(Err(text::message(why)));
    }

    fn set(&self, node: Result<String, String>) {
        *self.node.lock().expect("nobody panics holding it") = node;
    }

    fn node(&self) -> Result<String, String> {
        self.node.lock().expect("nobody panics holding it").clone()
    }

    /// Appends a row with the current values to the history every 15 seconds, in a loop that never returns.
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
        self.node().map(drop)
    }

    fn index(&self) -> String {
        page(include_str!("page.html"))
    }

    fn status(&self) -> Value {
        let node = self.node();
        json!({
            "now": now(),
            "version": format!("bitcoind-ipc-exporter {VERSION}"),
            "state": {"ready": node.is_ok(), "text": node.as_ref().err().map_or("", String::as_str)},
            "node": node.as_ref().map_or("", String::as_str),
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
    let set: [&dyn Fn(); 2] =
        [&|| status.set_not_ready(long()), &|| status.set_polled(Some(long()), &["Rpc"])];
    for set in set {
        set();
        let json = status.status().to_string();
        assert!(json.len() < 10_000, "{} bytes", json.len());
        assert!(status.ready().err().unwrap_or_default().len() <= text::MESSAGE_BYTES);
    }
}
