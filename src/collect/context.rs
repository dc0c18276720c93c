//! Data that all connections of a collector (the exporter's main loop) share: the settings, the handles of the metrics
//! and of the status page, and the state that is kept from one connection to the next.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::connected_blocks::{BlockRange, ConnectedBlocks};
use super::node_start::NodeStartTracker;
use super::peers::PeerTraffic;
use super::poll::DatadirCandidates;
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

/// Settings of the collector, the part of the exporter that polls the node. The fields with `#[arg]` are options of
/// bitcoind-ipc-exporter; the binary sets the other fields.
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

/// State about the node that is kept from one connection to the next. With this state, an event shortly before or after
/// a reconnect, for example a new block, is counted exactly once.
#[derive(Default)]
pub(super) struct PersistentState {
    /// The traffic totals (bytes, addresses) of each P2P peer at the last poll, which are already included in the
    /// exporter's traffic counters.
    pub peers: PeerTraffic,
    /// Start time, number of restarts and identity of the node's process.
    pub node_start: NodeStartTracker,
    /// The warnings in the node's last response to getnetworkinfo or getblockchaininfo, which have been logged.
    pub warnings: Warnings,
    /// CPU time that the node's threads have used, by group of threads.
    pub thread_times: ThreadTimes,
    /// The last tip that the node has reported.
    pub last_tip: Option<BlockRef>,
    /// The last counted tip: the next count of connected and disconnected blocks starts from this block.
    pub counted_tip: Option<BlockRef>,
    /// The connected blocks whose contents (transactions, fees and others) are still to be counted.
    pub connected_blocks: ConnectedBlocks,
    /// Whether the UTXO cache trace has exceeded its budget. A trace that has exceeded its budget stays off until the
    /// exporter is restarted.
    pub trace_over_budget: bool,
}

/// Data that all connections of a collector share: settings, handles, and state that is kept between connections.
pub struct Context {
    /// The collector's settings.
    pub config: Config,
    /// The metrics, whose values are set from the node's responses and events.
    pub metrics: Arc<Metrics>,
    /// The data of the exporter's status page: the state of the connection to the node, and the node's last blocks.
    pub status: Arc<Status>,
    /// The queue of blocks to be written to the block log, a SQLite file with a row for each connected block; `None` if
    /// the block log is disabled.
    pub block_log: Option<ReportQueue>,
    /// Token that is cancelled when the exporter has to exit.
    pub shutdown: CancellationToken,
    pub(super) http_rpc: Option<HttpRpc>,
    /// Limiter of repeated log lines about failures, which all connections share.
    pub(super) repeats: RepeatLimiter,
    pub(super) persistent_state: RefCell<PersistentState>,
    /// The newest tip that the node has reported, for requests of block templates. The first tip of each connection is
    /// not stored, because the time at which this block became the tip is unknown.
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
        let http_rpc = config.http_rpc.clone().map(|settings| {
            for cause in FailureCause::NAMES {
                metrics.exporter.http_rpc_failures.inc_by([cause], 0);
            }
            let metrics = metrics.clone();
            let count =
                move |cause: FailureCause| metrics.exporter.http_rpc_failures.inc_by([cause.name()], 1);
            HttpRpc::new(settings, config.call_timeout, count)
        });
        Context {
            config,
            http_rpc,
            repeats: RepeatLimiter::default(),
            metrics,
            status,
            block_log: None,
            shutdown,
            persistent_state: RefCell::default(),
            new_tip: watch::Sender::default(),
        }
    }

    /// Adds connected blocks to the queue of blocks whose contents are to be counted by later polls.
    pub(super) fn queue_connected(&self, range: BlockRange) {
        let dropped = self.persistent_state.borrow_mut().connected_blocks.push(range);
        let uncounted = &self.metrics.blocks.uncounted_blocks;
        // The series of the counter of uncounted blocks exists only if the node has JSON-RPC, because queued blocks are
        // counted with the JSON-RPC method getblockstats.
        if dropped > 0 && uncounted.get().is_some() {
            uncounted.inc_by(dropped);
        }
    }

    /// Logs a warning that may recur. Each text is logged at most once a minute, with the number of lines with this
    /// text that were suppressed since then.
    pub(super) fn warn_limited(&self, text: &str) {
        if let Some(suppressed) = self.repeats.admit(text) {
            warn!("{text}{suppressed}");
        }
    }
}
