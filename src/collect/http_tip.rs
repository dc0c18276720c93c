//! The tip of a node without IPC, by JSON-RPC over HTTP.

use std::time::Duration;

use serde_json::{Value, json};
use tracing::info;

use crate::http_rpc::HttpRpc;
use crate::ipc::{BlockRef, CallError, Hash, JsonRpc};

/// Waits for tips on a connection of its own.
pub struct HttpTip {
    json_rpc: JsonRpc,
    /// For how long.
    long_poll: Duration,
    /// The node lets us wait for a block.
    waits: bool,
}

impl HttpTip {
    /// Nothing is asked yet. A wait for a tip takes at most `long_poll`.
    pub fn new(http: &HttpRpc, long_poll: Duration) -> Self {
        let waiting = http.on_connection_of_its_own(long_poll);
        HttpTip { json_rpc: JsonRpc::over_http(waiting), long_poll, waits: true }
    }

    /// Waits for a new tip, at most as long as a long poll takes, and returns the tip, which need not be new. Without a known one
    /// it does not wait. A tip that comes between two calls is noticed at the end of the second.
    pub async fn next(&mut self, known: Option<BlockRef>) -> Result<BlockRef, CallError> {
        let Some(known) = known else {
            let info = self.json_rpc.call("getblockchaininfo", json!([])).await?;
            return block(&info["bestblockhash"], &info["blocks"]);
        };
        if self.waits {
            match self.json_rpc.call("waitfornewblock", json!([self.long_poll.as_millis()])).await {
                Err(error) if !error.is_warmup() && !matches!(error, CallError::Http(_)) => {
                    info!(
                        "the node does not let us wait for blocks ({error}): asking for its tip every second"
                    );
                    self.waits = false;
                }
                answer => {
                    let answer = answer?;
                    return block(&answer["hash"], &answer["height"]);
                }
            }
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        let hash = self.json_rpc.call("getbestblockhash", json!([])).await?;
        if hash.as_str().unwrap_or_default().parse::<Hash>()? == known.hash {
            return Ok(known);
        }
        let header = self.json_rpc.call("getblockheader", json!([hash])).await?;
        block(&hash, &header["height"])
    }
}

fn block(hash: &Value, height: &Value) -> Result<BlockRef, CallError> {
    let height = height.as_i64().and_then(|height| i32::try_from(height).ok());
    let height = height.ok_or_else(|| CallError::Malformed(format!("no height of block {hash:.70}")))?;
    Ok(BlockRef { hash: hash.as_str().unwrap_or_default().parse()?, height })
}
