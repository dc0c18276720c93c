//! The tip: a long poll on a thread of its own, always.
//!
//! It reports tip changes where there are no notifications, and over IPC it is the only call that reports the node's shutdown.
//! Over HTTP the tip is read twice a second instead.

use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};
use tokio::sync::{Notify, oneshot};
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, warn};

use super::block_counting::{CountingAction, CountingConditions, HeaderAccess, ReconnectState, next_action};
use super::chain_diff::{ChainDiff, diff_tips, is_final, is_known};
use super::context::{Context, NewTip};
use super::node_start::UptimeReading;
use crate::ipc::{BlockHash, BlockRef, Interfaces, Mining, NodeThread};
use crate::json_rpc::{CallError, JsonRpc, Method};
use crate::metrics::now;

/// One long poll. Short: the node's thread is never busy long after the exporter has disconnected, and the exporter can disconnect
/// between two of them within the stop timeout of a service manager.
pub(super) const LONG_POLL: Duration = Duration::from_secs(1);

/// Between two reads of the tip over HTTP. A read costs the node about 0.1 ms, most of it for HTTP.
const HTTP_INTERVAL: Duration = Duration::from_millis(500);

/// The hash of no block: a long poll with it returns the present tip at once.
pub(super) const NO_BLOCK: BlockHash = BlockHash([0; 32]);

/// By how much a long poll may end too early before the rest is slept.
const EARLY_TOLERANCE: Duration = Duration::from_millis(100);

/// Between the starts of two long polls: a node that reorganizes or catches up has thousands in a second, and each
/// answer costs it time. Those between are counted by their headers.
const MIN_INTERVAL: Duration = Duration::from_millis(50);

/// Failed attempts to count blocks, a second apart, until the subscription to notifications is not delayed any longer.
const MAX_FAILURES_BEFORE_NOTIFICATIONS: u32 = 30;

/// Why the watch has ended.
#[derive(Debug)]
pub enum TipEnd {
    /// The node announced its shutdown.
    NodeShutsDown,
    /// The connection is gone.
    Lost(CallError),
}

/// Follows the tip in a task of its own.
pub struct TipWatch {
    task: AbortOnDropHandle<TipEnd>,
    /// Ends when the first tip was taken into account, or could not be had.
    caught_up: Option<oneshot::Receiver<()>>,
}

impl TipWatch {
    /// On a thread of the node, or without IPC. `None` if the node offers neither Mining nor JSON-RPC over HTTP alone.
    pub fn start(
        interfaces: &Rc<Interfaces>,
        thread: Option<&NodeThread>,
        context: &Rc<Context>,
        new_tip: Rc<Notify>,
    ) -> Option<Self> {
        let Some(thread) = thread else {
            let json_rpc = interfaces.json_rpc()?;
            let source = TipSource::Http(json_rpc.clone());
            return Some(Self::follow(source, Some(json_rpc), interfaces, context, new_tip));
        };
        let thread = thread.with_extra_timeout(LONG_POLL);
        let source = TipSource::Mining(interfaces.mining.as_ref()?.on_thread(&thread));
        Some(Self::follow(source, interfaces.json_rpc_on(&thread), interfaces, context, new_tip))
    }

    fn follow(
        source: TipSource,
        json_rpc: Option<JsonRpc>,
        interfaces: &Rc<Interfaces>,
        context: &Rc<Context>,
        new_tip: Rc<Notify>,
    ) -> Self {
        let follower = TipFollower {
            interfaces: interfaces.clone(),
            source,
            json_rpc,
            context: context.clone(),
            new_tip,
            reconnected: ReconnectState::FirstTip,
            pending: false,
            failures: 0,
            counting: false,
            restarts: context.persistent_state.borrow().node_start.restarts(),
        };
        let (first_done, caught_up) = oneshot::channel();
        let task = AbortOnDropHandle::new(tokio::task::spawn_local(follower.run(first_done)));
        TipWatch { task, caught_up: Some(caught_up) }
    }

