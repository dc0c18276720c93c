//! The watch for new tips: a long poll that is always under way, on a thread of its own.
//!
//! It reports tip changes of nodes without notifications. Over IPC it is also the only call that reports the node's shutdown. Over HTTP
//! the tip is read twice a second instead.

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
use crate::block_log::BlockReport;
use crate::ipc::{BlockHash, BlockRef, Interfaces, Mining, NodeThread};
use crate::json_rpc::{CallError, JsonRpc, Method};
use crate::metrics::now;
use crate::sys;

/// Timeout of one long poll. It is short for two reasons: the node's thread is free soon after the exporter has disconnected, and the
/// exporter can disconnect between two long polls within the stop timeout of a service manager.
pub(super) const LONG_POLL: Duration = Duration::from_secs(1);

/// Time between two reads of the tip over HTTP. A read costs the node about 0.1 ms, most of it for HTTP.
const HTTP_INTERVAL: Duration = Duration::from_millis(500);

/// A hash that no block has: a long poll with it returns the current tip at once.
pub(super) const NO_BLOCK: BlockHash = BlockHash([0; 32]);

/// Tolerance for a long poll that returns before its timeout. The exporter sleeps for the rest of the timeout beyond this tolerance.
const EARLY_TOLERANCE: Duration = Duration::from_millis(100);

/// Minimum time between the starts of two long polls. A node that reorganizes or catches up has thousands of new tips a second, and
/// each response costs it time. The blocks of skipped tips are counted by their headers.
const MIN_INTERVAL: Duration = Duration::from_millis(50);

/// Number of failed attempts to count blocks, one second apart, after which the subscription to notifications is no longer delayed.
const MAX_FAILURES_BEFORE_NOTIFICATIONS: u32 = 30;

/// The reason why the watch for new tips has ended.
#[derive(Debug)]
pub enum TipEnd {
    /// The node announced its shutdown.
    NodeShutsDown,
    /// The connection is closed.
    Lost(CallError),
}

/// The task that follows the tip of one connection; ended when dropped.
pub struct TipWatch {
    task: AbortOnDropHandle<TipEnd>,
    /// Resolves when the first tip was processed or could not be read.
    caught_up: Option<oneshot::Receiver<()>>,
}

impl TipWatch {
    /// Starts the watch on `thread`, or over HTTP if `thread` is `None` because there is no IPC. Returns `None` if the required
    /// interface is missing: Mining over IPC, or JSON-RPC over HTTP.
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

    /// Returns a receiver that resolves when the blocks that were connected before this connection are counted: from then on
    /// notifications may count blocks. Returns `None` at the second call.
    pub fn caught_up(&mut self) -> Option<oneshot::Receiver<()>> {
        self.caught_up.take()
    }

    /// Resolves when the watch has ended; never if there is no watch.
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

/// The interface that reports new tips.
enum TipSource {
    /// A long poll (`waitTipChanged`).
    Mining(Mining),
    /// Reads of the tip at an interval. A long poll over HTTP (`waitfornewblock`) would occupy one of the node's few RPC workers.
    Http(JsonRpc),
}

impl TipSource {
    /// How long the wait for a new tip lasts if there is none.
    fn wait(&self) -> Duration {
        match self {
            TipSource::Mining(_) => LONG_POLL,
            TipSource::Http(_) => HTTP_INTERVAL,
        }
    }

    /// Resolution of the time at which a tip is seen. Blocks that follow each other faster have one tip.
    fn resolution(&self) -> Duration {
        match self {
            TipSource::Mining(_) => MIN_INTERVAL,
            TipSource::Http(_) => HTTP_INTERVAL,
        }
    }

