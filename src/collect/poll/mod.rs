//! Polls of the node. One poll reads the node's state by a sequence of calls, and exports it. Each file reads one area
//! (group of metrics, for example of the mempool), with the same names as in [`metrics`](crate::metrics).
//!
//! A failed call affects only the metrics that are set from its response: their last values are exported until they
//! expire (see [`metrics`](crate::metrics)). A call without a response ends the poll, because the node then hangs or
//! has exited, and would only queue further calls. No call is made more often than its rate limit permits.

mod blocks;
mod chain;
mod feerate_diagram;
mod fibre;
mod file_system;
mod mempool;
mod network;
mod node;

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
use crate::json_rpc::{CallError, JsonRpc};
use crate::metrics::{Metrics, now};
use crate::node_process::ProcessUsage;

pub use file_system::DatadirCandidates;

/// The values of a successful poll that other parts of the collector need.
#[derive(Debug)]
pub struct PollResult {
    /// Whether the node is in initial block download.
    pub ibd: Option<bool>,
    /// The node's user agent, for example `/Satoshi:31.99.0/`.
    pub subversion: Option<String>,
}

/// The reason why a poll failed.
#[derive(Debug)]
pub enum PollError {
    /// The call with this name got no response from the node, because of this error. The name is `JSON-RPC over HTTP`
    /// if no call could be made because HTTP is not usable.
    NoAnswer(&'static str, CallError),
    /// All calls that return the height of the tip failed.
    NoTip,
}

impl PollError {
    /// Whether the poll failed because the node did not respond within the call timeout.
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

/// Client for the calls that the polls of one connection make. The client limits the rate of costly calls and of calls
/// that have failed.
struct RateLimitedCalls {
    interfaces: Rc<Interfaces>,
    context: Rc<Context>,
    /// The failure of the call of the current poll that got no response; `None` if all calls so far got a response.
    /// After such a failure, the poll makes no further calls.
    failed: Option<PollError>,
    /// Whether a costly call made the last poll fail (see [`is_of_costly_call`]). The current poll then makes no costly
    /// calls, because otherwise a costly call to which the node never responds would make all polls fail.
    recovers: bool,
    /// Rate limits of costly calls and of calls that have failed, by name of the call. All calls for fee estimates have
    /// one common limit, and all calls for connected blocks have another; the names of these two limits are not names
    /// of calls.
    limits: HashMap<&'static str, RateLimit>,
    /// JSON-RPC methods that the node does not have, as its responses have shown.
    unknown: HashSet<&'static str>,
    /// Responses that are valid until the tip changes, by method and parameters.
    answers_for_tip: HashMap<(&'static str, String), Value>,
    /// Whether a poll of this connection has exported metrics of the node's peers.
    showed_peers: bool,
    /// The node's version, subversion (user agent) and protocol version in the last response to getnetworkinfo; empty
    /// before the first response.
    versions: [String; 3],
}

/// Whether this error shows that a costly call made the poll fail. The next poll then makes no costly calls. After any
/// other failure, the next poll does make costly calls: if it did not, and every second poll failed, no poll would ever
/// make costly calls.
fn is_of_costly_call(error: &PollError) -> bool {
    matches!(error, PollError::NoAnswer(call, _) if COSTLY.contains(call) || *call == "estimatesmartfee")
}

/// Names of costly calls: calls during which the node holds a lock that many of its threads need, for example
/// `cs_main`, or waits for another of its threads. The costly call estimatesmartfee is not listed, because all its
/// calls have one limit (see `limits`).
const COSTLY: [&str; 4] =
    ["getchaintips", "getmempoolfeeratediagram", "getorphantxs", "getprivatebroadcastinfo"];

impl RateLimitedCalls {
    fn metrics(&self) -> &Metrics {
        &self.context.metrics
    }

    /// Returns the rate limit of the call with this name, and creates it if necessary. A call that is not costly is
    /// limited only by the back-off after failures.
    fn limit(&mut self, name: &'static str, costly: bool) -> &mut RateLimit {
        let interval = self.context.config.poll_interval;
        let new = || if costly { RateLimit::costly(interval) } else { RateLimit::for_failures() };
        self.limits.entry(name).or_insert_with(new)
    }

    fn is_due(&self, name: &str) -> bool {
        self.limits.get(name).is_none_or(|limit| limit.due() <= Instant::now())
    }

    /// Makes a call if its rate limit permits the call and the node has the interface of the call (`call` is `Some`).
    /// `name` is the name of the method in the Cap'n Proto schema or in JSON-RPC; failures are counted under this name.
    /// Returns `None` if the call was not made (also because an earlier call of this poll got no response), or if it
    /// failed.
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
                    // A call that is not costly gets no back-off after an error that ends the poll, or after an HTTP
                    // error other than a timeout, because the next poll may need the response to the call. The next
                    // poll, or the next check of HTTP, is itself delayed by a back-off.
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

    /// The reason why no call can be made now, because the node is polled only over HTTP and HTTP is not usable. `None`
    /// if calls can be made.
    fn unavailable(&self) -> Option<PollError> {
        let json_rpc = self.interfaces.json_rpc().filter(|_| self.interfaces.is_http_only())?;
        json_rpc.unavailable().map(|error| PollError::NoAnswer("JSON-RPC over HTTP", error))
    }

    /// The JSON-RPC client; `None` if no JSON-RPC call can be made now.
    fn json_rpc(&self) -> Option<JsonRpc> {
        self.interfaces.json_rpc().filter(JsonRpc::is_available)
    }

