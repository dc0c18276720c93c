//! The UTXO cache trace: when to subscribe to it. The guard says when it costs the node too much.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::Notify;
use tracing::{debug, info, warn};

use super::context::{Context, UtxoTrace};
use super::poll::Polled;
use crate::ipc::{CoinEvent, Subscription, Tracing};
use crate::metrics::Metrics;

/// The state of the trace on one connection.
enum State {
    /// The node has no such interface.
    NotOffered,
    /// Not wanted, or refused by the node.
    Off,
    /// Due when the node is out of initial block download.
    Waiting,
    /// Subscribed.
    Active(Subscription),
    /// It cost the node more than the budget, on this connection or an earlier one.
    GivenUp,
}

/// The trace of one connection.
pub struct Trace {
    state: State,
    exceeded: Rc<Notify>,
    /// False once the trace is being ended: events that still arrive are not counted.
    counting: Rc<Cell<bool>>,
}

impl Trace {
    /// The trace of a node that offers it if `tracing` is there.
    pub fn new(tracing: Option<&Tracing>, context: &Context) -> Self {
        let state = match (tracing, context.config.utxo_trace) {
            (None, _) => State::NotOffered,
            (Some(_), UtxoTrace::Off) => State::Off,
            (Some(_), _) if context.memory.borrow().trace_given_up => State::GivenUp,
            (Some(_), _) => State::Waiting,
        };
        Trace { state, exceeded: Rc::default(), counting: Rc::default() }
    }

    /// Counts its events.
    pub fn coins(&self, metrics: &Arc<Metrics>) -> Coins {
        Coins { exceeded: self.exceeded.clone(), counting: self.counting.clone(), metrics: metrics.clone() }
    }

    /// Whether it is subscribed to.
    pub fn is_active(&self) -> bool {
        matches!(self.state, State::Active(_))
    }

    /// Whether to subscribe now.
    pub fn is_due(&self, polled: &Polled) -> bool {
        matches!(self.state, State::Waiting) && polled.ibd == Some(false)
    }

    /// Subscribes.
    pub async fn start(&mut self, tracing: &Tracing, metrics: &Metrics) {
        // The first events may arrive before the answer.
        metrics.utxo_cache.start();
        self.counting.set(true);
        self.state = match tracing.subscribe().await {
            Ok(subscription) => {
                info!("subscribed to the UTXO cache trace");
                State::Active(subscription)
            }
            Err(error) => {
                metrics.utxo_cache.stop();
                warn!("cannot subscribe to the UTXO cache trace: {error}");
                State::Off
            }
        };
    }

    /// Resolves when the node has waited too long.
    pub async fn over_budget(&self) {
        if self.is_active() { self.exceeded.notified().await } else { std::future::pending().await }
    }

    /// The node has waited too long: gives the trace up for the life of the process. The guard ends the subscription.
    pub fn give_up(&mut self, context: &Context) {
        warn!(
            "the UTXO cache trace kept the node waiting for more than {} in ten minutes and is now disabled; raise \
             --utxo-trace-budget, or use --utxo-trace on for no limit",
            humantime::format_duration(context.config.utxo_trace_budget)
        );
        context.memory.borrow_mut().trace_given_up = true;
        self.counting.set(false);
        context.metrics.utxo_cache.stop();
        self.state = State::GivenUp;
        self.show(&context.metrics);
    }

    /// The node fell back into initial block download: returns the subscription to end.
    pub fn end_in_ibd(&mut self, polled: &Polled, metrics: &Metrics) -> Option<Subscription> {
        if polled.ibd != Some(true) || !self.is_active() {
            return None;
        }
        info!("the node is in initial block download: the UTXO cache trace is off until it ends");
        self.counting.set(false);
        metrics.utxo_cache.stop();
        match std::mem::replace(&mut self.state, State::Waiting) {
            State::Active(subscription) => Some(subscription),
            _ => None,
        }
    }

    /// Shows the state as a metric, where the node offers a trace.
    pub fn show(&self, metrics: &Metrics) {
        let state = match self.state {
            State::NotOffered => return,
            State::Off => "off",
            State::Waiting => "ibd",
            State::Active(_) => "active",
            State::GivenUp => "over_budget",
        };
        metrics.exporter.utxo_trace.replace([([state], 1.0)]);
    }
}

/// Counts the trace's events.
pub struct Coins {
    exceeded: Rc<Notify>,
    counting: Rc<Cell<bool>>,
    metrics: Arc<Metrics>,
}

impl Coins {
    /// The guard has given the trace up.
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
