//! What we ask of a node and when: connecting, subscribing, polling; answers become metrics.

mod block;
mod json;
mod memory;
mod peers;
mod poll;
mod session;
mod subscribe;
mod tip;
mod utxo_trace;

use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::ipc::Interfaces;
use crate::ipc::guard::{self, Guard};
use crate::ipc::source::{NodeProcess, Source};
use crate::metrics::{Format, Metrics};

pub use memory::{Memory, SharedMemory};
pub use session::{End, Session};

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
    Away(String),
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

/// Something that ends the process in order: the one thing that everything listens to.
#[derive(Clone)]
pub struct Shutdown(watch::Receiver<bool>);

impl Shutdown {
    /// The sender says `true`.
    pub fn new() -> (watch::Sender<bool>, Self) {
        let (sender, receiver) = watch::channel(false);
        (sender, Shutdown(receiver))
    }

    /// Whether the process should end.
    pub fn is_requested(&self) -> bool {
        *self.0.borrow()
    }

    /// Resolves when the process should end.
    pub async fn requested(&self) {
        let mut receiver = self.0.clone();
        if receiver.wait_for(|&requested| requested).await.is_err() {
            std::future::pending().await
        }
    }
}

/// Connects, collects, reconnects.
pub struct Collector {
    config: Config,
    metrics: Arc<Metrics>,
    state: watch::Sender<State>,
    shutdown: Shutdown,
    blocks: block::Counter,
    guards: guard::Places,
    memory: memory::SharedMemory,
    /// The trace went over its budget once: it stays off for the life of the process.
    trace_given_up: bool,
}

impl Collector {
    /// `state` is told about every change.
    pub fn new(
        config: Config,
        metrics: Arc<Metrics>,
        state: watch::Sender<State>,
        shutdown: Shutdown,
    ) -> Self {
        let blocks = block::Counter::start(metrics.clone());
        Collector {
            config,
            metrics,
            state,
            shutdown,
            blocks,
            guards: guard::Places::new(),
            memory: Default::default(),
            trace_given_up: false,
        }
    }

    /// Collects until shutdown is requested, or the node ends and there is nothing to reconnect to. Needs a
    /// [`tokio::task::LocalSet`].
    pub async fn run(mut self, mut source: Source) -> Result<()> {
        let mut backoff = Backoff::default();
        loop {
            let place = tokio::select! {
                place = self.guards.take() => place,
                () = self.shutdown.requested() => return Ok(()),
            };
            let stream = match self.connect(&mut source).await {
                Some(stream) => stream,
                None => return Ok(()),
            };
            let connected = Instant::now();
            let node = NodeProcess::of(&stream);
            let end = match open(stream, place, &node, &self.config, &self.shutdown).await {
                Ok(session) => session.run(&mut self).await,
                Err(end) => end,
            };
            self.metrics.node_is_away();
            if connected.elapsed() > Backoff::MAX {
                backoff = Backoff::default();
            }
            let (reason, text) = match &end {
                End::ShutdownRequested => return Ok(()),
                End::NodeShutDown => ("shutdown", "the node shut down".to_string()),
                End::Lost(why) => ("lost", format!("lost the node: {why}")),
                End::Hung(why) => ("hung", format!("gave the node up: {why}")),
                End::Useless(why) => ("refused", why.clone()),
            };
            self.metrics.exporter.disconnects.inc_by([reason], 1);
            self.state.send_replace(State::Away(text.clone()));
            let shut_down = matches!(end, End::NodeShutDown);
            match (shut_down, self.config.exit_with_node || !source.can_reopen()) {
                (true, true) => {
                    info!(reason, "{text}; so do we");
                    return Ok(());
                }
                (false, _) if !source.can_reopen() => {
                    return Err(anyhow!("{text}")).context(source.describe().to_string());
                }
                (true, false) => {
                    info!(reason, "{text}; waiting for the next one");
                    self.until_it_ended(&node).await;
                }
                (false, _) => {
                    let wait = backoff.next();
                    warn!(reason, "{text}; reconnecting in {:.1} s", wait.as_secs_f64());
                    tokio::select! {
                        () = tokio::time::sleep(wait) => {}
                        () = self.shutdown.requested() => return Ok(()),
                    }
                }
            }
        }
    }

    /// Shows that there is no node, for so long or until shutdown is requested.
    pub async fn wait_without_node(self, why: &str, time: Duration) {
        self.state.send_replace(State::Away(why.to_string()));
        tokio::select! {
            () = tokio::time::sleep(time) => {}
            () = self.shutdown.requested() => {}
        }
    }

    /// Connects and keeps trying; `None` when shutdown is requested. Says why it waits when the reason changes.
    ///
    /// Trying costs a node nothing: no node listens yet. So it is done often, and the exporter is back soon.
    async fn connect(&self, source: &mut Source) -> Option<UnixStream> {
        const AGAIN: Duration = Duration::from_millis(500);
        let mut said = String::new();
        loop {
            match source.open().await {
                Ok(stream) => {
                    info!("connected to {}", source.describe());
                    self.metrics.exporter.connects.inc_by([], 1);
                    self.state.send_replace(State::Connected("connected, not polled yet".into()));
                    return Some(stream);
                }
                Err(error) => {
                    let text = format!("{error:#}");
                    if text != said {
                        warn!("{text}; trying again until it works");
                        self.state.send_replace(State::Away(text.clone()));
                        said = text;
                    }
                }
            }
            tokio::select! {
                () = tokio::time::sleep(AGAIN) => {}
                () = self.shutdown.requested() => return None,
            }
        }
    }