    /// Makes a JSON-RPC call. Returns JSON null if the call was not made or failed. Reading any field of null returns
    /// `None`.
    async fn rpc(&mut self, method: &'static str, params: Value) -> Value {
        let json_rpc = self.json_rpc();
        let call = json_rpc.as_ref().map(|json_rpc| json_rpc.call(method, params));
        self.call(method, call).await.unwrap_or_default()
    }

    /// Like `rpc`, for a method whose response is valid until the node's tip changes: makes the call once per tip, and
    /// returns the stored response until the tip changes.
    async fn rpc_once_per_tip(&mut self, method: &'static str, params: Value) -> Value {
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

    /// Makes a JSON-RPC call for which some errors, selected by `is_normal`, are a normal response of the node and are
    /// not counted as failures. Returns `None` if there is no response, and `Some(Err)` if the response is such an
    /// error.
    async fn rpc_tolerating<T: DeserializeOwned>(
        &mut self,
        method: &'static str,
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
        self.call(method, Some(call)).await
    }

    /// Makes a JSON-RPC call of a method that not every node has. If the node does not have the method, no failure is
    /// counted, and the call is not repeated on this connection. Returns `None` if the call was not made or returned no
    /// result.
    async fn rpc_if_known<T: DeserializeOwned>(&mut self, method: &'static str, params: Value) -> Option<T> {
        if self.unknown.contains(&method) {
            return None;
        }
        let answer = self.rpc_tolerating(method, params, CallError::is_unknown_method).await?;
        if answer.is_err() {
            self.unknown.insert(method);
        }
        answer.ok().flatten()
    }

    /// Makes a costly JSON-RPC call of a method that not every node has, unless a costly call made the last poll fail.
    /// Returns the result, and the time for which the values in the result are to be exported.
    async fn costly<T: DeserializeOwned>(
        &mut self,
        method: &'static str,
        params: Value,
    ) -> Option<(T, Duration)> {
        debug_assert!(COSTLY.contains(&method), "{method:?}");
        if self.recovers {
            return None;
        }
        let answer = self.rpc_if_known(method, params).await?;
        Some((answer, self.limit(method, true).lifetime()))
    }
}

/// The poller of one connection, which reads the node's state and exports it.
pub struct Poller {
    calls: RateLimitedCalls,
    /// Hash of the node's tip at the last poll, with which the next poll detects a new tip.
    tip: Option<String>,
    udp_silence: fibre::PeerSilence,
    data_directory: file_system::DatadirPoller,
    /// The node's process; `None` if it is not visible in `/proc`.
    process: Option<ProcessUsage>,
}

impl Poller {
    /// Creates a poller for a new connection.
    pub fn new(interfaces: Rc<Interfaces>, context: Rc<Context>, process: Option<ProcessUsage>) -> Self {
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
        Poller { calls, tip: None, udp_silence: fibre::PeerSilence::default(), data_directory, process }
    }

    /// Deletes the rate limits, which makes every call due. The session calls this function after a suspend of the
    /// machine, because the timers of the rate limits do not advance during a suspend.
    pub fn forget_limits(&mut self) {
        self.calls.limits.clear();
    }

    /// Polls the node once: reads its state and exports it.
    ///
    /// # Errors
    /// A call got no response from the node, or no call returned the height of the tip.
    pub async fn poll(&mut self) -> Result<PollResult, PollError> {
        let started = Instant::now();
        let mut polled = match self.calls.unavailable() {
            Some(error) => Err(error),
            None => self.poll_areas().await,
        };
        polled = self.calls.failed.take().map_or(polled, Err);
        self.calls.recovers = polled.as_ref().is_err_and(is_of_costly_call);
        let context = &self.calls.context;
        node::poll_process(self.process.as_ref(), context).await;
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
        let chain_info = calls.rpc("getblockchaininfo", json!([])).await;
        let chain::PolledTip { height, hash, ibd } = chain::poll(calls, &chain_info).await;
        let is_new_tip = hash.is_none() || hash != self.tip;
        if is_new_tip {
            calls.answers_for_tip.clear();
            self.tip.clone_from(&hash);
        }
        chain::poll_chainstates(calls, &chain_info).await;
        mempool::poll(calls).await;
        chain::poll_mining_info(calls).await;
        mempool::poll_feerates(calls, ibd).await;
        mempool::poll_orphans(calls).await;
        mempool::poll_private_broadcast(calls).await;
        let network_info = calls.rpc("getnetworkinfo", json!([])).await;
        // Discard the handle of the node's process if the process has exited: over HTTP, the node can exit and another
        // node can start between two polls.
        if calls.interfaces.is_http_only() {
            self.process.take_if(|process| process.stat().is_none());
        }
        let process = self.process.as_ref().map(ProcessUsage::id);
        let uptime = node::poll(calls, process, &chain_info, &network_info).await;
        if let (None, Some(uptime)) = (&self.process, uptime) {
            self.process = node::find_process(calls, uptime).await;
        }
        let rpc_info = node::poll_rpc_server(calls).await;
        node::poll_zmq(calls).await;
        self.data_directory.poll(calls, &rpc_info).await;
        network::poll(calls, height, &network_info).await;
        fibre::poll(calls, &mut self.udp_silence).await;
        mempool::poll_fee_estimates(calls, is_new_tip).await;
        chain::poll_hashrate(calls).await;
        chain::poll_deployments(calls).await;
        blocks::poll(calls, hash.as_deref(), ibd).await;
        chain::poll_tips(calls, ibd).await;
        if height.is_none() {
            return Err(calls.unavailable().unwrap_or(PollError::NoTip));
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