    /// Ends, once, when the blocks that came while there was no connection are counted: from then on notifications may count.
    pub fn caught_up(&mut self) -> Option<oneshot::Receiver<()>> {
        self.caught_up.take()
    }

    /// Resolves when the watch has ended; never without a watch.
    pub async fn ended(watch: &mut Option<Self>) -> TipEnd {
        match watch {
            Some(TipWatch { task, .. }) => match task.await {
                Ok(end) => end,
                Err(error) => TipEnd::Lost(CallError::Disconnected(error.to_string())),
            },
            None => std::future::pending().await,
        }
    }
}

/// The source of new tips.
enum TipSource {
    Mining(Mining),
    /// A long poll over HTTP (`waitfornewblock`) would occupy one of the node's few RPC workers.
    Http(JsonRpc),
}

impl TipSource {
    /// How long the wait for a new tip takes if none comes.
    fn wait(&self) -> Duration {
        match self {
            TipSource::Mining(_) => LONG_POLL,
            TipSource::Http(_) => HTTP_INTERVAL,
        }
    }

    /// Waits for a new tip for the time of a long poll, and returns the tip. `None` means that the node is shutting down.
    async fn next(&mut self, last_seen: Option<BlockRef>) -> Result<Option<BlockRef>, CallError> {
        match self {
            TipSource::Mining(mining) => {
                let current = last_seen.map_or(NO_BLOCK, |tip| tip.hash);
                mining.wait_tip_changed(current, LONG_POLL).await
            }
            TipSource::Http(json_rpc) => next_over_http(json_rpc, last_seen).await.map(Some),
        }
    }
}

/// The tip, after a while if one is known.
async fn next_over_http(json_rpc: &JsonRpc, last_seen: Option<BlockRef>) -> Result<BlockRef, CallError> {
    let height = |height: &Value| height.as_i64().and_then(|height| i32::try_from(height).ok());
    let malformed = || CallError::Malformed("the tip has no height".into());
    let Some(last_seen) = last_seen else {
        let info = json_rpc.call(Method::GetBlockchainInfo, json!([])).await?;
        let hash = info["bestblockhash"].as_str().unwrap_or_default().parse()?;
        return Ok(BlockRef { hash, height: height(&info["blocks"]).ok_or_else(malformed)? });
    };
    tokio::time::sleep(HTTP_INTERVAL).await;
    let hash = json_rpc.call(Method::GetBestBlockHash, json!([])).await?;
    let hash: BlockHash = hash.as_str().unwrap_or_default().parse()?;
    if hash == last_seen.hash {
        return Ok(last_seen);
    }
    let header = json_rpc.call(Method::GetBlockHeader, json!([hash.to_string()])).await?;
    Ok(BlockRef { hash, height: height(&header["height"]).ok_or_else(malformed)? })
}

struct TipFollower {
    interfaces: Rc<Interfaces>,
    source: TipSource,
    json_rpc: Option<JsonRpc>,
    context: Rc<Context>,
    new_tip: Rc<Notify>,
    reconnected: ReconnectState,
    /// The blocks up to the tip have to be counted later.
    pending: bool,
    /// Attempts to count them that failed in a row.
    failures: u32,
    /// The counters of blocks are shown.
    counting: bool,
    /// Restarts of the node that were noticed when it last returned its tip.
    restarts: u64,
}

