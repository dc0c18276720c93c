//! A poll: what the node offers is asked for, and shown. An area per file, as in [`metrics`](crate::metrics).
//!
//! One failing call costs only its own metrics. A call without an answer ends the poll: the node hangs, and asking on
//! would only add to its queue.

mod blocks;
mod chain;
mod chainstates;
mod diagram;
mod fibre;
mod file_system;
mod mempool;
mod network;
mod next_block;
mod node;
mod process;
mod relay;

use std::fmt;
use std::rc::Rc;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tracing::debug;

use super::context::Context;
use super::json::label;
use crate::ipc::{CallError, Interfaces, JsonRpc};
use crate::metrics::{Metrics, now};
use crate::node_process::Usage;

/// What the rest of the collector wants to know of a poll.
#[derive(Clone, Debug, Default)]
pub struct Polled {
    /// Whether the node is in initial block download.
    pub ibd: Option<bool>,
    /// `/Satoshi:31.99.0/`
    pub subversion: Option<String>,
}

/// Why a poll failed.
#[derive(Debug)]
pub enum PollError {
    /// This call had no answer.
    NoAnswer(&'static str, CallError),
    /// No call gave the height of the tip.
    NoTip,
}

impl fmt::Display for PollError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PollError::NoAnswer(call, error) => write!(f, "{call}: {error}"),
            PollError::NoTip => f.write_str("the node did not tell its tip"),
        }
    }
}

/// Makes the calls of one poll.
struct Calls {
    interfaces: Rc<Interfaces>,
    context: Rc<Context>,
    /// The node did not answer a call of this poll.
    failed: Option<PollError>,
    /// JSON-RPC over HTTP could not be used for a call of this poll.
    incomplete: bool,
}

impl Calls {
    fn metrics(&self) -> &Metrics {
        &self.context.metrics
    }

    /// Makes a call, which has this name in the schema, if the node offers its interface. `None` also when it fails, which
    /// is counted under the name, and when an earlier call of this poll had no answer.
    async fn ask<T>(
        &mut self,
        name: &'static str,
        call: Option<impl Future<Output = Result<T, CallError>>>,
    ) -> Option<T> {
        if self.failed.is_some() {
            return None;
        }
        let answered = call?.await;
        let failures = &self.context.metrics.exporter.poll_failures;
        match answered {
            Ok(answer) => {
                failures.inc_by([name], 0);
                Some(answer)
            }
            Err(error) => {
                debug!("{name}: {error}");
                failures.inc_by([name], 1);
                self.incomplete |= matches!(error, CallError::Http(_));
                if matches!(error, CallError::TimedOut(_) | CallError::Disconnected(_)) {
                    self.failed = Some(PollError::NoAnswer(name, error));
                }
                None
            }
        }
    }

    /// Whether a JSON-RPC would be made now.
    fn has_rpc(&self) -> bool {
        self.failed.is_none() && self.interfaces.json_rpc.as_ref().is_some_and(JsonRpc::is_available)
    }

    /// Makes a JSON-RPC. Null where there is no answer: it has none of the fields that are looked for.
    async fn rpc(&mut self, method: &'static str, params: Value) -> Value {
        let interfaces = self.interfaces.clone();
        let call = interfaces.json_rpc.as_ref().filter(|json_rpc| json_rpc.is_available());
        let call = call.map(|json_rpc| json_rpc.call(method, params));
        self.ask(method, call).await.unwrap_or_default()
    }

    /// Makes a JSON-RPC that not every node has: that it does not is no failure.
    async fn rpc_if_known<T: DeserializeOwned + Default>(
        &mut self,
        method: &'static str,
        params: Value,
    ) -> Option<Known<T>> {
        let interfaces = self.interfaces.clone();
        let json_rpc = interfaces.json_rpc.as_ref().filter(|json_rpc| json_rpc.is_available())?;
        let call = async {
            match json_rpc.call_as(method, params).await {
                Ok(answer) => Ok(Known::Answer(answer)),
                Err(error) if error.is_unknown_method() => Ok(Known::Not),
                Err(error) => Err(error),
            }
        };
        self.ask(method, Some(call)).await
    }
}

