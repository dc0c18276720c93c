//! One poll of the node: reads its state and exports it. Each file has one area, as in [`metrics`](crate::metrics).
//!
//! A call that fails affects only its own metrics, which are exported until they expire (see [`metrics`](crate::metrics)). A call
//! without a response ends the poll: the node hangs, and further calls would only add to its queue. No call is made more often than its
//! rate limit allows.

mod blocks;
mod chain;
mod chainstates;
mod feerate_diagram;
mod fibre;
mod file_system;
mod mempool;
mod network;
mod next_block;
mod node;
mod pid_file;
mod process;
mod relay;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::rc::Rc;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::time::Instant;
use tracing::debug;

use super::context::Context;
use super::json::label;
use super::rate_limit::RateLimit;
use crate::ipc::Interfaces;
use crate::json_rpc::{CallError, JsonRpc, Method};
use crate::metrics::{Metrics, now};
use crate::node_process::{PrivateUsage, ProcessUsage};

/// The values of a poll that the rest of the collector needs.
#[derive(Clone, Debug, Default)]
pub struct PollResult {
    /// Whether the node is in initial block download.
    pub ibd: Option<bool>,
    /// User agent of the node, for example `/Satoshi:31.99.0/`.
    pub subversion: Option<String>,
}

/// The reason why a poll failed.
#[derive(Debug)]
pub enum PollError {
    /// There was no response to this call, for this reason.
    NoAnswer(&'static str, CallError),
    /// No call returned the height of the tip.
    NoTip,
}

impl PollError {
    /// Whether the node did not respond in time.
    pub fn is_timeout(&self) -> bool {
        matches!(self, PollError::NoAnswer(_, error) if error.is_timeout())
    }
}

impl fmt::Display for PollError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PollError::NoAnswer(call, error) => write!(f, "{call}: {error}"),
            PollError::NoTip => f.write_str("the node did not report its tip"),
        }
    }
}

/// Makes the calls of the polls of one connection, each within its rate limit.
struct RateLimitedCalls {
    interfaces: Rc<Interfaces>,
    context: Rc<Context>,
    /// The call of this poll to which the node did not respond, if any.
    failed: Option<PollError>,
    /// Whether a costly call made the last poll fail. This poll then makes no costly calls: one that never gets a response would make
    /// polls fail for a long time.
    recovers: bool,
    /// Rate limits of costly calls and of calls that fail, by name of the call.
    limits: HashMap<&'static str, RateLimit>,
    /// JSON-RPC methods that the node does not have.
    unknown: HashSet<Method>,
    /// Responses that are valid until the tip changes, by method and parameters.
    answers_for_tip: HashMap<(Method, String), Value>,
    /// Whether peers were exported over this connection.
    showed_peers: bool,
    /// Version, subversion and protocol version in the last response to getnetworkinfo; empty if there was none.
    versions: [String; 3],
}

/// Placeholder for the name of a call in an error if no call can be made.
const OVER_HTTP: &str = "JSON-RPC over HTTP";

/// Whether a costly call made the poll fail, so that the next poll makes no costly calls. After other failures the next poll makes
/// them: otherwise a node that misses every second poll would get none.
fn is_of_costly_call(error: &PollError) -> bool {
    matches!(error, PollError::NoAnswer(call, _) if COSTLY.contains(call) || *call == Method::EstimateSmartFee.name())
}

/// Calls that hold one of the node's main locks, or wait for another thread of the node.
const COSTLY: [&str; 4] =
    ["getchaintips", "getmempoolfeeratediagram", "getorphantxs", "getprivatebroadcastinfo"];

impl RateLimitedCalls {
    fn metrics(&self) -> &Metrics {
        &self.context.metrics
    }

    /// The rate limit of the call with this name; created if there is none. A call that is not costly is limited only after a failure.
    fn limit(&mut self, name: &'static str, costly: bool) -> &mut RateLimit {
        let interval = self.context.config.poll_interval;
        let new = || if costly { RateLimit::costly(interval) } else { RateLimit::for_failures() };
        self.limits.entry(name).or_insert_with(new)
    }

    fn is_due(&self, name: &str) -> bool {
        self.limits.get(name).is_none_or(|limit| limit.due() <= Instant::now())
    }

