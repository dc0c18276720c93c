//! The UTXO cache trace: when to have it. When it costs the node too much, the guard says.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tracing::{debug, info, warn};

use super::poll::Polled;
use super::{Config, UtxoTrace};
use crate::ipc::{CoinEvent, Subscription, Thread, Tracing};
use crate::metrics::Metrics;

/// The trace of one connection.
pub struct Trace {
    wanted: bool,
    given_up: bool,
    offered: bool,
    budget: Duration,
    exceeded: Rc<Notify>,
    /// False once the trace is on its way out: what still arrives is not counted.
    counting: Rc<Cell<bool>>,
    subscription: Option<Subscription>,
}

impl Trace {
    /// `given_up` on an earlier connection.
    pub fn new(config: &Config, offered: bool, given_up: bool) -> Self {
        let wanted = config.utxo_trace != UtxoTrace::Off;
        Trace {
            wanted,
            given_up,
            offered,
            budget: config.utxo_trace_budget,
            exceeded: Rc::default(),
            counting: Rc::default(),
            subscription: None,
        }
    }

    /// Counts its events.
    pub fn coins(&self, metrics: &Arc<Metrics>) -> Coins {
        Coins { exceeded: self.exceeded.clone(), counting: self.counting.clone(), metrics: metrics.clone() }
    }

    /// Whether the node has it.
    pub fn is_active(&self) -> bool {
        self.subscription.is_some()
    }

    /// Whether to subscribe now.
    pub fn is_due(&self, polled: &Polled) -> bool {
        self.offered && self.wanted && !self.given_up && !self.is_active() && polled.ibd == Some(false)
    }

    /// Subscribes. Gives the call all the time it needs: without its answer there would be no way to unsubscribe.
    pub async fn start(&mut self, tracing: &Tracing, on: &Thread, metrics: &Arc<Metrics>) {
        // The first events may arrive before the answer.
        metrics.utxo_cache.start();
        self.counting.set(true);
        match tracing.subscribe(&on.without_deadline()).await {
            Ok(subscription) => {
                info!("the UTXO cache trace is on");
                self.subscription = Some(subscription);
            }
            Err(error) => {
                metrics.utxo_cache.stop();
                warn!("cannot subscribe to the UTXO cache trace: {error}");
                self.wanted = false;
            }
        }
    }

    /// Resolves when the node has waited too long.
    pub async fn over_budget(&self) {
        match self.is_active() {
            true => self.exceeded.notified().await,
            false => std::future::pending().await,
        }
    }

    /// For good. The guard ends the subscription.
    pub fn give_up(&mut self, metrics: &Metrics) {
        warn!(
            "the UTXO cache trace kept the node waiting for more than {} in ten minutes and is given up; \
             --utxo-trace on keeps it whatever it costs, --utxo-trace-budget allows more",
            humantime::format_duration(self.budget)
        );
        self.given_up = true;
        self.counting.set(false);
        metrics.utxo_cache.stop();
        self.subscription = None;
        self.show(metrics);
    }

    /// The node fell back into initial block download: returns the subscription to end.
    pub fn end_in_ibd(&mut self, polled: &Polled, metrics: &Metrics) -> Option<Subscription> {
        if polled.ibd != Some(true) || !self.is_active() {
            return None;
        }
        info!("initial block download: the UTXO cache trace is off until its end");
        self.counting.set(false);
        metrics.utxo_cache.stop();
        self.subscription.take()
    }

    /// Shows the state as a metric, where the node offers a trace.
    pub fn show(&self, metrics: &Metrics) {
        if !self.offered {
            return;
        }
        let state = match self {
            Trace { given_up: true, .. } => "over_budget",
            Trace { wanted: false, .. } => "off",
            Trace { subscription: Some(_), .. } => "active",
            _ => "ibd",
        };
        metrics.exporter.utxo_trace.replace([([state], 1.0)]);
    }
}

/// Counts what the guard tells.
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
        let (coins, value, callback) = match event {
            CoinEvent::Added(value) => (&self.metrics.utxo_cache.added, value, "utxoCacheAdd"),
            CoinEvent::Spent(value) => (&self.metrics.utxo_cache.spent, value, "utxoCacheSpend"),
            CoinEvent::Uncached(value) => (&self.metrics.utxo_cache.uncached, value, "utxoCacheUncache"),
        };
        if self.counting.get() {
            coins.inc(value);
            debug!(?event);
        }
        callback
    }
}