/// The answer to a call that not every node has.
enum Known<T> {
    Answer(T),
    /// This node does not have it.
    Not,
}

/// Keeps a call that holds one of the node's main locks rare.
#[derive(Default)]
struct CostlyCall {
    /// Not again before.
    not_before: Option<Instant>,
    /// What it told is not shown any more.
    cleared: bool,
    /// It was made before its time, or had no answer: not before its time again.
    owes: bool,
}

impl CostlyCall {
    /// At least between two calls.
    const INTERVAL: Duration = Duration::from_secs(60);
    /// The interval is at least this many times the duration of the call.
    const SHARE: u32 = 1000;

    /// When what it told was cleared, it may be made once before its time, which is paid for afterwards.
    fn is_due(&self) -> bool {
        !self.is_early() || (self.cleared && !self.owes)
    }

    /// Whether its time has not come yet.
    fn is_early(&self) -> bool {
        self.not_before.is_some_and(|due| Instant::now() < due)
    }

    /// What it told is not shown any more.
    fn was_cleared(&mut self) {
        self.cleared = true;
    }

    /// The call was made, and took this long until there was an answer, or none.
    fn took(&mut self, took: Duration, has_answer: bool) {
        self.owes = !has_answer || self.is_early();
        let now = Instant::now();
        let paid = self.not_before.map_or(now, |due| due.max(now));
        self.not_before = Some(paid + Self::INTERVAL.max(took.saturating_mul(Self::SHARE)));
        self.cleared = false;
    }
}

/// A costly call that not every node has.
#[derive(Default)]
struct OptionalCall {
    costly: CostlyCall,
    /// The node does not have it.
    unknown: bool,
}

impl OptionalCall {
    /// Makes it if it is due. `None` if what it told last is to be shown on, `Some(None)` if nothing is.
    async fn make_if_due<T: DeserializeOwned>(
        &mut self,
        calls: &mut Calls,
        method: &'static str,
        params: Value,
    ) -> Option<Option<T>> {
        if !calls.has_rpc() {
            self.costly.was_cleared();
            return Some(None);
        }
        if self.unknown || !self.costly.is_due() {
            return None;
        }
        let asked = Instant::now();
        let answer = self.make(calls, method, params).await;
        self.costly.took(asked.elapsed(), answer.is_some());
        Some(answer)
    }

    /// `None` where there is no answer.
    async fn make<T: DeserializeOwned>(
        &mut self,
        calls: &mut Calls,
        method: &'static str,
        params: Value,
    ) -> Option<T> {
        let known = calls.rpc_if_known::<Option<T>>(method, params).await;
        self.unknown = matches!(known, Some(Known::Not));
        match known {
            Some(Known::Answer(answer)) => answer,
            _ => None,
        }
    }
}

/// Polls one connection.
pub struct Poller {
    interfaces: Rc<Interfaces>,
    context: Rc<Context>,
    /// The tip whose expensive facts are shown.
    shown_tip: Option<String>,
    chain_tips: chain::TipsSchedule,
    feerates: OptionalCall,
    orphans: OptionalCall,
    private_broadcast: OptionalCall,
    udp_peers: OptionalCall,
    udp_silence: fibre::Silence,
    data_directory: file_system::DataDirectory,
    /// The node, if it can be seen.
    process: Option<Usage>,
}

impl Poller {
    /// Nothing is shown yet.
    pub fn new(interfaces: Rc<Interfaces>, context: Rc<Context>) -> Self {
        let candidates = context.config.data_directory.clone();
        let data_directory = file_system::DataDirectory::new(candidates, &interfaces);
        Poller {
            interfaces,
            context,
            data_directory,
            shown_tip: None,
            chain_tips: chain::TipsSchedule::default(),
            feerates: OptionalCall::default(),
            orphans: OptionalCall::default(),
            private_broadcast: OptionalCall::default(),
            udp_peers: OptionalCall::default(),
            udp_silence: fibre::Silence::default(),
            process: None,
        }
    }