    /// A node that is shutting down still accepts connections, and aborts when one asks it for what it has taken
    /// apart already. So its end is awaited before the next connection.
    async fn until_it_ended(&self, node: &NodeProcess) {
        const AGAIN: Duration = Duration::from_millis(100);
        /// When the system does not tell whether the process is gone.
        const BLIND: Duration = Duration::from_secs(10);
        let ended = async {
            while let Some(ended) = node.has_ended() {
                if ended {
                    return;
                }
                tokio::time::sleep(AGAIN).await;
            }
            tokio::time::sleep(BLIND).await;
        };
        tokio::select! {
            () = ended => {}
            () = self.shutdown.requested() => {}
        }
    }
}

/// Opens a session behind a guard: nothing that happens to us from here on harms the node.
async fn open(
    stream: UnixStream,
    place: guard::Place,
    node: &NodeProcess,
    config: &Config,
    shutdown: &Shutdown,
) -> Result<Session, End> {
    let budget = (config.utxo_trace == UtxoTrace::Auto).then_some(config.utxo_trace_budget);
    let (stream, guard) =
        Guard::place(place, stream, budget).map_err(|error| End::Lost(format!("{error:#}")))?;
    Session::open(stream, Some(guard), node, config, shutdown).await
}

/// Connects once and polls once, for `--once`.
pub async fn once(source: &mut Source, config: &Config, metrics: &Arc<Metrics>) -> Result<()> {
    metrics.exporter.connects.inc_by([], 1);
    poll_once(source, config, metrics).await.map(|_| ())
}

/// Connects once and describes the node, for `--check`.
pub async fn check(source: &mut Source, config: &Config, metrics: &Arc<Metrics>) -> Result<Rc<Interfaces>> {
    poll_once(source, config, metrics).await
}

/// What `--check` prints: the node, what it offers, and which metrics follow from it.
pub fn describe(interfaces: &Interfaces, metrics: &Metrics, connection: &str) -> String {
    let names = interfaces.names();
    let text = metrics.render(Format::Text);
    let info = text.lines().find_map(|line| line.strip_prefix("bitcoin_node_info{")?.strip_suffix("} 1"));
    let polled: BTreeSet<&str> = text
        .lines()
        .filter(|line| line.starts_with("bitcoin_") && !line.starts_with("bitcoin_exporter_"))
        .filter_map(|line| line.split(['{', ' ']).next())
        .filter(|name| *name != "bitcoin_up")
        .collect();
    let mut described =
        format!("connection: {connection}\nnode: {}\n", info.unwrap_or("it does not tell its name"));
    for (interface, offered, follows) in [
        ("mining", interfaces.mining.is_some(), "tip changes, the node's shutdown"),
        (
            "rpc",
            names.contains(&"rpc"),
            "JSON-RPC over IPC: chain, mempool, network, fees; blocks connected from tip changes",
        ),
        (
            "chain",
            interfaces.chain.is_some(),
            "notifications: blocks, mempool, flushes, counted as they happen",
        ),
        ("node", interfaces.node.is_some(), "state of the node and its peers; JSON-RPC over IPC"),
        ("tracing", interfaces.tracing.is_some(), "the UTXO cache trace (see --utxo-trace)"),
    ] {
        let offered = if offered { "yes" } else { "no " };
        described.push_str(&format!("interface {interface:<8}{offered} {follows}\n"));
    }
    described.push_str("metrics from one poll:\n");
    polled.iter().for_each(|name| described.push_str(&format!("  {name}\n")));
    described
}

async fn poll_once(source: &mut Source, config: &Config, metrics: &Arc<Metrics>) -> Result<Rc<Interfaces>> {
    let stream = source.open().await?;
    let (_keep, shutdown) = Shutdown::new();
    let node = NodeProcess::of(&stream);
    let session = open(stream, guard::Places::new().take().await, &node, config, &shutdown)
        .await
        .map_err(|end| anyhow!("{end}"))
        .context(source.describe().to_string())?;
    let polled = session.poller(metrics.clone(), Default::default()).poll().await;
    session.show(metrics);
    let interfaces = session.interfaces.clone();
    session.close().await;
    polled.map_err(|why| anyhow!("the poll failed: {why}"))?;
    Ok(interfaces)
}

/// Between connections that were accepted and then failed: doubling, with jitter so that many exporters do not come
/// back at once.
#[derive(Default)]
struct Backoff(u32);

impl Backoff {
    const MIN: Duration = Duration::from_secs(1);
    const MAX: Duration = Duration::from_secs(30);

    fn next(&mut self) -> Duration {
        let full = (Self::MIN * 2u32.saturating_pow(self.0.min(5))).min(Self::MAX);
        self.0 = self.0.saturating_add(1);
        full.mul_f64(rand::random_range(0.5..=1.0)).max(Self::MIN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_grows_from_one_to_thirty_seconds() {
        let mut backoff = Backoff::default();
        let waits: Vec<_> = (0..12).map(|_| backoff.next()).collect();
        assert_eq!(waits[0], Backoff::MIN);
        assert!(waits.iter().all(|wait| (Backoff::MIN..=Backoff::MAX).contains(wait)));
        assert!(waits[8..].iter().all(|&wait| wait >= Backoff::MAX / 2));
    }
}
