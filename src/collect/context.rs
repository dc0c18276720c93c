//! The settings and handles that all connections of a collector share, and the state that is kept between connections.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::file_system::DatadirCandidates;
use super::node_start::NodeStartTracker;
use super::peers::PeerTraffic;
use super::thread_times::ThreadTimes;
use super::warnings::Warnings;
use crate::block_log::ReportQueue;
use crate::ipc::{BlockHash, BlockRef};
use crate::json_rpc::FailureCause;
use crate::json_rpc::http::{self, HttpRpc};
use crate::logging::RepeatLimiter;
use crate::metrics::Metrics;
use crate::status::Status;

/// When to subscribe to the UTXO cache trace, which slows the node.
#[derive(Clone, Copy, Debug, PartialEq, clap::ValueEnum)]
pub enum UtxoTraceMode {
    /// After initial block download, until the cost exceeds the budget.
    Auto,
    /// After initial block download, without a budget.
    On,
    /// Never.
    Off,
}

/// When to request block templates from the node.
#[derive(Clone, Copy, Debug, PartialEq, clap::ValueEnum)]
pub enum NextBlockMode {
    /// After initial block download, for at most 1 % of the node's time.
    Auto,
    /// At each poll and each new tip, without a limit.
    On,
    /// Never.
    Off,
}

/// The collector's settings.
#[derive(Clone, Debug)]
pub struct Config {
    /// Time between the starts of two polls.
    pub poll_interval: Duration,
    /// Timeout for the response to one call.
    pub call_timeout: Duration,
    /// When to subscribe to the UTXO cache trace.
    pub utxo_trace: UtxoTraceMode,
    /// When to request block templates from the node.
    pub next_block: NextBlockMode,
    /// Time that the node may wait for the UTXO cache trace in ten minutes.
    pub utxo_trace_budget: Duration,
    /// Exit when the node shuts down, instead of waiting for the next node.
    pub exit_with_node: bool,
    /// JSON-RPC over HTTP, for nodes without JSON-RPC over IPC.
    pub http_rpc: Option<http::HttpRpcConfig>,
    /// Directories that may be the node's data directory, to read the size and free space of its file system.
    pub data_directory: DatadirCandidates,
}

/// A block that became the tip, and the time at which the exporter learned of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct NewTip {
    pub hash: BlockHash,
    pub at: Instant,
}

/// State of the node that is kept from one connection to the next. With it a reconnect neither counts an event twice nor misses one.
#[derive(Default)]
pub(super) struct PersistentState {
    /// Traffic of each peer that is already counted.
    pub peers: PeerTraffic,
    /// Start time and restarts of the node.
    pub node_start: NodeStartTracker,
    /// The warnings that were logged.
    pub warnings: Warnings,
    /// CPU time of the node's threads, by group.
    pub thread_times: ThreadTimes,
    /// The last tip that the node announced.
    pub last_tip: Option<BlockRef>,
    /// The tip up to which blocks are counted.
    pub counted_tip: Option<BlockRef>,
    /// Whether the UTXO cache trace has exceeded its budget. It then stays off for the life of the exporter's process.
    pub trace_over_budget: bool,
}

/// The settings and handles that all connections of a collector share, and the state that is kept between connections.
pub struct Context {
    /// The collector's settings.
    pub config: Config,
    /// The metrics, which are set from the node's responses.
    pub metrics: Arc<Metrics>,
    /// The state of the connection and the last blocks, for the status page.
    pub status: Arc<Status>,
    /// The block log, if there is one.
    pub block_log: Option<ReportQueue>,
    /// Cancelled when the process should exit.
    pub shutdown: CancellationToken,
    pub(super) http_rpc: Option<HttpRpc>,
    /// Limits repeated log lines about failures, across all connections.
    pub(super) repeats: RepeatLimiter,
    pub(super) persistent_state: RefCell<PersistentState>,
    /// The newest tip that was reported during a connection, except the first one: it is not known when that one became the tip.
    pub(super) new_tip: watch::Sender<Option<NewTip>>,
}

impl Context {
    /// Creates a context without any state of a node.
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
            FailureCause::ALL.iter().for_each(|cause| failures.inc_by([cause.name()], 0));
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

    /// Logs a failure that may recur. Each text is logged at most once a minute, with the number of suppressed repeats.
    pub(super) fn warn_limited(&self, text: &str) {
        if let Some(suppressed) = self.repeats.admit(text) {
            warn!("{text}{suppressed}");
        }
    }
}