    /// Shows what this process uses, too.
    pub fn with_process(self, process: Option<Usage>) -> Self {
        Poller { process, ..self }
    }

    /// One poll. An error means that the node did not answer, or could not even tell its tip.
    pub async fn poll(&mut self) -> Result<Polled, PollError> {
        let started = Instant::now();
        let mut calls = Calls {
            interfaces: self.interfaces.clone(),
            context: self.context.clone(),
            failed: None,
            incomplete: false,
        };
        let polled = self.poll_areas(&mut calls).await;
        let mut memory = self.context.memory.borrow_mut();
        process::show(self.process.as_ref(), &mut memory, &self.context.metrics.node_process);
        drop(memory);
        let took = started.elapsed();
        let exporter = &self.context.metrics.exporter;
        exporter.poll_duration.observe(took.as_secs_f64());
        debug!(?took, "polled");
        let polled = calls.failed.map_or(polled, Err);
        if polled.is_err() || calls.incomplete {
            // What was shown of the tip is cleared, or was not complete.
            self.shown_tip = None;
            self.chain_tips.forget_tip();
        }
        if polled.is_err() {
            for call in [&mut self.feerates, &mut self.orphans, &mut self.private_broadcast] {
                call.costly.was_cleared();
            }
            self.chain_tips.was_cleared();
        }
        if polled.is_ok() {
            exporter.last_poll.set(now().round());
        }
        polled
    }

    async fn poll_areas(&mut self, calls: &mut Calls) -> Result<Polled, PollError> {
        let chain_info = calls.rpc("getblockchaininfo", json!([])).await;
        let tip = chain::poll(calls, &chain_info).await;
        let chain::Tip { height, ref hash, ibd, .. } = tip;
        chainstates::poll(calls, &chain_info).await;
        mempool::poll(calls).await;
        next_block::poll(calls).await;
        mempool::poll_feerates(calls, &mut self.feerates, ibd).await;
        relay::poll_orphans(calls, &mut self.orphans).await;
        relay::poll_private_broadcast(calls, &mut self.private_broadcast).await;
        let network_info = calls.rpc("getnetworkinfo", json!([])).await;
        let process = self.process.as_ref().map(Usage::id);
        node::poll(calls, process, &chain_info, &network_info).await;
        self.data_directory.poll(calls).await;
        network::poll(calls, &network_info).await;
        fibre::poll(calls, &mut self.udp_peers, &mut self.udp_silence).await;
        if hash.is_none() || *hash != self.shown_tip {
            self.shown_tip = hash.clone();
            mempool::poll_fee_estimates(calls).await;
            chain::poll_hashrate(calls).await;
            chainstates::poll_deployments(calls).await;
            blocks::poll(calls, hash.as_deref(), ibd).await;
        }
        chain::poll_tips(calls, &mut self.chain_tips, &tip).await;
        if height.is_none() {
            return Err(PollError::NoTip);
        }
        Ok(Polled { ibd, subversion: label(&network_info, "subversion") })
    }
}

#[cfg(test)]
#[test]
fn a_costly_call_is_made_once_before_its_time_when_what_it_told_was_cleared() {
    let mut call = CostlyCall::default();
    assert!(call.is_due());
    call.took(Duration::from_millis(1), true);
    assert!(!call.is_due());
    call.was_cleared();
    assert!(call.is_due());
    call.took(Duration::from_millis(1), true);
    assert!(call.not_before > Some(Instant::now() + CostlyCall::INTERVAL), "both are paid for");
    call.was_cleared();
    assert!(!call.is_due(), "a node that comes and goes is not asked each time");
    let mut call = CostlyCall::default();
    call.took(Duration::from_secs(10), false);
    call.was_cleared();
    assert!(!call.is_due(), "the node did not manage it");
}
