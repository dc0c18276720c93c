//! Checks whether JSON-RPC over HTTP can be used: a node must respond, and it must be the node to which the exporter is
//! connected over IPC.

use std::rc::Rc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::json::number;
use super::rate_limit::RateLimit;
use crate::ipc::{Chain, Interfaces, Mining, NodeThread};
use crate::json_rpc::CallError;
use crate::json_rpc::http::HttpRpc;

/// Interval between two checks whether HTTP requests still reach the same node as calls over IPC.
const RECHECK_INTERVAL: Duration = Duration::from_secs(60);

/// Verifier of JSON-RPC over HTTP for one connection: checks that a node responds over HTTP, and that it is the node at
/// the other end of the IPC connection.
pub struct HttpRpcVerifier {
    pub http: HttpRpc,
    mining: Option<Mining>,
    chain: Option<Chain>,
}

impl HttpRpcVerifier {
    /// Creates a verifier that compares the node's responses over HTTP with its responses through these IPC interfaces.
    /// The verifier's IPC calls run on `thread`, which must run no other calls.
    pub fn new(http: HttpRpc, interfaces: &Interfaces, thread: &NodeThread) -> Self {
        http.reset_node(false);
        let mining = interfaces.mining.as_ref().map(|mining| mining.on_thread(thread));
        let chain = interfaces.chain.as_ref().map(|chain| chain.on_thread(thread));
        HttpRpcVerifier { http, mining, chain }
    }

    /// Creates a verifier for a node without IPC. This verifier compares only the name of the node's chain (for example
    /// `main`) with the configured name.
    pub fn http_only(http: HttpRpc) -> Self {
        http.reset_node(true);
        HttpRpcVerifier { http, mining: None, chain: None }
    }

    /// Marks HTTP as usable if the expected node responds over HTTP. If no node or another node responds, marks HTTP as
    /// unusable, with the reason.
    pub async fn verify(&self) {
        match self.find_difference().await {
            Ok(None) => {
                self.http.mark_usable();
                self.http.check_privileges().await;
            }
            Ok(Some(difference)) => self.http.mark_different_node(format!(
                "{} is another node than {}: {difference}; set --rpc-url and --rpc-cookie-file, or --chain, for the right \
                 node",
                self.http.config().url,
                if self.mining.is_some() || self.chain.is_some() {
                    "the one behind the IPC socket"
                } else {
                    "the configured one"
                },
            )),
            Err(error) => self.http.on_call_failed(&error),
        }
    }

    /// Repeats the check [`verify`](Self::verify) periodically, and when HTTP becomes unusable. When HTTP becomes
    /// usable, notifies `usable`, which starts a poll of the node immediately.
    pub async fn keep_verifying(self, usable: Rc<Notify>) {
        // After failed checks, the time until the next check grows, because Bitcoin Core delays its response to a wrong
        // password and logs each wrong password.
        let mut limit = RateLimit::new(RECHECK_INTERVAL, 0);
        loop {
            let _ = tokio::time::timeout(RECHECK_INTERVAL, self.http.became_unusable()).await;
            let was_used = self.http.is_usable();
            if !was_used {
                limit.failed(Instant::now());
                sleep_until(limit.due()).await;
            }
            self.verify().await;
            if self.http.is_usable() {
                limit.succeeded(Instant::now(), Instant::now());
                if !was_used {
                    usable.notify_one();
                }
            }
        }
    }

    /// Compares the node behind the IPC socket with the node that responds over HTTP. Returns a description of the
    /// difference; `None` if no difference was found.
    async fn find_difference(&self) -> Result<Option<String>, CallError> {
        let info = self.http.query("getblockchaininfo", json!([])).await?;
        if let (Some(configured), Some(chain)) = (&self.http.config().chain, info["chain"].as_str())
            && configured != chain
        {
            return Ok(Some(format!("its chain is {chain:?}, not {configured:?}")));
        }
        if let Some(mining) = &self.mining
            && let Some(difference) = self.find_tip_difference(mining).await?
        {
            return Ok(Some(difference));
        }
        match &self.chain {
            Some(chain) => self.find_prune_difference(chain, &info).await,
            None => Ok(None),
        }
    }

    /// Compares the blocks that both interfaces return at the height of the IPC tip, the tip that the node returned
    /// over IPC. Returns a description of the difference if the node behind HTTP has another block at that height. If
    /// the blocks differ, the IPC tip is read again, because the tip may have changed during the call.
    async fn find_tip_difference(&self, mining: &Mining) -> Result<Option<String>, CallError> {
        /// Maximum number of comparisons of the two blocks. A comparison is repeated if the IPC tip changed during the
        /// comparison.
        const MAX_TIP_CHANGES: u32 = 5;
        for _ in 0..MAX_TIP_CHANGES {
            let Some(before) = mining.tip().await? else { return Ok(None) };
            let theirs = match self.http.query("getblockhash", json!([before.height])).await {
                Ok(hash) => hash.as_str().unwrap_or_default().to_string(),
                Err(CallError::JsonRpc { code: OUT_OF_RANGE, .. }) => "none".into(),
                Err(error) => return Err(error),
            };
            if theirs == before.hash.to_string() {
                return Ok(None);
            }
            if mining.tip().await? == Some(before) {
                return Ok(Some(format!(
                    "its block at height {} is {theirs:.64}, not {}",
                    before.height, before.hash
                )));
            }
        }
        Err(CallError::Http(
            "the tips of the two interfaces cannot be compared because they change too fast"
                .to_string()
                .into(),
        ))
    }

    /// Compares the prune heights that the node behind the IPC socket and the node behind HTTP return. Returns a
    /// description of the difference if the node behind HTTP has pruned more blocks than the node behind the IPC
    /// socket.
    async fn find_prune_difference(&self, chain: &Chain, info: &Value) -> Result<Option<String>, CallError> {
        let Some(theirs) = number(info, "pruneheight") else { return Ok(None) };
        // A higher prune height over IPC is no difference, because the call over IPC is made after the call over HTTP,
        // and the node may have pruned blocks between the two calls.
        let ours = chain.prune_height().await?.map_or(0.0, |last| f64::from(last) + 1.0);
        Ok((ours < theirs).then(|| format!("it is pruned to height {theirs}, not {ours}")))
    }
}

/// Core's error code `RPC_INVALID_PARAMETER`, which getblockhash returns if the height is above the tip.
const OUT_OF_RANGE: i64 = -8;