impl TipFollower {
    async fn run(mut self, first_done: oneshot::Sender<()>) -> TipEnd {
        let mut first_done = Some(first_done);
        if !self.notified() {
            self.context.metrics.blocks.tip_updates.start();
        }
        let mut last_seen = None::<BlockRef>;
        let mut failing = false;
        loop {
            let started_at = Instant::now();
            self.start_counting();
            let answer = self.source.next(last_seen).await;
            let failed_before = std::mem::replace(&mut failing, answer.is_err());
            match answer {
                Ok(None) => return TipEnd::NodeShutsDown,
                // The timeout has passed. Should a node not wait, we do.
                Ok(Some(tip)) if last_seen.is_some_and(|seen| seen.hash == tip.hash) => {
                    self.take_restart();
                    if self.pending {
                        self.count_up_to(tip).await;
                    }
                    let early = self.source.wait().saturating_sub(started_at.elapsed());
                    tokio::time::sleep(early.saturating_sub(EARLY_TOLERANCE)).await;
                }
                Ok(Some(tip)) => {
                    self.on_new_tip(tip, last_seen.replace(tip).is_none());
                    self.count_up_to(tip).await;
                    tokio::time::sleep(MIN_INTERVAL.saturating_sub(started_at.elapsed())).await;
                }
                Err(error @ CallError::Disconnected(_)) => return TipEnd::Lost(error),
                // Polls detect a node that hangs. The long poll goes on: only it reports a shutdown.
                Err(error) => {
                    // Why HTTP cannot be used is logged elsewhere.
                    if !failed_before && !matches!(error, CallError::Http(_)) {
                        let text = format!("cannot wait for a new tip: {error}; retrying until it succeeds");
                        self.context.warn_limited(&text);
                    }
                    first_done.take();
                    tokio::time::sleep(LONG_POLL).await;
                }
            }
            // Notifications count from here on: not before the blocks without them are counted.
            if !(self.notified() && self.pending) {
                first_done.take();
            }
        }
    }

    /// Whether notifications count blocks.
    fn notified(&self) -> bool {
        self.interfaces.chain.is_some()
    }

    /// Shows a tip. When the first one of a connection became the tip is not known.
    fn on_new_tip(&self, tip: BlockRef, is_first: bool) {
        let context = &self.context;
        let seen = (!is_first).then(now);
        if !is_first {
            let at = tokio::time::Instant::now();
            context.new_tip.send_replace(Some(NewTip { hash: tip.hash, at }));
        }
        context.status.last_blocks.tip(tip.hash.to_string(), tip.height, seen);
        self.new_tip.notify_one();
        let last = context.persistent_state.borrow_mut().last_tip.replace(tip);
        if last.is_some_and(|last| last.hash != tip.hash) {
            debug!(block_height = tip.height, block_hash = %tip.hash, "new tip");
            if !self.notified() {
                context.metrics.blocks.tip_updates.inc();
            }
        }
    }

    /// With JSON-RPC blocks can be counted; over HTTP that may be some time after the start.
    fn start_counting(&mut self) {
        if self.counting || self.header_access() != HeaderAccess::Available {
            return;
        }
        self.counting = true;
        let blocks = &self.context.metrics.blocks;
        if !self.notified() {
            blocks.connected.start();
            blocks.disconnected.start();
        }
        blocks.uncounted_tip_changes.start();
    }

    fn header_access(&self) -> HeaderAccess {
        match &self.json_rpc {
            None => HeaderAccess::Unavailable,
            Some(json_rpc) if json_rpc.is_available() => HeaderAccess::Available,
            Some(_) => HeaderAccess::NotYet,
        }
    }

