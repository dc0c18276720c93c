//! The UTXO cache trace: when to have it, and when it costs the node too much.
//!
//! The node calls us for every coin while it holds its main lock, and each call is a round trip of tens of
//! microseconds, most of it the node's own thread switches. We see the waiting as the time between one call and the
//! next within a burst.

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

/// Calls further apart than this belong to different blocks.
const NEXT_BLOCK: Duration = Duration::from_millis(250);
/// A longer gap between two calls is the node's own work, script checks say, and no round trip.
const LONGEST_ROUND_TRIP: Duration = Duration::from_micros(500);

/// How long the node has waited for us in the present block.
struct Waited {
    budget: Option<Duration>,
    last: Cell<Option<Duration>>,
    total: Cell<Duration>,
    exceeded: Notify,
    /// False once the trace is on its way out: what still arrives is answered and not counted.
    counting: Cell<bool>,
}

impl Waited {
    /// A call arrives.
    fn call(&self, now: Duration) {
        let gap = self.last.replace(Some(now)).map(|last| now.saturating_sub(last));
        match gap {
            Some(gap) if gap <= NEXT_BLOCK => {
                let total = self.total.get() + gap.min(LONGEST_ROUND_TRIP);
                self.total.set(total);
                if self.budget.is_some_and(|budget| total > budget) {
                    self.exceeded.notify_one();
                }
            }
            _ => self.total.set(Duration::ZERO),
        }
    }
}

/// The trace of one connection.
pub struct Trace {
    wanted: bool,
    given_up: bool,
    offered: bool,
    waited: Rc<Waited>,
    subscription: Option<Subscription>,
}

impl Trace {
    /// `given_up` on an earlier connection.
    pub fn new(config: &Config, offered: bool, given_up: bool) -> Self {
        let waited = Waited {
            budget: (config.utxo_trace == UtxoTrace::Auto).then_some(config.utxo_trace_budget),
            last: Cell::default(),
            total: Cell::default(),
            exceeded: Notify::new(),
            counting: Cell::new(false),
        };
        let wanted = config.utxo_trace != UtxoTrace::Off;
        Trace { wanted, given_up, offered, waited: Rc::new(waited), subscription: None }
    }

    /// Counts its events.
    pub fn coins(&self, metrics: &Arc<Metrics>) -> Coins {
        Coins { waited: self.waited.clone(), metrics: metrics.clone() }
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
        self.waited.counting.set(true);
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

    /// Resolves when the node has waited too long in one block.
    pub async fn over_budget(&self) {
        match self.is_active() {
            true => self.waited.exceeded.notified().await,
            false => std::future::pending().await,
        }
    }

    /// For good: returns the subscription to end.
    pub fn give_up(&mut self, metrics: &Metrics) -> Option<Subscription> {
        let budget = self.waited.budget.unwrap_or_default();
        warn!(
            "the UTXO cache trace kept the node waiting for more than {} in one block and is given up; \
             --utxo-trace on keeps it whatever it costs, --utxo-trace-budget allows more",
            humantime::format_duration(budget)
        );
        self.given_up = true;
        self.waited.counting.set(false);
        metrics.utxo_cache.stop();
        self.show(metrics);
        self.take()
    }

    /// The node fell back into initial block download: returns the subscription to end.
    pub fn end_in_ibd(&mut self, polled: &Polled, metrics: &Metrics) -> Option<Subscription> {
        if polled.ibd != Some(true) || !self.is_active() {
            return None;
        }
        info!("initial block download: the UTXO cache trace is off until its end");
        self.waited.counting.set(false);
        metrics.utxo_cache.stop();
        self.take()
    }

    /// The subscription to end.
    pub fn take(&mut self) -> Option<Subscription> {
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
    waited: Rc<Waited>,
    metrics: Arc<Metrics>,
}

impl Coins {
    /// A block is connected: what it took counts no more against the budget.
    pub fn next_block(&self) {
        self.waited.total.set(Duration::ZERO);
    }

    /// Counts a coin that came at a time of the system's monotonic clock. Returns the callback's name.
    pub fn count(&self, event: CoinEvent, at: Duration) -> &'static str {
        let (coins, value, callback) = match event {
            CoinEvent::Added(value) => (&self.metrics.utxo_cache.added, value, "utxoCacheAdd"),
            CoinEvent::Spent(value) => (&self.metrics.utxo_cache.spent, value, "utxoCacheSpend"),
            CoinEvent::Uncached(value) => (&self.metrics.utxo_cache.uncached, value, "utxoCacheUncache"),
        };
        if self.waited.counting.get() {
            self.waited.call(at);
            coins.inc(value);
            debug!(?event);
        }
        callback
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waited(budget: Duration) -> Waited {
        Waited {
            budget: Some(budget),
            last: Cell::default(),
            total: Cell::default(),
            exceeded: Notify::new(),
            counting: Cell::new(true),
        }
    }

    #[test]
    fn waiting_adds_up_within_a_block_and_starts_anew_with_the_next() {
        let waited = waited(Duration::from_millis(50));
        let mut now = Duration::from_secs(1000);
        for _ in 0..=1000 {
            waited.call(now);
            now += Duration::from_micros(40);
        }
        assert_eq!(waited.total.get(), Duration::from_millis(40));
        now += Duration::from_millis(100); // the node checks scripts
        waited.call(now);
        assert_eq!(waited.total.get(), Duration::from_millis(40) + LONGEST_ROUND_TRIP);
        waited.call(now + NEXT_BLOCK * 2);
        assert_eq!(waited.total.get(), Duration::ZERO);
    }
}
