//! Starts and ends the subscriptions of one connection, and counts the events that the node then reports by callbacks.
//! There are two subscriptions: to chain notifications (connected blocks, and changes of the mempool), and to the UTXO
//! cache trace (coins added to, spent from or dropped from the node's UTXO cache). A separate task makes the calls that
//! start and end subscriptions, because the node may respond late to these calls.

use std::cell::Cell;
use std::rc::Rc;

use tokio::sync::{oneshot, watch};
use tokio_util::task::AbortOnDropHandle;
use tracing::{error, warn};

use super::context::Context;
use super::notifications;
use super::session::IpcParts;
use super::utxo_trace::{CoinCounter, UtxoCacheTrace};
use crate::ipc::guard::{GuardEvent, Rejection, TimedEvent};
use crate::ipc::{Chain, Interfaces, Subscription};
use crate::json_rpc::CallError;

/// Handle to the task that starts and ends the subscriptions of one connection. When the connection is closed, the
/// guard (the process that relays between the node and the exporter) ends the subscriptions that are still active.
pub struct Subscriptions {
    /// Whether the last successful poll found the node in initial block download; `None` before the first poll, or if
    /// the node's responses did not show it.
    ibd: watch::Sender<Option<bool>>,
    any: Rc<Cell<bool>>,
    _task: AbortOnDropHandle<()>,
}

impl Subscriptions {
    /// Starts the task that subscribes to chain notifications and to the UTXO cache trace. The task's calls run on
    /// `ipc.subscribing`, a thread of the node that runs no other calls. `caught_up` resolves when the exporter may
    /// subscribe to chain notifications; `None` if the exporter runs no watch for new tips (see `tip`) on this
    /// connection. Returns `None` if the connection has no guard, because no process would then end the subscriptions
    /// if the exporter exits.
    pub fn start(
        interfaces: &Interfaces,
        ipc: &mut IpcParts,
        caught_up: Option<oneshot::Receiver<()>>,
        context: &Rc<Context>,
    ) -> Option<Self> {
        let guard = ipc.guard.as_mut()?;
        let thread = &ipc.subscribing;
        let tracing = interfaces.tracing.as_ref().filter(|_| interfaces.mining.is_some());
        let (ibd, polls) = watch::channel(None);
        let any = Rc::<Cell<bool>>::default();
        let task = SubscriptionTask {
            chain: interfaces.chain.as_ref().map(|chain| chain.on_thread(thread)),
            chain_subscription: None,
            trace: UtxoCacheTrace::new(tracing.map(|tracing| tracing.on_thread(thread)), context),
            any: any.clone(),
            context: context.clone(),
        };
        guard.forward_events(count_events(context.clone(), task.trace.coins.clone()));
        let task = AbortOnDropHandle::new(tokio::task::spawn_local(task.run(caught_up, polls)));
        Some(Subscriptions { ibd, any, _task: task })
    }

    /// Whether a subscription is active, which means that the node makes callbacks.
    pub fn is_any_active(&self) -> bool {
        self.any.get()
    }

    /// Passes to the subscription task whether a successful poll found the node in initial block download. The task
    /// starts the UTXO cache trace when the node is not in initial block download, and ends the trace when the node is
    /// in initial block download again.
    pub fn on_poll(&self, ibd: Option<bool>) {
        self.ibd.send_replace(ibd);
    }
}

/// The task that starts and ends the subscriptions of one connection. [`Subscriptions`] is the handle to this task.
struct SubscriptionTask {
    chain: Option<Chain>,
    chain_subscription: Option<Subscription>,
    trace: UtxoCacheTrace,
    /// Whether a subscription is active, which means that the node makes callbacks.
    any: Rc<Cell<bool>>,
    context: Rc<Context>,
}

impl SubscriptionTask {
    /// Runs the task until the session ends. Without a watch for new tips (`caught_up` is `None`), the exporter cannot
    /// detect the node's shutdown, and the task does not subscribe to chain notifications.
    async fn run(
        mut self,
        caught_up: Option<oneshot::Receiver<()>>,
        mut polls: watch::Receiver<Option<bool>>,
    ) {
        if let Some(caught_up) = caught_up {
            let _ = caught_up.await; // an error means that the watch has ended, which also ends the session
            self.start_chain().await;
        } else if self.chain.is_some() {
            warn!(
                "not subscribing to notifications: without the Mining interface the node does not announce its shutdown"
            );
        }
        loop {
            self.any.set(self.chain_subscription.is_some() || self.trace.is_active());
            tokio::select! {
                changed = polls.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let ibd = *polls.borrow_and_update();
                    self.trace.on_poll(ibd, &self.context.metrics).await;
                }
                () = self.trace.coins.exceeded.notified(), if self.trace.is_active() => {
                    self.trace.stop_over_budget(&self.context);
                }
            }
        }
    }

    /// Subscribes to chain notifications if the node has the Chain interface. Must be called only after the blocks up
    /// to the first tip of this connection are counted, or cannot be counted.
    async fn start_chain(&mut self) {
        let Some(chain) = &self.chain else { return };
        match chain.subscribe().await {
            Ok(subscription) => {
                notifications::start(&self.context.metrics);
                self.chain_subscription = Some(subscription);
            }
            Err(CallError::Disconnected(_)) => {} // the closed connection ends the session
            Err(error) => warn!("cannot subscribe to the chain's notifications: {error}"),
        }
    }
}

/// Returns a function that updates the metrics for each event that the guard sends to the exporter, for example for a
/// notification from the node.
fn count_events(context: Rc<Context>, coins: Rc<CoinCounter>) -> impl FnMut(TimedEvent) {
    move |TimedEvent { event, waited }| {
        let metrics = &context.metrics;
        let callback = match event {
            GuardEvent::Chain(event) => notifications::count(event, &context),
            GuardEvent::Coin(event) => coins.count(event, &metrics.utxo_cache),
            GuardEvent::OverBudget => return coins.exceeded.notify_one(),
            GuardEvent::Dropped(events) => {
                warn!(events, "the exporter was too slow: notifications were answered but not counted");
                return metrics.exporter.events_dropped.inc_by(["callback"], events);
            }
            GuardEvent::Rejected(Rejection { call, reason }) => {
                error!(
                    "the guard rejected a call that is not on its allow-list ({call}: {reason}); the node did not receive \
                     it. This is a bug in the exporter, or an attacker controls it: restart it and report this line"
                );
                return metrics.exporter.rejected_calls.inc_by([call.as_str()], 1);
            }
            // `Guard::forward_events` does not pass this event to this function.
            GuardEvent::NodeShutsDown => return,
        };
        metrics.exporter.callbacks.inc_by([callback], 1);
        metrics.exporter.callback_duration.observe(waited.as_secs_f64());
    }
}
