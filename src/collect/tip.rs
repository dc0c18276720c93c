//! The tip: a long poll on a thread of its own, always.
//!
//! It tells tip changes where there are no notifications, and it is the node's only word that it is shutting down.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::Notify;
use tracing::{debug, warn};

use super::session::{Session, Task};
use crate::ipc::{BlockRef, CallError, Hash, Interfaces, JsonRpc, Thread};
use crate::metrics::{Metrics, now};

/// One long poll. Short, so that the node's thread is never busy long after we left, and that we can leave between
/// two of them within the time that a service manager gives us.
const LONG_POLL: Duration = Duration::from_secs(1);

/// By how much a long poll may end too early before we make it up.
const TOLERATED: Duration = Duration::from_millis(100);

/// Why there is no more news of the tip.
#[derive(Debug)]
pub enum TipEnd {
    /// The node said so.
    NodeShutsDown,
    /// The connection is gone.
    Lost(CallError),
}

/// Follows the tip in a task of its own.
pub struct TipWatch(Task<TipEnd>);

impl TipWatch {
    /// `None` if the node does not offer Mining.
    pub fn start(session: &Session, metrics: &Arc<Metrics>, new_tip: Rc<Notify>) -> Option<Self> {
        session.interfaces.mining.as_ref()?;
        let follow = Follow {
            interfaces: session.interfaces.clone(),
            thread: session.waiting().patient(LONG_POLL),
            metrics: metrics.clone(),
            new_tip,
        };
        Some(TipWatch(Task(tokio::task::spawn_local(follow.run()))))
    }

    /// Resolves when there is no more news; never without a watch.
    pub async fn ended(watch: &mut Option<Self>) -> TipEnd {
        match watch {
            Some(TipWatch(task)) => match (&mut task.0).await {
                Ok(end) => end,
                Err(error) => TipEnd::Lost(CallError::Disconnected(error.to_string())),
            },
            None => std::future::pending().await,
        }
    }
}

struct Follow {
    interfaces: Rc<Interfaces>,
    thread: Thread,
    metrics: Arc<Metrics>,
    new_tip: Rc<Notify>,
}

impl Follow {
    async fn run(self) -> TipEnd {
        let Some(mining) = &self.interfaces.mining else { return std::future::pending().await };
        if self.interfaces.chain.is_none() {
            self.metrics.chain.tip_updates.start();
            if self.interfaces.json_rpc.is_some() {
                self.metrics.chain.blocks_connected.start();
                self.metrics.chain.blocks_disconnected.start();
            }
        }
        // Not a block: the first call returns the present tip at once.
        const NONE: Hash = Hash([0; 32]);
        let mut known = None::<BlockRef>;
        let mut failing = false;
        loop {
            let current = known.map_or(NONE, |tip| tip.hash);
            let asked = Instant::now();
            let answer = mining.wait_tip_changed(&self.thread, current, LONG_POLL).await;
            let failed_before = std::mem::replace(&mut failing, answer.is_err());
            match answer {
                Ok(None) => return TipEnd::NodeShutsDown,
                // The timeout has passed. Should a node not wait, we do.
                Ok(Some(tip)) if tip.hash == current => {
                    let early = LONG_POLL.saturating_sub(asked.elapsed());
                    tokio::time::sleep(early.saturating_sub(TOLERATED)).await;
                }
                Ok(Some(tip)) => {
                    let old = known.replace(tip);
                    // The first is the tip as we find it.
                    let seen = old.map(|_| now());
                    self.metrics.last_blocks.tip(tip.hash.to_string(), tip.height, seen);
                    self.new_tip.notify_one();
                    if let Some(old) = old {
                        debug!(block_height = tip.height, block_hash = %tip.hash, "new tip");
                        self.changed(old, tip).await;
                    }
                }
                Err(error @ CallError::Disconnected(_)) => return TipEnd::Lost(error),
                // A node that hangs is the polls' business; keep the long poll, it is our only warning.
                Err(error) => {
                    if !failed_before {
                        warn!("waiting for a new tip failed: {error}; trying again until it works");
                    }
                    tokio::time::sleep(LONG_POLL).await;
                }
            }
        }
    }

