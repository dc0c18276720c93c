//! The HTML page at `/` of bitcoind-usdt-exporter (`page.html`), and its data. The page loads `metrics` and
//! `status.json` from the exporter, and loads no resource from another host.
//!
//! The race for a block is FIBRE's comparison of the relay mechanisms FIBRE/UDP and compact blocks: FIBRE reports which
//! of them delivered the block first. The rank of a node is its position in the order in which the nodes that share a
//! block store (a database) connected a block.

use serde_json::{Value, json};

use super::MetricsReader;
use crate::block_store;
use crate::cli::VERSION;
use crate::metrics::now;
use crate::status;

/// The HTML page of recent blocks, as the response to a request for `/`.
pub fn html() -> String {
    status::page(include_str!("page.html"))
}

impl MetricsReader {
    /// The response to `/status.json`: the last connected blocks, the last races between FIBRE and compact blocks, and
    /// the ranks of this node for its last blocks, each newest first. `ready` is `Ok` if a node is traced, otherwise
    /// the reason why no node is traced.
    pub fn status(&self, node_name: &str, ready: &Result<(), String>) -> Value {
        let (blocks, races) = self.blocks.last();
        json!({
            "now": now(),
            "version": format!("bitcoind-usdt-exporter {VERSION}"),
            "state": {"ready": ready.is_ok(), "text": ready.as_ref().err()},
            "node": node_name,
            "blocks": blocks,
            "races": races,
            "ranks": block_store::ranks(),
        })
    }
}
