//! Decides when to subscribe to the UTXO cache trace, and counts its events. With the trace, the node makes a callback
//! for each coin that it adds to its UTXO cache, spends or drops, and waits for the reply. The guard (the process that
//! relays between the node and the exporter) replies to the callbacks, and reports when the node's waiting time exceeds
//! the trace's time budget.

use std::cell::Cell;
use std::rc::Rc;

use tokio::sync::Notify;
use tracing::{debug, info, warn};

use super::context::{Context, UtxoTraceMode};
use crate::ipc::{CoinEvent, Subscription, Tracing};
use crate::metrics::{Metrics, UtxoCacheMetrics};

/// Whether the exporter is subscribed to the UTXO cache trace on one connection, and if not, the reason.
enum TraceState {
    /// The trace is disabled by configuration, or the call that subscribes to the trace failed.
    Off,
    /// The exporter waits for the end of initial block download and then subscribes.
    Waiting,
    /// The exporter is subscribed to the trace.
    Active(Subscription),
    /// The trace exceeded its time budget on this or an earlier connection, and stays off until the exporter is
    /// restarted.
    OverBudget,
}

/// The exporter's subscription to the UTXO cache trace on one connection, with the decision when the subscription
/// starts and ends.
pub struct UtxoCacheTrace {
    /// `None` if the node has no Tracing interface, or no Mining interface, without which the exporter does not
    /// subscribe to the trace.
    tracing: Option<Tracing>,
    state: TraceState,
    /// The counter of the trace's events, which the task that receives the guard's events shares.
    pub coins: Rc<CoinCounter>,
}

impl UtxoCacheTrace {
    /// Creates the state for a new connection. `tracing` is `None` if the node does not offer the trace.
    pub fn new(tracing: Option<Tracing>, context: &Context) -> Self {
        let state = match context.config.utxo_trace {
            UtxoTraceMode::Off => TraceState::Off,
            _ if context.persistent_state.borrow().trace_over_budget => TraceState::OverBudget,
            _ => TraceState::Waiting,
        };
        UtxoCacheTrace { tracing, state, coins: Rc::default() }
    }

    /// Whether the exporter is subscribed to the trace.
    pub fn is_active(&self) -> bool {
        matches!(self.state, TraceState::Active(_))
    }

    /// Subscribes to the trace after a poll that found the node not in initial block download, and ends the
    /// subscription after a poll that found the node in initial block download again.
    pub async fn on_poll(&mut self, ibd: Option<bool>, metrics: &Metrics) {
        match (&self.state, ibd) {
            (TraceState::Waiting, Some(false)) => self.start(metrics).await,
            (TraceState::Active(_), Some(true)) => self.end_in_ibd(metrics).await,
            _ => {}
        }
        self.show(metrics);
    }

    async fn start(&mut self, metrics: &Metrics) {
        let Some(tracing) = &self.tracing else { return };
        // Counting starts before the subscribe call, because the first events may arrive before the response to the
        // call.
        metrics.utxo_cache.start();
        self.coins.counting.set(true);
        self.state = match tracing.subscribe().await {
            Ok(subscription) => {
                info!("subscribed to the UTXO cache trace");
                TraceState::Active(subscription)
            }
            Err(error) => {
                metrics.utxo_cache.stop();
                warn!("cannot subscribe to the UTXO cache trace: {error}");
                TraceState::Off
            }
        };
    }

    /// Turns the trace off until the exporter is restarted, because the trace has exceeded its time budget. The guard
    /// ends the subscription.
    pub fn stop_over_budget(&mut self, context: &Context) {
        warn!(
            "the UTXO cache trace kept the node waiting for more than {} in ten minutes and is now disabled; raise \
             --utxo-trace-budget, or use --utxo-trace on for no limit",
            humantime::format_duration(context.config.utxo_trace_budget)
        );
        context.persistent_state.borrow_mut().trace_over_budget = true;
        self.coins.counting.set(false);
        context.metrics.utxo_cache.stop();
        self.state = TraceState::OverBudget;
        self.show(&context.metrics);
    }

    async fn end_in_ibd(&mut self, metrics: &Metrics) {
        info!("the node is in initial block download: the UTXO cache trace is off until it ends");
        self.coins.counting.set(false);
        metrics.utxo_cache.stop();
        if let TraceState::Active(subscription) = std::mem::replace(&mut self.state, TraceState::Waiting) {
            match subscription.end().await {
                Ok(()) => debug!("unsubscribed from the UTXO cache trace"),
                Err(error) => warn!("cannot unsubscribe from the UTXO cache trace: {error}"),
            }
        }
    }

    /// Exports the state of the trace as a metric, if the node offers the trace.
    fn show(&self, metrics: &Metrics) {
        if self.tracing.is_none() {
            return;
        }
        let state = match self.state {
            TraceState::Off => "off",
            TraceState::Waiting => "ibd",
            TraceState::Active(_) => "active",
            TraceState::OverBudget => "over_budget",
        };
        metrics.exporter.utxo_trace.replace([([state], 1.0)]);
    }
}

/// Counter of the changes in the node's UTXO cache that the node reports on one connection, through the IPC interface
/// Tracing.
#[derive(Default)]
pub struct CoinCounter {
    /// Notified when the guard reports that the trace has exceeded its time budget.
    pub exceeded: Notify,
    /// Whether the events of the trace are counted. Events that arrive while the subscription is being ended are not
    /// counted.
    counting: Cell<bool>,
}

impl CoinCounter {
    /// Counts one event of the UTXO cache trace: a coin was added to a cache, spent from it, or dropped from it
    /// unspent. Returns the name of the callback by which the node reported the event.
    pub fn count(&self, event: CoinEvent, cache: &UtxoCacheMetrics) -> &'static str {
        let (coins, total, value, callback) = match event {
            CoinEvent::Added(value) => (&cache.added, &cache.added_value, value, "utxoCacheAdd"),
            CoinEvent::Spent(value) => (&cache.spent, &cache.spent_value, value, "utxoCacheSpend"),
            CoinEvent::Uncached(value) => (&cache.uncached, &cache.uncached_value, value, "utxoCacheUncache"),
        };
        if self.counting.get() {
            coins.inc();
            total.inc_by(u64::try_from(value).unwrap_or(0)); // no coin has a negative value
            debug!(?event);
        }
        callback
    }
}
