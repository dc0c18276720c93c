//! What every connection of a collector works with.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::block;
use super::memory::Memory;
use crate::metrics::Metrics;

/// When to subscribe to the UTXO cache trace, which makes the node slower.
#[derive(Clone, Copy, Debug, PartialEq, clap::ValueEnum)]
pub enum UtxoTrace {
    /// Out of initial block download, until it costs the node more than the budget.
    Auto,
    /// Out of initial block download, whatever it costs the node.
    On,
    /// Never.
    Off,
}

/// What the collector was told to do.
#[derive(Clone, Debug)]
pub struct Config {
    /// Between the starts of two polls.
    pub poll_interval: Duration,
    /// For the answer to one call.
    pub call_timeout: Duration,
    /// Whether to subscribe to the UTXO cache trace.
    pub utxo_trace: UtxoTrace,
    /// How long the node may wait for the trace in ten minutes.
    pub utxo_trace_budget: Duration,
    /// End when the node shuts down, instead of waiting for the next one.
    pub exit_with_node: bool,
}

/// The state of the connection, for pages and health checks.
#[derive(Clone, Debug, PartialEq)]
pub enum State {
    /// Not connected, and why.
    Disconnected(String),
    /// Connected; the first poll has not succeeded yet, or the last one failed, and why.
    Connected(String),
    /// Connected and polled.
    Polled {
        /// What the node offers.
        interfaces: Vec<&'static str>,
        /// The node's own name, `/Satoshi:31.99.0/`, if it tells.
        node: Option<String>,
    },
}

/// What every connection of a collector works with.
pub struct Context {
    /// What to do.
    pub config: Config,
    /// Where answers are shown.
    pub metrics: Arc<Metrics>,
    /// Is told about every change.
    pub state: watch::Sender<State>,
    /// Cancelled when the process should end.
    pub shutdown: CancellationToken,
    pub(super) memory: RefCell<Memory>,
    pub(super) blocks: block::Counter,
}

impl Context {
    /// Nothing is remembered yet. `state` is told about every change; `shutdown` is cancelled when the process should end.
    pub fn new(
        config: Config,
        metrics: Arc<Metrics>,
        state: watch::Sender<State>,
        shutdown: CancellationToken,
    ) -> Self {
        let blocks = block::Counter::start(metrics.clone());
        Context { config, metrics, state, shutdown, memory: RefCell::default(), blocks }
    }
}