    /// Counts a change of the tip, where no notifications do.
    async fn changed(&self, old: BlockRef, new: BlockRef) {
        if self.interfaces.chain.is_some() {
            return;
        }
        let chain = &self.metrics.chain;
        chain.tip_updates.inc();
        let Some(json_rpc) = &self.interfaces.json_rpc else {
            return chain.block_height.set(Some(new.height));
        };
        match walk(json_rpc, &self.thread, old, new).await {
            Ok(Walk { disconnected, connected }) => {
                chain.blocks_disconnected.inc_by(disconnected);
                chain.blocks_connected.inc_by(connected);
                if connected > 0 {
                    chain.block_height.set(Some(new.height));
                }
            }
            Err(error) => {
                warn!("cannot tell how many blocks lie between {} and {}: {error}", old.hash, new.hash);
                self.metrics.exporter.poll_failures.inc_by(["getblockheader"], 1);
            }
        }
    }
}

/// The way from one tip to another.
#[derive(Debug, PartialEq)]
struct Walk {
    disconnected: u64,
    connected: u64,
}

/// Steps back from the old tip to the last block that the new one builds on. Headers never change, so the walk is
/// exact even while the chain moves on.
async fn walk(json_rpc: &JsonRpc, on: &Thread, old: BlockRef, new: BlockRef) -> Result<Walk, CallError> {
    let header = async |hash: &str| Header::read(json_rpc.call(on, "getblockheader", json!([hash])).await?);
    // The usual step, one block on top of another, needs one call.
    let new_hash = new.hash.to_string();
    let tip = header(&new_hash).await?;
    if tip.previous == old.hash.to_string() {
        return Ok(Walk { disconnected: 0, connected: 1 });
    }
    // The old chain back to the height of the new one and vice versa, then both together until they meet. Where the
    // new tip is far ahead, the node knows the ancestor: its active chain's block at that height.
    let (mut ours, mut our_height) = (old.hash.to_string(), old.height);
    let mut theirs = new_hash;
    let mut their_height = new.height;
    if their_height > our_height {
        theirs = ancestor(json_rpc, on, &theirs, their_height, our_height).await?;
        their_height = our_height;
    }
    while our_height > their_height {
        ours = header(&ours).await?.previous;
        our_height -= 1;
    }
    while ours != theirs {
        if our_height <= 0 {
            return Err(CallError::Malformed("two chains without a common block".into()));
        }
        ours = header(&ours).await?.previous;
        theirs = header(&theirs).await?.previous;
        our_height -= 1;
    }
    let distance = |from: i32| u64::try_from(from.saturating_sub(our_height)).unwrap_or(0);
    Ok(Walk { disconnected: distance(old.height), connected: distance(new.height) })
}

/// The ancestor of `hash` at `height`.
async fn ancestor(
    json_rpc: &JsonRpc,
    on: &Thread,
    hash: &str,
    from: i32,
    height: i32,
) -> Result<String, CallError> {
    /// Further back than this, asking the active chain by height is cheaper than walking.
    const WALK: i32 = 16;
    let mut hash = hash.to_string();
    if from - height > WALK {
        let by_height = json_rpc.call(on, "getblockhash", json!([height])).await?;
        let tip = Header::read(json_rpc.call(on, "getblockheader", json!([hash])).await?)?;
        // Still active after we asked by height: then what we got is its ancestor.
        if tip.active
            && let Some(ancestor) = by_height.as_str()
        {
            return Ok(ancestor.to_string());
        }
    }
    for _ in height..from {
        hash = Header::read(json_rpc.call(on, "getblockheader", json!([hash])).await?)?.previous;
    }
    Ok(hash)
}

struct Header {
    previous: String,
    active: bool,
}

impl Header {
    fn read(header: Value) -> Result<Self, CallError> {
        // The genesis block has no previous one.
        let previous = header["previousblockhash"].as_str().unwrap_or_default().to_string();
        match header["confirmations"].as_i64() {
            Some(confirmations) => Ok(Header { previous, active: confirmations >= 0 }),
            None => Err(CallError::Malformed("a header without confirmations".into())),
        }
    }
}
