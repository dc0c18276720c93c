//! The watch for new tips, a task that detects each change of the node's tip. Over IPC the task makes long polls, calls
//! of `waitTipChanged` to which the node responds when its tip changes or after one second. A long poll is always under
//! way, on a separate thread of the node.
//!
//! The watch also detects the tip changes of nodes that send no notifications of connected blocks. Over IPC the long
//! poll is the only call whose response announces the node's shutdown. Over HTTP the watch makes no long polls, and
//! reads the tip twice a second.

use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};
use tokio::sync::{Notify, oneshot};
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, warn};

use super::block_counting::{CountingAction, CountingConditions, HeaderAccess, ReconnectState, next_action};
use super::chain_diff::{ChainDiff, diff_tips, is_final, is_known};
use super::connected_blocks::{BlockRange, ContentsToCount};
use super::context::{Context, NewTip};
use super::node_start::UptimeReading;
use super::session::SessionEnd;
use crate::block_log::BlockReport;
use crate::ipc::{BlockHash, BlockRef, Interfaces, LONG_POLL, Mining, NodeThread};
use crate::json_rpc::{CallError, JsonRpc};
use crate::metrics::now;
use crate::sys;

/// Interval between two reads of the tip over HTTP. A read takes the node about 0.1 ms, most of it for HTTP.
const HTTP_INTERVAL: Duration = Duration::from_millis(500);

/// A hash that no block has. The node responds immediately to a long poll with this hash as the current tip, because
/// its tip differs from this hash.
pub(super) const NO_BLOCK: BlockHash = BlockHash([0; 32]);

/// Tolerance for responses to a long poll that arrive shortly before its timeout. If a response with an unchanged tip
/// arrives earlier than this time before the timeout, the exporter sleeps before the next long poll, to limit the
/// number of calls.
const EARLY_TOLERANCE: Duration = Duration::from_millis(100);

/// Minimum time between the starts of two long polls. A node that reorganizes or catches up has thousands of new tips
/// per second, and each response to a long poll costs the node time. The blocks between two reported tips are
/// nevertheless counted, by the parent hashes in their headers.
const MIN_INTERVAL: Duration = Duration::from_millis(50);

/// Maximum number of failed attempts, one per second, to count the blocks between the last counted tip and the first
/// tip of a connection. After this number, the exporter subscribes to notifications without having counted these
/// blocks.
const MAX_FAILURES_BEFORE_NOTIFICATIONS: u32 = 30;

