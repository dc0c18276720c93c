//! The HTML page at `/` of bitcoind-usdt-exporter (`page.html`), and its data. The page loads `metrics` and
//! `status.json` from the exporter, and loads no resource from another host.

use std::sync::Arc;

use serde_json::{Value, json};

use super::blocks::BlockTracker;
use crate::block_store;
use crate::cli::VERSION;
use crate::metrics::now;
use crate::status;

/// The page of recent blocks, and of recent races between FIBRE and compact blocks: its HTML, and its data for
/// `status.json`.
pub struct BlockPage {
    blocks: Arc<BlockTracker>,
    node_name: String,
}

impl BlockPage {
    pub(super) fn new(blocks: Arc<BlockTracker>, node_name: String) -> Self {
        BlockPage { blocks, node_name }
    }

    /// The HTML page, as the response to a request for `/`.
    pub fn html(&self) -> String {
        status::page(include_str!("page.html"))
    }

    /// The response to `/status.json`: the last connected blocks and the last races between FIBRE and compact blocks,
    /// newest first. `ready` is `Ok` if a node is traced, otherwise the reason why no node is traced.
    pub fn json(&self, ready: &Result<(), String>) -> Value {
        let (blocks, races) = self.blocks.last();
        json!({
            "now": now(),
            "version": format!("bitcoind-usdt-exporter {VERSION}"),
            "state": {"ready": ready.is_ok(), "text": ready.as_ref().err()},
            "node": self.node_name,
            "blocks": blocks,
            "races": races,
            "ranks": block_store::ranks(),
        })
    }
}
