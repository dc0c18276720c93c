//! The context of every connection of a collector.

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
use crate::ipc::{BlockHash, BlockRef};
use crate::json_rpc::FailureCause;
use crate::json_rpc::http::{self, HttpRpc};
use crate::logging::RepeatLimiter;
use crate::metrics::Metrics;
use crate::status::Status;

/// When to subscribe to the UTXO cache trace, which makes the node slower.
#[derive(Clone, Copy, Debug, PartialEq, clap::ValueEnum)]
pub enum UtxoTraceMode {
    /// After initial block download, until the cost exceeds the budget.
    Auto,
    /// After initial block download, without a budget.
    On,
    /// Never.
    Off,
}

/// When to have the node build block templates.
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
    /// Between the starts of two polls.
    pub poll_interval: Duration,
    /// For the answer to one call.
    pub call_timeout: Duration,
    /// Whether to subscribe to the UTXO cache trace.
    pub utxo_trace: UtxoTraceMode,
    /// When to have the node build block templates.
    pub next_block: NextBlockMode,
    /// How long the node may wait for the trace in ten minutes.
    pub utxo_trace_budget: Duration,
    /// End when the node shuts down, instead of waiting for the next one.
    pub exit_with_node: bool,
    /// JSON-RPC over HTTP, where IPC has none.
    pub http_rpc: Option<http::HttpRpcConfig>,
    /// Where the node's blocks may be, to look at its file system.
    pub data_directory: DatadirCandidates,
}

/// A block that became the tip, and when the exporter learned of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct NewTip {
    pub hash: BlockHash,
    pub at: Instant,
}

/// State of a node that is kept from one connection to the next: a reconnect neither counts twice nor misses anything.
#[derive(Default)]
pub(super) struct PersistentState {
    /// Traffic by peer.
    pub peers: PeerTraffic,
    /// Its start and restarts.
    pub node_start: NodeStartTracker,
    /// The warnings that were logged.
    pub warnings: Warnings,
    /// CPU time of the node's threads.
    pub thread_times: ThreadTimes,
    /// The last tip that the node announced.
    pub last_tip: Option<BlockRef>,
    /// The tip up to which blocks are counted.
    pub counted_tip: Option<BlockRef>,
    /// The UTXO cache trace went over its budget once: it stays off for the life of the process.
    pub trace_over_budget: bool,
}

/// The context of every connection of a collector.
pub struct Context {
    /// Its settings.
    pub config: Config,
    /// Set from the node's answers.
    pub metrics: Arc<Metrics>,
    /// The connection's state and the last blocks, for pages.
    pub status: Arc<Status>,
    /// Cancelled when the process should end.
    pub shutdown: CancellationToken,
    pub(super) http_rpc: Option<HttpRpc>,
    /// Of log lines about failures, over all connections.
    pub(super) repeats: RepeatLimiter,
    pub(super) persistent_state: RefCell<PersistentState>,
    /// The newest tip that came while there was a connection.
    pub(super) new_tip: watch::Sender<Option<NewTip>>,
}

impl Context {
    /// Without any state of a node.
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
        Context { config, http_rpc, repeats, metrics, status, shutdown, persistent_state, new_tip }
    }

    /// Logs a failure that may come and go: each text at most once a minute, with the number of times.
    pub(super) fn warn_limited(&self, text: &str) {
        if let Some(suppressed) = self.repeats.admit(text) {
            warn!("{text}{suppressed}");
        }
    }
}
