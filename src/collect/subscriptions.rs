//! The subscriptions of one connection: when they start and end, and where their events go.

use std::rc::Rc;

use tracing::{debug, error, warn};

use super::context::Context;
use super::notifications;
use super::poll::Polled;
use super::tip::TipWatch;
use super::utxo_trace::{Coins, Trace};
use crate::ipc::guard::{Event, Notice};
use crate::ipc::{CallError, Chain, Connection, Interfaces, Subscription, Thread, Tracing};

/// What the node calls back for. The guard ends what is left at the end of the connection.
pub struct Subscriptions {
    chain: Option<Chain>,
    tracing: Option<Tracing>,
    chain_subscription: Option<Subscription>,
    /// The UTXO cache trace.
    pub trace: Trace,
    context: Rc<Context>,
}

impl Subscriptions {
    /// None yet. They are started and ended on a thread of their own.
    pub fn new(interfaces: &Interfaces, on: &Thread, context: &Rc<Context>) -> Self {
        let tracing = interfaces.tracing.as_ref().filter(|_| interfaces.mining.is_some());
        Subscriptions {
            chain: interfaces.chain.as_ref().map(|chain| chain.on(on)),
            tracing: tracing.map(|tracing| tracing.on(on)),
            chain_subscription: None,
            trace: Trace::new(tracing, context),
            context: context.clone(),
        }
    }

    /// Whether the node calls back.
    pub fn any(&self) -> bool {
        self.chain_subscription.is_some() || self.trace.is_active()
    }

    /// Subscribes to the chain's notifications, if the node has them, when the blocks that came before are counted. Only an
    /// error that ends the connection is one here.
    pub async fn start_chain(&mut self, tip: &mut Option<TipWatch>) -> Result<(), CallError> {
        let Some(chain) = &self.chain else { return Ok(()) };
        if tip.is_none() {
            warn!("not subscribing: without Mining the node cannot tell us when it shuts down");
            return Ok(());
        }
        TipWatch::caught_up(tip).await;
        match chain.subscribe().await {
            Ok(subscription) => {
                notifications::start(&self.context.metrics);
                self.chain_subscription = Some(subscription);
            }
            Err(error @ CallError::Disconnected(_)) => return Err(error),
            Err(error) => warn!("cannot subscribe to the chain's notifications: {error}"),
        }
        Ok(())
    }

    /// A poll succeeded: starts or ends the UTXO cache trace with initial block download.
    pub async fn polled(&mut self, polled: &Polled, connection: &Connection) {
        let metrics = &self.context.metrics;
        if let Some(subscription) = self.trace.end_in_ibd(polled, metrics) {
            tokio::select! {
                ended = subscription.end() => match ended {
                    Ok(()) => debug!("unsubscribed from the UTXO cache trace"),
                    Err(error) => warn!("cannot unsubscribe from the UTXO cache trace: {error}"),
                },
                reason = connection.closed() => warn!("cannot unsubscribe from the UTXO cache trace: {reason}"),
            }
        }
        if let Some(tracing) = &self.tracing
            && self.trace.is_due(polled)
        {
            self.trace.start(tracing, metrics).await;
        }
        self.trace.show(metrics);
    }
}

/// Counts what the guard hands on.
pub fn count_notices(context: Rc<Context>, coins: Coins) -> impl FnMut(Notice) {
    move |Notice { event, waited }| {
        let metrics = &context.metrics;
        let callback = match event {
            Event::Chain(event) => notifications::count(event, metrics, &context.blocks),
            Event::Coin(event) => coins.count(event),
            Event::OverBudget => return coins.over_budget(),
            Event::Dropped(events) => {
                warn!(events, "the exporter was too slow: callbacks were answered and not counted");
                return metrics.exporter.events_dropped.inc_by(["callback"], events);
            }
            Event::Rejected { call, reason } => {
                error!(
                    "the guard rejected a call that the exporter must not make ({call}: {reason}); the node did not receive it. This is \
                     a fault of the exporter, or somebody controls it: restart it and report this line"
                );
                return metrics.exporter.rejected_calls.inc_by([&*call], 1);
            }
            // What the guard tells about the connection does not get here.
            Event::Subscribed(_) | Event::Released(_) | Event::NodeShutsDown => return,
        };
        metrics.exporter.callbacks.inc_by([callback], 1);
        metrics.exporter.callback_duration.observe(waited.as_secs_f64());
    }
}
