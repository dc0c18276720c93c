//! The settings and handles that all connections of a collector share, and the state that is kept between connections.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::connected_blocks::{BlockRange, ConnectedBlocks};
use super::file_system::DatadirCandidates;
use super::node_start::NodeStartTracker;
use super::peers::PeerTraffic;
use super::thread_times::ThreadTimes;
use super::warnings::Warnings;
use crate::block_log::ReportQueue;
use crate::cli::duration;
use crate::ipc::{BlockHash, BlockRef};
use crate::json_rpc::FailureCause;
use crate::json_rpc::http::{self, HttpRpc};
use crate::logging::RepeatLimiter;
use crate::metrics::Metrics;
use crate::status::Status;

/// When the exporter subscribes to the node's UTXO cache trace, which slows the node.
#[derive(Clone, Copy, Debug, PartialEq, clap::ValueEnum)]
pub enum UtxoTraceMode {
    /// Subscribe after initial block download, until the trace exceeds its time budget.
    Auto,
    /// Subscribe after initial block download, with no limit on the time for which the trace delays the node.
    On,
    /// Never subscribe.
    Off,
}

/// When to request block templates from the node.
#[derive(Clone, Copy, Debug, PartialEq, clap::ValueEnum)]
pub enum NextBlockMode {
    /// Request templates after initial block download, for at most 1 % of the node's time.
    Auto,
    /// Request a template at each poll interval and at each new tip, without a limit on the node's time.
    On,
    /// Never request templates.
    Off,
}

/// The collector's settings, of which the first ones are command line arguments of bitcoind-ipc-exporter.
#[derive(Args, Clone, Debug)]
pub struct Config {
    /// Interval between polls, e.g. 15s, 500ms or 1m. A new tip triggers a poll at once
    #[arg(long, value_name = "DURATION", default_value = "15s", value_parser = duration, env = "BITCOIND_IPC_EXPORTER_POLL_INTERVAL")]
    pub poll_interval: Duration,

    /// Timeout for one call to the node
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration, env = "BITCOIND_IPC_EXPORTER_CALL_TIMEOUT")]
    pub call_timeout: Duration,

    /// Trace of the UTXO cache, for nodes with the Tracing interface. The trace slows down the connection of blocks.
    /// With auto, a trace that exceeds its budget is disabled until the exporter restarts
    #[arg(long, value_enum, default_value = "auto", env = "BITCOIND_IPC_EXPORTER_UTXO_TRACE")]
    pub utxo_trace: UtxoTraceMode,

    /// Budget of --utxo-trace auto: time that the node may wait for the trace in ten minutes (the average time between
    /// two blocks)
    #[arg(long, value_name = "DURATION", default_value = "50ms", value_parser = duration, env = "BITCOIND_IPC_EXPORTER_UTXO_TRACE_BUDGET")]
    pub utxo_trace_budget: Duration,

    /// Periodic requests for a block template, for the metrics of the next block (needs the Mining interface). auto
    /// requests a template at a new tip, and between tips at most once per --poll-interval
    #[arg(long, value_enum, default_value = "auto", env = "BITCOIND_IPC_EXPORTER_NEXT_BLOCK")]
    pub next_block: NextBlockMode,

    /// Whether the exporter exits when the node shuts down. If false, the exporter waits until the node runs again.
    #[arg(skip)]
    pub exit_with_node: bool,

    /// Settings of JSON-RPC over HTTP, which is used for nodes without JSON-RPC over IPC; `None` if HTTP is disabled.
    #[arg(skip)]
    pub http_rpc: Option<http::HttpRpcConfig>,

    /// Directories that may be the node's data directory. The exporter exports the size and free space of the data
    /// directory's file system.
    #[arg(skip)]
    pub data_directory: DatadirCandidates,
}

/// A block that became the tip, with the time at which the node reported the block to the exporter.
#[derive(Clone, Copy, Debug)]
pub(super) struct NewTip {
    pub hash: BlockHash,
    pub at: Instant,
}