    /// Counts the blocks between the tip up to which blocks are counted and this one, as [`next_action`] decides.
    async fn count_up_to(&mut self, tip: BlockRef) {
        let counted = self.context.persistent_state.borrow().counted_tip;
        let json_rpc = self.json_rpc.clone();
        let mut conditions = CountingConditions {
            reconnected: std::mem::replace(&mut self.reconnected, ReconnectState::CaughtUp),
            notified: self.notified(),
            headers: self.header_access(),
            restart_checked: false,
        };
        loop {
            match (next_action(counted, tip, &conditions), &json_rpc) {
                (CountingAction::CheckRestart, Some(json_rpc)) => {
                    conditions.restart_checked = true;
                    if self.was_restarted(json_rpc).await {
                        conditions.reconnected = ReconnectState::FirstTip;
                    }
                }
                (CountingAction::CheckKnown(old), Some(json_rpc)) => {
                    let checked = is_known(json_rpc, old).await.map(|()| None);
                    return self.apply_difference(old, tip, conditions, checked);
                }
                (CountingAction::Count(old), Some(json_rpc)) => {
                    let difference = diff_tips(json_rpc, old, tip).await.map(Some);
                    return self.apply_difference(old, tip, conditions, difference);
                }
                (CountingAction::StayRolledBack, _) => {
                    (self.reconnected, self.pending) = (ReconnectState::RolledBack, false);
                    return;
                }
                (CountingAction::Wait, _) => {
                    self.context.metrics.blocks.height.set(Some(tip.height));
                    (self.reconnected, self.pending) = (conditions.reconnected, true);
                    return;
                }
                (CountingAction::ShowHeight, _) => {
                    self.context.metrics.blocks.height.set(Some(tip.height));
                    return self.advance(tip);
                }
                _ => return self.advance(tip),
            }
        }
    }

    /// Counts the blocks between two tips, if the difference was found. `None`: the node was rolled back.
    fn apply_difference(
        &mut self,
        old: BlockRef,
        tip: BlockRef,
        conditions: CountingConditions,
        difference: Result<Option<ChainDiff>, CallError>,
    ) {
        let failures = std::mem::take(&mut self.failures);
        self.pending = false;
        let blocks = &self.context.metrics.blocks;
        match difference {
            Ok(Some(ChainDiff { disconnected, connected })) => {
                blocks.disconnected.inc_by(disconnected);
                blocks.connected.inc_by(connected);
                if connected > 0 {
                    blocks.height.set(Some(tip.height));
                }
                self.advance(tip);
            }
            // Notifications count the blocks that are connected again.
            Ok(None) if conditions.notified => self.advance(tip),
            Ok(None) => self.reconnected = ReconnectState::RolledBack,
            Err(error) => {
                self.context.metrics.exporter.poll_failures.inc_by(["getblockheader"], 1);
                let problem = format!("cannot count the blocks between {} and {}", old.hash, tip.hash);
                self.failures = failures + 1;
                if is_final(&error)
                    || (conditions.notified && self.failures >= MAX_FAILURES_BEFORE_NOTIFICATIONS)
                {
                    warn!("{problem}, they are not counted: {error}");
                    blocks.uncounted_tip_changes.inc();
                    return self.advance(tip);
                }
                if failures == 0 {
                    self.context.warn_limited(&format!("{problem}: {error}; retrying until it succeeds"));
                }
                (self.reconnected, self.pending) = (conditions.reconnected, true);
            }
        }
    }

    /// Whether the node is another process than before. Over IPC the connection ends with the node; over HTTP a node can be
    /// restarted between two calls.
    async fn was_restarted(&mut self, json_rpc: &JsonRpc) -> bool {
        let TipSource::Http(_) = self.source else { return false };
        let called = Instant::now();
        let uptime = json_rpc.call(Method::Uptime, json!([])).await.ok().and_then(|uptime| uptime.as_f64());
        let uptime = uptime.map(|seconds| UptimeReading { seconds, called, returned: Instant::now() });
        self.context.persistent_state.borrow_mut().node_start.update(None, uptime, SystemTime::now());
        self.take_restart()
    }

    /// Whether a restart was noticed since the last call, by a poll or here.
    fn take_restart(&mut self) -> bool {
        let restarts = self.context.persistent_state.borrow().node_start.restarts();
        std::mem::replace(&mut self.restarts, restarts) != restarts
    }

    /// The blocks up to this one are counted.
    fn advance(&mut self, tip: BlockRef) {
        (self.pending, self.failures) = (false, 0);
        self.take_restart();
        self.context.persistent_state.borrow_mut().counted_tip = Some(tip);
    }
}
