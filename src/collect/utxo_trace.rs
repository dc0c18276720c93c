//! The UTXO cache trace: when to subscribe to it. The guard reports when it exceeds its budget.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::Notify;
use tracing::{debug, info, warn};

use super::context::{Context, UtxoTraceMode};
use super::poll::PollResult;
use crate::ipc::{CoinEvent, Subscription, Tracing};
use crate::metrics::Metrics;

/// The state of the trace on one connection.
enum TraceState {
    /// The node has no such interface.
    NotOffered,
    /// Not configured, or rejected by the node.
    Off,
    /// Due when the node is out of initial block download.
    Waiting,
    /// Subscribed.
    Active(Subscription),
    /// It exceeded the budget, on this connection or an earlier one.
    OverBudget,
}

/// The trace of one connection.
pub struct UtxoCacheTrace {
    state: TraceState,
    exceeded: Rc<Notify>,
    /// False once the trace is being ended: events that still arrive are not counted.
    counting: Rc<Cell<bool>>,
}

impl UtxoCacheTrace {
    /// The trace of a node that offers it if `tracing` is there.
    pub fn new(tracing: Option<&Tracing>, context: &Context) -> Self {
        let state = match (tracing, context.config.utxo_trace) {
            (None, _) => TraceState::NotOffered,
            (Some(_), UtxoTraceMode::Off) => TraceState::Off,
            (Some(_), _) if context.persistent_state.borrow().trace_over_budget => TraceState::OverBudget,
            (Some(_), _) => TraceState::Waiting,
        };
        UtxoCacheTrace { state, exceeded: Rc::default(), counting: Rc::default() }
    }

    /// Counts its events.
    pub fn coins(&self, metrics: &Arc<Metrics>) -> CoinCounter {
        CoinCounter {
            exceeded: self.exceeded.clone(),
            counting: self.counting.clone(),
            metrics: metrics.clone(),
        }
    }

    /// Whether it is subscribed to.
    pub fn is_active(&self) -> bool {
        matches!(self.state, TraceState::Active(_))
    }

    /// Whether to subscribe now.
    pub fn is_due(&self, polled: &PollResult) -> bool {
        matches!(self.state, TraceState::Waiting) && polled.ibd == Some(false)
    }

    /// Subscribes.
    pub async fn start(&mut self, tracing: &Tracing, metrics: &Metrics) {
        // The first events may arrive before the answer.
        metrics.utxo_cache.start();
        self.counting.set(true);
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

    /// Resolves when the node has waited too long.
    pub async fn over_budget(&self) {
        if self.is_active() { self.exceeded.notified().await } else { std::future::pending().await }
    }

    /// The node has waited too long: turns the trace off for the life of the process. The guard ends the subscription.
    pub fn stop_over_budget(&mut self, context: &Context) {
        warn!(
            "the UTXO cache trace kept the node waiting for more than {} in ten minutes and is now disabled; raise \
             --utxo-trace-budget, or use --utxo-trace on for no limit",
            humantime::format_duration(context.config.utxo_trace_budget)
        );
        context.persistent_state.borrow_mut().trace_over_budget = true;
        self.counting.set(false);
        context.metrics.utxo_cache.stop();
        self.state = TraceState::OverBudget;
        self.show(&context.metrics);
    }

    /// The node fell back into initial block download: returns the subscription to end.
    pub fn end_in_ibd(&mut self, polled: &PollResult, metrics: &Metrics) -> Option<Subscription> {
        if polled.ibd != Some(true) || !self.is_active() {
            return None;
        }
        info!("the node is in initial block download: the UTXO cache trace is off until it ends");
        self.counting.set(false);
        metrics.utxo_cache.stop();
        match std::mem::replace(&mut self.state, TraceState::Waiting) {
            TraceState::Active(subscription) => Some(subscription),
            _ => None,
        }
    }

    /// Shows the state as a metric, where the node offers a trace.
    pub fn show(&self, metrics: &Metrics) {
        let state = match self.state {
            TraceState::NotOffered => return,
            TraceState::Off => "off",
            TraceState::Waiting => "ibd",
            TraceState::Active(_) => "active",
            TraceState::OverBudget => "over_budget",
        };
        metrics.exporter.utxo_trace.replace([([state], 1.0)]);
    }
}

/// Counts the trace's events.
pub struct CoinCounter {
    exceeded: Rc<Notify>,
    counting: Rc<Cell<bool>>,
    metrics: Arc<Metrics>,
}

impl CoinCounter {
    /// The guard has ended the trace.
    pub fn over_budget(&self) {
        self.exceeded.notify_one();
    }

    /// Counts a coin. Returns the callback's name.
    pub fn count(&self, event: CoinEvent) -> &'static str {
        let cache = &self.metrics.utxo_cache;
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