/// State about the node that is kept from one connection to the next. With this state, events around a reconnect are
/// counted exactly once.
#[derive(Default)]
pub(super) struct PersistentState {
    /// The traffic totals (bytes, addresses) of each peer at the last poll, which are already included in the traffic
    /// counters.
    pub peers: PeerTraffic,
    /// Start time, number of restarts and identity of the node's process.
    pub node_start: NodeStartTracker,
    /// The node's warnings in the last response, which have been logged.
    pub warnings: Warnings,
    /// Counted CPU time of the node's threads, by group of threads.
    pub thread_times: ThreadTimes,
    /// The last tip that the node returned.
    pub last_tip: Option<BlockRef>,
    /// The last counted tip: the next count of connected and disconnected blocks starts from this block.
    pub counted_tip: Option<BlockRef>,
    /// The connected blocks whose contents are still to be counted.
    pub connected_blocks: ConnectedBlocks,
    /// Whether the UTXO cache trace has exceeded its budget. A trace that has exceeded its budget stays off until the
    /// exporter is restarted.
    pub trace_over_budget: bool,
}

/// Data that all connections of a collector share: settings, handles, and state that is kept between connections.
pub struct Context {
    /// The collector's settings.
    pub config: Config,
    /// The metrics, whose values are set from the node's responses.
    pub metrics: Arc<Metrics>,
    /// The data of the status page: the state of the connection, and the last blocks.
    pub status: Arc<Status>,
    /// The queue of the block log; `None` if the block log is disabled.
    pub block_log: Option<ReportQueue>,
    /// Token that is cancelled when the exporter has to exit.
    pub shutdown: CancellationToken,
    pub(super) http_rpc: Option<HttpRpc>,
    /// Limiter of repeated log lines about failures, which all connections share.
    pub(super) repeats: RepeatLimiter,
    pub(super) persistent_state: RefCell<PersistentState>,
    /// The newest tip that the node has reported. The first tip of each connection is not stored, because the time at
    /// which it became the tip is unknown.
    pub(super) new_tip: watch::Sender<Option<NewTip>>,
}

impl Context {
    /// Creates a context with an empty `PersistentState`.
    pub fn new(
        config: Config,
        metrics: Arc<Metrics>,
        status: Arc<Status>,
        shutdown: CancellationToken,
    ) -> Self {
        metrics.set_poll_interval(config.poll_interval);
        let http_rpc = config.http_rpc.clone().map(|settings| {
            let metrics = metrics.clone();
            let count =
                move |cause: FailureCause| metrics.exporter.http_rpc_failures.inc_by([cause.name()], 1);
            HttpRpc::new(settings, config.call_timeout, count)
        });
        if http_rpc.is_some() {
            let failures = &metrics.exporter.http_rpc_failures;
            FailureCause::NAMES.iter().for_each(|cause| failures.inc_by([cause], 0));
        }
        let (persistent_state, new_tip) = (RefCell::default(), watch::Sender::default());
        let repeats = RepeatLimiter::default();
        Context {
            config,
            http_rpc,
            repeats,
            metrics,
            status,
            block_log: None,
            shutdown,
            persistent_state,
            new_tip,
        }
    }

    /// Queues connected blocks whose contents are to be counted.
    pub(super) fn queue_connected(&self, range: BlockRange) {
        let dropped = self.persistent_state.borrow_mut().connected_blocks.push(range);
        let uncounted = &self.metrics.blocks.uncounted_blocks;
        // The counter of uncounted blocks exists only if the node has JSON-RPC, without which no queued block is
        // counted.
        if dropped > 0 && uncounted.get().is_some() {
            uncounted.inc_by(dropped);
        }
    }

    /// Logs a warning that may recur. Each text is logged at most once a minute, with the number of suppressed lines.
    pub(super) fn warn_limited(&self, text: &str) {
        if let Some(suppressed) = self.repeats.admit(text) {
            warn!("{text}{suppressed}");
        }
    }
}