    /// Makes a call if it is due and the node offers its interface (`call` is `Some`). `name` is its name in the schema, or that of its
    /// JSON-RPC method. Returns `None` if the call was not made, if it failed, or if an earlier call of this poll had no response. A
    /// failure is counted under the name.
    async fn call<T>(
        &mut self,
        name: &'static str,
        call: Option<impl Future<Output = Result<T, CallError>>>,
    ) -> Option<T> {
        if self.failed.is_some() || !self.is_due(name) {
            return None;
        }
        let started = Instant::now();
        let answered = call?.await;
        let ended = Instant::now();
        let costly = COSTLY.contains(&name);
        self.context.metrics.exporter.call_duration.set([name], (ended - started).as_secs_f64());
        let failures = &self.context.metrics.exporter.poll_failures;
        match answered {
            Ok(answer) => {
                failures.inc_by([name], 0);
                if costly {
                    self.limit(name, costly).succeeded(started, ended);
                } else {
                    self.limits.remove(name);
                }
                Some(answer)
            }
            Err(error) => {
                debug!("{name}: {error}");
                failures.inc_by([name], 1);
                let ends_poll = error.ends_poll(self.interfaces.is_http_only());
                match error {
                    CallError::TooLarge(_) => self.limit(name, costly).failed_permanently(ended),
                    // The call is not limited, because the next poll may need it. Polls and checks of HTTP have back-offs of their own.
                    CallError::Http(_) if !costly && (ends_poll || !error.is_timeout()) => {}
                    _ if !costly && ends_poll => {}
                    _ => self.limit(name, costly).failed(ended),
                }
                if ends_poll {
                    self.failed = Some(PollError::NoAnswer(name, error));
                }
                None
            }
        }
    }

    /// Why no call can be made now; `None` for a node with IPC.
    fn unavailable(&self) -> Option<CallError> {
        self.interfaces.json_rpc().filter(|_| self.interfaces.is_http_only())?.unavailable()
    }

    /// JSON-RPC, if a call can be made now.
    fn json_rpc(&self) -> Option<JsonRpc> {
        self.interfaces.json_rpc().filter(JsonRpc::is_available)
    }

    /// Makes a JSON-RPC call. Returns null if there is no response; null has none of the fields that are read.
    async fn rpc(&mut self, method: Method, params: Value) -> Value {
        let json_rpc = self.json_rpc();
        let call = json_rpc.as_ref().map(|json_rpc| json_rpc.call(method, params));
        self.call(method.name(), call).await.unwrap_or_default()
    }

    /// Like `rpc`, but once per tip, for a method whose response is valid until the tip changes.
    async fn rpc_once_per_tip(&mut self, method: Method, params: Value) -> Value {
        let key = (method, params.to_string());
        if let Some(answer) = self.answers_for_tip.get(&key) {
            return answer.clone();
        }
        let answer = self.rpc(method, params).await;
        if !answer.is_null() {
            self.answers_for_tip.insert(key, answer.clone());
        }
        answer
    }

    /// Makes a JSON-RPC call for which some errors are a normal response, and do not count as failures. Returns `None` if there is no
    /// response, and `Some(Err)` with such an error.
    async fn rpc_tolerating<T: DeserializeOwned>(
        &mut self,
        method: Method,
        params: Value,
        is_normal: fn(&CallError) -> bool,
    ) -> Option<Result<Option<T>, CallError>> {
        let json_rpc = self.json_rpc()?;
        let call = async {
            match json_rpc.call_as::<T>(method, params).await {
                Err(error) if is_normal(&error) => Ok(Err(error)),
                answer => answer.map(Ok),
            }
        };
        self.call(method.name(), Some(call)).await
    }

    /// Makes a call of a JSON-RPC method that not every node has. A missing method does not count as a failure. Returns `None` if there
    /// is no response.
    async fn rpc_if_known<T: DeserializeOwned>(&mut self, method: Method, params: Value) -> Option<T> {
        if self.unknown.contains(&method) {
            return None;
        }
        let answer = self.rpc_tolerating(method, params, CallError::is_unknown_method).await?;
        if answer.is_err() {
            self.unknown.insert(method);
        }
        answer.ok().flatten()
    }

    /// Like `rpc_if_known`, for a costly call, if it is due. Also returns how long the response is exported.
    async fn costly<T: DeserializeOwned>(&mut self, method: Method, params: Value) -> Option<(T, Duration)> {
        debug_assert!(COSTLY.contains(&method.name()), "{method:?}");
        if self.recovers {
            return None;
        }
        let answer = self.rpc_if_known(method, params).await?;
        Some((answer, self.limit(method.name(), true).lifetime()))
    }
}

/// The poller of one connection: reads the state of the node and exports it.
pub struct Poller {
    calls: RateLimitedCalls,
    /// Hash of the tip at the last poll.
    tip: Option<String>,
    udp_silence: fibre::PeerSilence,
    data_directory: file_system::DatadirPoller,
    /// The node's process, if it is visible.
    process: Option<ProcessUsage>,
}