    /// Waits for a tip other than `last_seen`, for the time of [`wait`](Self::wait), and returns the current tip. `None` means that the
    /// node is shutting down.
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

/// Reads the tip over HTTP. If `last_seen` is given, waits for [`HTTP_INTERVAL`] first.
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

/// The state of the task behind a [`TipWatch`]: follows the tip, and counts the blocks up to each new tip.
struct TipFollower {
    interfaces: Rc<Interfaces>,
    source: TipSource,
    json_rpc: Option<JsonRpc>,
    context: Rc<Context>,
    new_tip: Rc<Notify>,
    reconnected: ReconnectState,
    /// Whether the blocks up to the tip are still to be counted.
    pending: bool,
    /// Failed attempts in a row to count these blocks.
    failures: u32,
    /// Whether the block counters were started.
    counting: bool,
    /// Number of the node's restarts that were known when it last returned its tip.
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
                // The timeout has passed. If the node has returned too early, sleep for the rest.
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
                // Polls detect a node that hangs. The long poll continues, because only it reports a shutdown.
                Err(error) => {
                    // The HTTP client logs why HTTP cannot be used.
                    if !failed_before && !matches!(error, CallError::Http(_)) {
                        let text = format!("cannot wait for a new tip: {error}; retrying until it succeeds");
                        self.context.warn_limited(&text);
                    }
                    first_done.take();
                    tokio::time::sleep(LONG_POLL).await;
                }
            }
            // Notifications count blocks from here on, but not before the earlier blocks are counted by their headers.
            if !(self.notified() && self.pending) {
                first_done.take();
            }
        }
    }

    /// Whether notifications count blocks.
    fn notified(&self) -> bool {
        self.interfaces.chain.is_some()
    }

    /// Publishes a new tip. The first tip of a connection has no time, because it is not known when it became the tip.
    fn on_new_tip(&self, tip: BlockRef, is_first: bool) {
        let context = &self.context;
        let seen = (!is_first).then(now);
        if !is_first {
            let at = tokio::time::Instant::now();
            context.new_tip.send_replace(Some(NewTip { hash: tip.hash, at }));
        }
        if !is_first {
            self.log_block(tip);
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

    /// Adds the block to the block log, if there is one. During initial block download, tips are not new blocks of the network.
    fn log_block(&self, tip: BlockRef) {
        let Some(block_log) = &self.context.block_log else { return };
        if self.context.metrics.chain.ibd.get() == Some(1.0) {
            return;
        }
        let mut report = BlockReport {
            time: now(),
            block_height: tip.height.into(),
            block_hash: tip.hash.to_string(),
            resolution_us: Some(self.source.resolution().as_micros() as i64),
            ..BlockReport::default()
        };
        report.set_clock_error(sys::clock_error(), false);
        block_log.push(report);
    }

    /// Starts the block counters once JSON-RPC is available, which over HTTP may be some time after the start.
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

    /// Counts the blocks between the last counted tip and `tip`, as [`next_action`] decides.
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

    /// Counts the blocks of `difference`. `Ok(None)` means that the node was rolled back. After an error plans a retry, or gives up and
    /// counts the tip change as not counted.
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

    /// Whether the node is another process than before. Over IPC the connection is closed when the node exits; over HTTP a node can be
    /// restarted between two calls.
    async fn was_restarted(&mut self, json_rpc: &JsonRpc) -> bool {
        let TipSource::Http(_) = self.source else { return false };
        let called = Instant::now();
        let uptime = json_rpc.call(Method::Uptime, json!([])).await.ok().and_then(|uptime| uptime.as_f64());
        let uptime = uptime.map(|seconds| UptimeReading { seconds, called, returned: Instant::now() });
        self.context.persistent_state.borrow_mut().node_start.update(None, uptime, SystemTime::now());
        self.take_restart()
    }

    /// Whether a restart was noticed since the last call of this method, by a poll or by `was_restarted`.
    fn take_restart(&mut self) -> bool {
        let restarts = self.context.persistent_state.borrow().node_start.restarts();
        std::mem::replace(&mut self.restarts, restarts) != restarts
    }

    /// Records that the blocks up to `tip` are counted.
    fn advance(&mut self, tip: BlockRef) {
        (self.pending, self.failures) = (false, 0);
        self.take_restart();
        self.context.persistent_state.borrow_mut().counted_tip = Some(tip);
    }
}