/// Starts the task that watches for new tips on one connection. Over IPC the task's calls run on `thread`, a thread of
/// the node; if `thread` is `None`, there is no IPC and the task uses HTTP. Returns the task, which ends when the node
/// shuts down or the connection is closed, and a receiver that resolves when the blocks up to the first tip of this
/// connection are counted, or when they cannot be counted. The exporter may then subscribe to notifications, which
/// count the later blocks. Returns `None` if the interface that the watch needs is missing: Mining over IPC, or
/// JSON-RPC over HTTP.
pub fn watch(
    interfaces: &Interfaces,
    thread: Option<&NodeThread>,
    context: &Rc<Context>,
    new_tip: Rc<Notify>,
) -> Option<(AbortOnDropHandle<SessionEnd>, oneshot::Receiver<()>)> {
    let (source, json_rpc) = match thread {
        Some(thread) => {
            let thread = thread.with_extra_timeout(LONG_POLL);
            let mining = interfaces.mining.as_ref()?.on_thread(&thread);
            (TipSource::Mining(mining), interfaces.json_rpc_on(&thread))
        }
        None => {
            let json_rpc = interfaces.json_rpc()?;
            (TipSource::Http(json_rpc.clone()), Some(json_rpc))
        }
    };
    let follower = TipFollower {
        source,
        notified: interfaces.chain.is_some(),
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
    Some((AbortOnDropHandle::new(tokio::task::spawn_local(follower.run(first_done))), caught_up))
}

/// The interface through which the watch detects new tips on one connection.
enum TipSource {
    /// Long polls over IPC (`Mining.waitTipChanged`).
    Mining(Mining),
    /// Periodic reads of the tip over HTTP. A long poll over HTTP (`waitfornewblock`) would occupy one of the node's
    /// few RPC worker threads.
    Http(JsonRpc),
}

impl TipSource {
    /// Time for which [`next`](Self::next) waits if there is no new tip.
    fn wait(&self) -> Duration {
        match self {
            TipSource::Mining(_) => LONG_POLL,
            TipSource::Http(_) => HTTP_INTERVAL,
        }
    }

    /// Resolution of the time at which the exporter detects a new tip. If the node connects several blocks within this
    /// time, only the last of these blocks is detected as a tip.
    fn resolution(&self) -> Duration {
        match self {
            TipSource::Mining(_) => MIN_INTERVAL,
            TipSource::Http(_) => HTTP_INTERVAL,
        }
    }

    /// Waits until the node's tip differs from `last_seen`, for at most the time that [`wait`](Self::wait) returns, and
    /// returns the current tip. `None` means that the node is shutting down.
    async fn next(&mut self, last_seen: Option<BlockRef>) -> Result<Option<BlockRef>, CallError> {
        match self {
            TipSource::Mining(mining) => {
                let current = last_seen.map_or(NO_BLOCK, |tip| tip.hash);
                mining.wait_tip_changed(current).await
            }
            TipSource::Http(json_rpc) => next_over_http(json_rpc, last_seen).await.map(Some),
        }
    }
}

/// Reads the tip over HTTP. If `last_seen` is `Some`, waits for [`HTTP_INTERVAL`] before it reads the tip.
async fn next_over_http(json_rpc: &JsonRpc, last_seen: Option<BlockRef>) -> Result<BlockRef, CallError> {
    let height = |height: &Value| height.as_i64().and_then(|height| i32::try_from(height).ok());
    let malformed = || CallError::Malformed("the tip has no height".into());
    let Some(last_seen) = last_seen else {
        let info = json_rpc.call("getblockchaininfo", json!([])).await?;
        let hash = info["bestblockhash"].as_str().unwrap_or_default().parse()?;
        return Ok(BlockRef { hash, height: height(&info["blocks"]).ok_or_else(malformed)? });
    };
    tokio::time::sleep(HTTP_INTERVAL).await;
    let hash = json_rpc.call("getbestblockhash", json!([])).await?;
    let hash: BlockHash = hash.as_str().unwrap_or_default().parse()?;
    if hash == last_seen.hash {
        return Ok(last_seen);
    }
    let header = json_rpc.call("getblockheader", json!([hash.to_string()])).await?;
    Ok(BlockRef { hash, height: height(&header["height"]).ok_or_else(malformed)? })
}

/// The task that watches for new tips on one connection. For each new tip, the task publishes the tip to other tasks,
/// and counts the blocks between the last counted tip and the new tip.
struct TipFollower {
    source: TipSource,
    /// Whether the node's notifications count the connected and disconnected blocks, because the node has the Chain
    /// interface.
    notified: bool,
    json_rpc: Option<JsonRpc>,
    context: Rc<Context>,
    new_tip: Rc<Notify>,
    reconnected: ReconnectState,
    /// Whether an attempt to count the blocks up to the current tip has failed or has to wait for JSON-RPC, and has to
    /// be repeated.
    pending: bool,
    /// Number of failed attempts in a row to count the blocks up to the current tip.
    failures: u32,
    /// Whether the series of the counters of connected and disconnected blocks have been created.
    counting: bool,
    /// Number of restarts of the node that had been detected when the last tip was processed.
    restarts: u64,
}

impl TipFollower {
    async fn run(mut self, first_done: oneshot::Sender<()>) -> SessionEnd {
        let mut first_done = Some(first_done);
        if !self.notified {
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
                Ok(None) => return SessionEnd::NodeShutDown,
                // The tip has not changed. If the node has responded before the timeout, sleep for the remaining time.
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
                    // Start a poll of the node's state, which also counts the transactions and fees of the new blocks.
                    self.new_tip.notify_one();
                    tokio::time::sleep(MIN_INTERVAL.saturating_sub(started_at.elapsed())).await;
                }
                Err(error @ CallError::Disconnected(_)) => return error.into(),
                // A failed long poll does not end the watch, because only the response to a later long poll can
                // announce the node's shutdown. If the node hangs, failed polls of the node's state end the session.
                Err(error) => {
                    // A failure of HTTP is not logged here, because `HttpRpc` logs the reason why HTTP cannot be used.
                    if !failed_before && !matches!(error, CallError::Http(_)) {
                        let text = format!("cannot wait for a new tip: {error}; retrying until it succeeds");
                        self.context.warn_limited(&text);
                    }
                    first_done.take();
                    tokio::time::sleep(LONG_POLL).await;
                }
            }
            // Dropping the sender `first_done` lets the exporter subscribe to notifications, which then count blocks.
            // The sender is kept until the blocks up to the first tip are counted by their headers. No block is
            // therefore counted both by its header and by a notification.
            if !(self.notified && self.pending) {
                first_done.take();
            }
        }
    }

    /// Publishes a new tip to the status page, the block log, the poller of block templates and the metrics. The first
    /// tip of a connection is published without a time, because the time at which it became the tip is unknown.
    fn on_new_tip(&self, tip: BlockRef, is_first: bool) {
        let context = &self.context;
        let seen = (!is_first).then(now);
        if !is_first {
            let at = tokio::time::Instant::now();
            context.new_tip.send_replace(Some(NewTip { hash: tip.hash, at }));
            self.log_block(tip);
        }
        context.status.last_blocks.tip(tip.hash.to_string(), tip.height, seen);
        let last = context.persistent_state.borrow_mut().last_tip.replace(tip);
        if last.is_some_and(|last| last.hash != tip.hash) {
            debug!(block_height = tip.height, block_hash = %tip.hash, "new tip");
            if !self.notified {
                context.metrics.blocks.tip_updates.inc();
            }
        }
    }

    /// Adds the new tip to the block log (a SQLite file with a row for each connected block), unless the block log is
    /// disabled. Tips during initial block download are omitted, because the log contains the times of new blocks, and
    /// these blocks are old.
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

    /// Creates the series of the counters of connected and disconnected blocks when JSON-RPC, which the counting needs,
    /// is available. Over HTTP, JSON-RPC may become available some time after the start of the session.
    fn start_counting(&mut self) {
        if self.counting || self.header_access() != HeaderAccess::Available {
            return;
        }
        self.counting = true;
        let blocks = &self.context.metrics.blocks;
        if !self.notified {
            blocks.connected.start();
            blocks.disconnected.start();
            blocks.start_contents();
        }
        blocks.connected_fees.start();
        blocks.uncounted_blocks.start();
        blocks.uncounted_tip_changes.start();
    }

    fn header_access(&self) -> HeaderAccess {
        match &self.json_rpc {
            None => HeaderAccess::Unavailable,
            Some(json_rpc) if json_rpc.is_available() => HeaderAccess::Available,
            Some(_) => HeaderAccess::NotYet,
        }
    }

    /// Counts the blocks between the last counted tip and `tip`, in the steps that [`next_action`] selects.
    async fn count_up_to(&mut self, tip: BlockRef) {
        let counted = self.context.persistent_state.borrow().counted_tip;
        let json_rpc = self.json_rpc.clone();
        let mut conditions = CountingConditions {
            reconnected: std::mem::replace(&mut self.reconnected, ReconnectState::CaughtUp),
            notified: self.notified,
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

    /// Adds the numbers of blocks in `difference` to the counters. `Ok(None)` means that the node was rolled back: it
    /// has restarted at a lower height. After an error, either retries later, or adds 1 to the counter of uncounted tip
    /// changes and makes `tip` the last counted tip.
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
                let range = BlockRange { last: tip, blocks: connected, contents: ContentsToCount::All };
                self.context.queue_connected(range);
                self.advance(tip);
            }
            // With notifications, the blocks that the node connects again after a rollback are counted from
            // notifications.
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

    /// Whether the node was restarted since the last tip was processed. Over IPC the result is always false, because
    /// the connection closes when the node exits. Over HTTP a node can be restarted between two calls, so the uptime is
    /// read.
    async fn was_restarted(&mut self, json_rpc: &JsonRpc) -> bool {
        let TipSource::Http(_) = self.source else { return false };
        let called = Instant::now();
        let uptime = json_rpc.call("uptime", json!([])).await.ok().and_then(|uptime| uptime.as_f64());
        let uptime = uptime.map(|seconds| UptimeReading { seconds, called, returned: Instant::now() });
        self.context.persistent_state.borrow_mut().node_start.update(None, uptime, SystemTime::now());
        self.take_restart()
    }

    /// Returns whether the exporter has detected a restart of the node since the previous call of this method.
    fn take_restart(&mut self) -> bool {
        let restarts = self.context.persistent_state.borrow().node_start.restarts();
        std::mem::replace(&mut self.restarts, restarts) != restarts
    }

    /// Makes `tip` the last counted tip, from which the next count of blocks starts.
    fn advance(&mut self, tip: BlockRef) {
        (self.pending, self.failures) = (false, 0);
        self.take_restart();
        self.context.persistent_state.borrow_mut().counted_tip = Some(tip);
    }
}