impl Poller {
    /// Creates a poller that has exported nothing yet.
    pub fn new(interfaces: Rc<Interfaces>, context: Rc<Context>) -> Self {
        context.persistent_state.borrow_mut().node_start.connected();
        let candidates = context.config.data_directory.clone();
        let data_directory = file_system::DatadirPoller::new(candidates, &interfaces);
        let calls = RateLimitedCalls {
            interfaces,
            context,
            failed: None,
            recovers: false,
            limits: HashMap::new(),
            unknown: HashSet::new(),
            answers_for_tip: HashMap::new(),
            showed_peers: false,
            versions: Default::default(),
        };
        Poller { calls, tip: None, udp_silence: fibre::PeerSilence::default(), data_directory, process: None }
    }

    /// Also exports the resource usage of this process.
    pub fn with_process(self, process: Option<ProcessUsage>) -> Self {
        Poller { process, ..self }
    }

    /// Resets the rate limits, so that each call is due. Used after a suspend of the machine, when the last responses are older than
    /// the rate limits assume.
    pub fn forget_limits(&mut self) {
        self.calls.limits.clear();
    }

    /// Makes one poll. An error means that there was no response to a call, or that no call returned the tip.
    pub async fn poll(&mut self) -> Result<PollResult, PollError> {
        let started = Instant::now();
        let mut polled = match self.calls.unavailable() {
            Some(error) => Err(PollError::NoAnswer(OVER_HTTP, error)),
            None => self.poll_areas().await,
        };
        polled = self.calls.failed.take().map_or(polled, Err);
        self.calls.recovers = polled.as_ref().is_err_and(is_of_costly_call);
        let context = &self.calls.context;
        let private = match &self.process {
            Some(process) => process.private().await,
            None => PrivateUsage::default(),
        };
        process::show(
            self.process.as_ref(),
            &private,
            &mut context.persistent_state.borrow_mut(),
            &context.metrics.node_process,
        );
        let took = started.elapsed();
        let exporter = &context.metrics.exporter;
        exporter.poll_duration.observe(took.as_secs_f64());
        debug!(?took, "polled");
        if polled.is_ok() {
            exporter.last_poll.set(Some(now().round()));
        }
        polled
    }

    async fn poll_areas(&mut self) -> Result<PollResult, PollError> {
        let calls = &mut self.calls;
        let chain_info = calls.rpc(Method::GetBlockchainInfo, json!([])).await;
        let chain::PolledTip { height, hash, ibd } = chain::poll(calls, &chain_info).await;
        let is_new_tip = hash.is_none() || hash != self.tip;
        if is_new_tip {
            calls.answers_for_tip.clear();
            self.tip.clone_from(&hash);
        }
        chainstates::poll(calls, &chain_info).await;
        mempool::poll(calls).await;
        next_block::poll(calls).await;
        mempool::poll_feerates(calls, ibd).await;
        relay::poll_orphans(calls).await;
        relay::poll_private_broadcast(calls).await;
        let network_info = calls.rpc(Method::GetNetworkInfo, json!([])).await;
        // Over HTTP a node can exit and another one can start between two polls.
        if calls.interfaces.is_http_only() {
            self.process.take_if(|process| process.stat().is_none());
        }
        let process = self.process.as_ref().map(ProcessUsage::id);
        let uptime = node::poll(calls, process, &chain_info, &network_info).await;
        if let (None, Some(uptime)) = (&self.process, uptime) {
            self.process = pid_file::find(calls, uptime).await;
        }
        let rpc_info = node::poll_rpc_server(calls).await;
        node::poll_zmq(calls).await;
        self.data_directory.poll(calls, &rpc_info).await;
        network::poll(calls, height, &network_info).await;
        fibre::poll(calls, &mut self.udp_silence).await;
        mempool::poll_fee_estimates(calls, is_new_tip).await;
        chain::poll_hashrate(calls).await;
        chainstates::poll_deployments(calls).await;
        blocks::poll(calls, hash.as_deref(), ibd).await;
        chain::poll_tips(calls, ibd).await;
        if height.is_none() {
            let unavailable = calls.unavailable().map(|error| PollError::NoAnswer(OVER_HTTP, error));
            return Err(unavailable.unwrap_or(PollError::NoTip));
        }
        Ok(PollResult { ibd, subversion: label(&network_info, "subversion") })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_failed_costly_call_costs_the_next_poll_its_costly_calls() {
        let failed = |call| PollError::NoAnswer(call, CallError::Malformed("cut".into()));
        for call in ["getorphantxs", "getchaintips", "estimatesmartfee"] {
            assert!(is_of_costly_call(&failed(call)), "{call}");
        }
        assert!(!is_of_costly_call(&failed("getblockchaininfo")));
        assert!(!is_of_costly_call(&PollError::NoTip));
    }
}
