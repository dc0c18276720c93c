//! The page at `/` of bitcoind-usdt-exporter: `page.html`, and what it reads. It reads `metrics` and `status.json`, and nothing
//! from elsewhere.

use std::sync::Arc;

use serde_json::{Value, json};

use super::blocks::BlockTracker;
use crate::cli::VERSION;
use crate::metrics::now;
use crate::status;

/// The data of the page.
pub struct BlockPage {
    blocks: Arc<BlockTracker>,
    node_name: String,
}

impl BlockPage {
    pub(super) fn new(blocks: Arc<BlockTracker>, node_name: String) -> Self {
        BlockPage { blocks, node_name }
    }

    /// `/`
    pub fn html(&self) -> String {
        status::page(include_str!("page.html"))
    }

    /// `/status.json`: the last blocks and races, newest first. `ready`: whether a node is traced, or why not.
    pub fn json(&self, ready: &Result<(), String>) -> Value {
        let (blocks, races) = self.blocks.last();
        json!({
            "now": now(),
            "version": format!("bitcoind-usdt-exporter {VERSION}"),
            "state": {"ready": ready.is_ok(), "text": ready.as_ref().err()},
            "node": self.node_name,
            "blocks": blocks,
            "races": races,
        })
    }
}
