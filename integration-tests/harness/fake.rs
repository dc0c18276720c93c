//! A fake node with any subset of Bitcoin Core's IPC interfaces, which makes the callbacks that a test requests.
//!
//! The fake node records a fault for each client error that would make a real node abort or hang. A fault fails the
//! test that started the fake node. The client errors are: closing the connection with a live subscription, during a
//! call or with an unreleased block template (`templates`); cancelling a call; sending Cap'n Proto's `abort` message;
//! and disconnecting a handler twice. When a client calls `disconnect` on a handler, the fake node first calls
//! `destroy` on the callback, either before or after the response to `disconnect`, and then releases the callback.

use std::cell::{Cell, RefCell};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bitcoind_exporter::testing::schema::chain_capnp::{chain, chain_notifications};
use bitcoind_exporter::testing::schema::handler_capnp::handler;
use bitcoind_exporter::testing::schema::init_capnp::init;
use bitcoind_exporter::testing::schema::mining_capnp::mining;
use bitcoind_exporter::testing::schema::node_capnp::node;
use bitcoind_exporter::testing::schema::proxy_capnp::{thread, thread_map};
use bitcoind_exporter::testing::schema::rpc_capnp::rpc;
use bitcoind_exporter::testing::schema::tracing_capnp::{tracing, utxo_cache_trace};
use capnp::Error;
use capnp_rpc::{RpcSystem, new_client, rpc_twoparty_capnp::Side, twoparty};
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc as async_mpsc, watch};
use tokio_util::compat::{TokioAsyncReadCompatExt, TokioAsyncWriteCompatExt};

use super::templates::{Outcome, Step, Templates, Watched};

/// Number of the fake chain's block that is the tip when the fake node starts.
const FIRST_TIP: u8 = 7;

/// The current time in milliseconds since the Unix epoch.
fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64
}

/// The height of the fake chain's block with this number.
fn height_of(block: u8) -> i32 {
    35 + i32::from(block)
}

/// The configuration of a fake node: the IPC interfaces that it offers, and the behavior that differs from a normal
/// node.
#[derive(Clone, Copy, Default)]
pub struct Offers {
    pub mining: bool,
    /// Whether the Mining interface has the ordinals and parameters of Core 30.
    pub core30: bool,
    pub rpc: bool,
    pub chain: bool,
    /// Whether the methods of the Chain interface have other ordinals than in this project's Cap'n Proto schema.
    pub other_chain: bool,
    pub node: bool,
    pub tracing: bool,
    pub ibd: bool,
    /// Whether the fake node's responses contain negative or huge values.
    pub absurd: bool,
    /// Whether the long poll (`waitTipChanged`) returns an error at once.
    pub tip_fails: bool,
    /// Whether the fake node is still loading its chain. Until the chain is loaded, the fake node records a client
    /// error for each call that reads the chain.
    pub loading: bool,
    /// Whether the node is a FIBRE node with one FIBRE peer.
    pub fibre: bool,
    /// Whether the interface Mining returns block templates.
    pub templates: bool,
}

impl Offers {
    /// A fake node with only the Init interface.
    pub const NOTHING: Offers = Offers {
        mining: false,
        core30: false,
        rpc: false,
        chain: false,
        other_chain: false,
        node: false,
        tracing: false,
        ibd: false,
        absurd: false,
        tip_fails: false,
        loading: false,
        fibre: false,
        templates: false,
    };
}

/// A callback that the fake node makes to all its subscribers of ChainNotifications or of the UTXO cache trace.
#[derive(Clone)]
pub enum Event {
    /// `transactionAddedToMempool`.
    Added,
    /// `transactionRemovedFromMempool` with this removal reason.
    Removed(i32),
    /// `blockConnected` with this serialized block.
    Connected { height: i32, data: Vec<u8> },
    /// `blockConnected` for a block of the background chainstate of an assumeutxo node.
    Historical { height: i32, data: Vec<u8> },
    /// `blockDisconnected` for a block at this height.
    Disconnected(i32),
    /// `updatedBlockTip`.
    Tip,
    /// `chainStateFlushed`.
    Flushed,
    /// UTXO cache trace: a coin of this many satoshis was added.
    Add(i64),
    /// UTXO cache trace: a coin of this many satoshis was spent.
    Spend(i64),
    /// UTXO cache trace: a coin of this many satoshis was removed from the cache.
    Uncache(i64),
}

/// The response times of the fake node's client to the callbacks that succeeded.
pub type Answers = Vec<Duration>;

/// A command from the test's thread to the fake node's thread.
enum Command {
    Fire(Vec<Event>, mpsc::Sender<Answers>),
    SetIbd(bool),
    Hang(bool),
    SetTip(u8),
    AnswerHeaders(Option<Value>),
    ShutDown,
    Load,
    SetOutcome(Outcome),
    HangAt(Option<Step>),
    HangSubscriptions(bool),
    OversizeResponse(bool),
}

/// The recorded client errors (faults) and the call counts of a fake node, which the test reads.
#[derive(Default)]
pub struct Counts {
    /// Descriptions of client errors that would make a real node abort or hang.
    faults: Mutex<Vec<String>>,
    unsubscribed: AtomicU32,
    long_polls: AtomicU32,
    connections: AtomicU32,
    last_awaited_tip: AtomicU32,
    getudppeerinfo_calls: AtomicU32,
    getpeerinfo_calls: AtomicU32,
    /// Whether the test has stopped the node with [`FakeNode::end`]. Recorded client errors then no longer fail the
    /// test.
    ended: AtomicBool,
    /// Number of requests for a block template that the fake node has received so far.
    pub templates: AtomicU32,
    /// Number of the client's unfinished calls to which the fake node does not respond, as requested by the test.
    pub hanging: AtomicU32,
}

impl Counts {
    /// Records a client error that would make a real node abort or hang.
    pub fn fault(&self, what: impl Into<String>) {
        self.faults.lock().unwrap().push(what.into());
    }
}

/// Runs a task of the fake node. A panic in the task is recorded like a client error, and therefore fails the test.
fn spawn(counts: &Arc<Counts>, part: impl Future<Output = ()> + 'static) {
    let counts = counts.clone();
    tokio::task::spawn_local(async move {
        if let Err(error) = tokio::task::spawn_local(part).await {
            counts.fault(format!("the fake node itself: {error}"));
        }
    });
}

/// A fake node that runs on a separate thread. When this value is dropped, the test fails if the fake node has recorded
/// client errors.
pub struct FakeNode {
    dir: TempDir,
    commands: async_mpsc::UnboundedSender<Command>,
    counts: Arc<Counts>,
}

impl FakeNode {
    /// Starts a fake node with this configuration.
    pub fn start(offers: Offers) -> Self {
        let dir = TempDir::new().unwrap();
        let (commands, receiver) = async_mpsc::unbounded_channel();
        let counts = Arc::<Counts>::default();
        let listener = std::os::unix::net::UnixListener::bind(dir.path().join("node.sock")).unwrap();
        listener.set_nonblocking(true).unwrap();
        let shared = counts.clone();
        // Core 30 does not report over IPC whether its chain is loaded. The exporter therefore waits until the node's
        // process has a thread with the name `b-msghand`.
        let name = if offers.loading { "b-init" } else { "b-msghand" };
        std::thread::Builder::new()
            .name(name.into())
            .spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                let local = tokio::task::LocalSet::new();
                let state = Rc::new(State {
                    offers,
                    ibd: Cell::new(offers.ibd),
                    loading: Cell::new(offers.loading),
                    hangs: watch::channel(false).0,
                    subscriptions_hang: watch::channel(false).0,
                    oversizes_response: Cell::new(false),
                    shutting_down: watch::channel(false).0,
                    tip: watch::channel(FIRST_TIP).0,
                    templates: Templates::new(&shared),
                    header_answer: RefCell::default(),
                    started: Instant::now(),
                    subscriptions: Cell::new(0),
                    callbacks: RefCell::default(),
                    counts: shared,
                });
                local.block_on(&runtime, run(state, listener, receiver));
            })
            .unwrap();
        FakeNode { dir, commands, counts }
    }

    /// Path of the fake node's IPC socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("node.sock")
    }

    /// Makes these callbacks to all subscribers, each callback after the response to the previous callback. Returns the
    /// number of callbacks that succeeded.
    pub fn fire(&self, events: Vec<Event>) -> usize {
        self.fire_and_time(events).len()
    }

    /// Like [`Self::fire`], but returns the response times of the callbacks that succeeded.
    pub fn fire_and_time(&self, events: Vec<Event>) -> Answers {
        let (sender, answers) = mpsc::channel();
        assert!(self.commands.send(Command::Fire(events, sender)).is_ok(), "the fake node runs");
        answers.recv_timeout(Duration::from_secs(60)).expect("the callbacks are answered")
    }

    /// Sets whether the fake node reports that it is in initial block download.
    pub fn set_ibd(&self, ibd: bool) {
        assert!(self.commands.send(Command::SetIbd(ibd)).is_ok(), "the fake node runs");
    }

    /// Sets whether the fake node leaves calls of `Chain.getHeight` without a response.
    pub fn hang(&self, hangs: bool) {
        assert!(self.commands.send(Command::Hang(hangs)).is_ok(), "the fake node runs");
    }

    /// Sets whether the fake node leaves requests for subscriptions without a response.
    pub fn hang_subscriptions(&self, hang: bool) {
        assert!(self.commands.send(Command::HangSubscriptions(hang)).is_ok(), "the fake node runs");
    }

    /// Sets whether the response to getpeerinfo exceeds the exporter's limit on the size of responses.
    pub fn oversize_response(&self, too_much: bool) {
        assert!(self.commands.send(Command::OversizeResponse(too_much)).is_ok(), "the fake node runs");
    }

    /// Number of getpeerinfo calls that the fake node has received so far.
    pub fn getpeerinfo_calls(&self) -> u32 {
        self.counts.getpeerinfo_calls.load(Relaxed)
    }

    /// Makes a fake node that is loading its chain complete the loading.
    pub fn load(&self) {
        assert!(self.commands.send(Command::Load).is_ok(), "the fake node runs");
    }

    /// Sets the outcome of all later requests for a block template.
    pub fn set_outcome(&self, outcome: Outcome) {
        assert!(self.commands.send(Command::SetOutcome(outcome)).is_ok(), "the fake node runs");
    }

    /// Makes the fake node leave one kind of calls about block templates without a response. With `None`, the fake node
    /// responds to all calls.
    pub fn hang_at(&self, step: Option<Step>) {
        assert!(self.commands.send(Command::HangAt(step)).is_ok(), "the fake node runs");
    }

    /// Whether the client has an unfinished call to which the fake node does not respond, as requested by the test.
    pub fn hangs(&self) -> bool {
        self.counts.hanging.load(Relaxed) > 0
    }

    /// Number of requests for a block template that the fake node has received so far.
    pub fn templates(&self) -> u32 {
        self.counts.templates.load(Relaxed)
    }

    /// Makes the fake chain's block number `block`, at height 35 + `block`, the tip.
    pub fn set_tip(&self, block: u8) {
        assert!(self.commands.send(Command::SetTip(block)).is_ok(), "the fake node runs");
    }

    /// Sets the JSON response to getblockheader, with an `error` or a `result`. `None` restores the normal response.
    pub fn answer_headers(&self, answer: Option<Value>) {
        assert!(self.commands.send(Command::AnswerHeaders(answer)).is_ok(), "the fake node runs");
    }

    /// Number of the block that the client passed as the current tip in its last `waitTipChanged` call.
    pub fn last_awaited_tip(&self) -> u32 {
        self.counts.last_awaited_tip.load(Relaxed)
    }

    /// Number of getudppeerinfo calls that the fake node has received so far.
    pub fn getudppeerinfo_calls(&self) -> u32 {
        self.counts.getudppeerinfo_calls.load(Relaxed)
    }

    /// Makes the fake node announce its shutdown, as a real node does: `shutdownRequested` returns true, and long polls
    /// return no tip.
    pub fn shut_down(&self) {
        assert!(self.commands.send(Command::ShutDown).is_ok(), "the fake node runs");
    }

    /// Stops the fake node at once, even if calls are under way. Recorded client errors no longer fail the test.
    pub fn end(self) {
        self.counts.ended.store(true, Relaxed);
    }

    /// Descriptions of the client errors so far that would make a real node abort or hang.
    pub fn faults(&self) -> Vec<String> {
        self.counts.faults.lock().unwrap().clone()
    }

    /// Clears the recorded client errors, for tests that close the connection on purpose.
    pub fn clear_faults(&self) {
        self.counts.faults.lock().unwrap().clear();
    }

    /// Number of open client connections to the fake node.
    pub fn connections(&self) -> u32 {
        self.counts.connections.load(Relaxed)
    }

    /// Number of `waitTipChanged` calls that the fake node has received so far.
    pub fn long_polls(&self) -> u32 {
        self.counts.long_polls.load(Relaxed)
    }

    /// Number of subscriptions that the client has ended with `disconnect`.
    pub fn unsubscribed(&self) -> u32 {
        self.counts.unsubscribed.load(Relaxed)
    }
}

impl Drop for FakeNode {
    fn drop(&mut self) {
        let faults = self.faults();
        assert!(
            faults.is_empty() || std::thread::panicking() || self.counts.ended.load(Relaxed),
            "a real node would not have survived: {faults:?}"
        );
    }
}

/// The client's callback object of a subscription.
#[derive(Clone)]
enum Callback {
    Chain(chain_notifications::Client),
    Trace(utxo_cache_trace::Client),
}

/// The callback of a subscription; `None` after the fake node has released the callback.
type Held = Rc<RefCell<Option<Callback>>>;

/// The state of a fake node, which all its connections and interfaces share.
struct State {
    offers: Offers,
    ibd: Cell<bool>,
    loading: Cell<bool>,
    hangs: watch::Sender<bool>,
    subscriptions_hang: watch::Sender<bool>,
    oversizes_response: Cell<bool>,
    shutting_down: watch::Sender<bool>,
    /// Number of subscriptions that clients have made so far.
    subscriptions: Cell<u32>,
    tip: watch::Sender<u8>,
    templates: Templates,
    header_answer: RefCell<Option<Value>>,
    started: Instant,
    /// The callbacks of all subscriptions, each with the number of its connection.
    callbacks: RefCell<Vec<(usize, Held)>>,
    counts: Arc<Counts>,
}

/// Accepts connections and executes the test's commands until the [`FakeNode`] is dropped.
async fn run(
    state: Rc<State>,
    listener: std::os::unix::net::UnixListener,
    mut commands: async_mpsc::UnboundedReceiver<Command>,
) {
    let listener = UnixListener::from_std(listener).unwrap();
    let mut next = 0;
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                state.counts.connections.fetch_add(1, Relaxed);
                spawn(&state.counts.clone(), serve(state.clone(), accepted.unwrap().0, next));
                next += 1;
            }
            command = commands.recv() => match command {
                Some(Command::Fire(events, answered)) => {
                    let state = state.clone();
                    spawn(&state.counts.clone(), async move {
                        let mut answers = Answers::new();
                        for event in events {
                            fire(&state, event, &mut answers).await;
                        }
                        let _ = answered.send(answers);
                    });
                }
                Some(Command::SetIbd(ibd)) => state.ibd.set(ibd),
                Some(Command::Hang(hangs)) => { state.hangs.send_replace(hangs); }
                Some(Command::HangSubscriptions(hang)) => { state.subscriptions_hang.send_replace(hang); }
                Some(Command::OversizeResponse(too_much)) => state.oversizes_response.set(too_much),
                Some(Command::Load) => {
                    state.loading.set(false);
                    nix::sys::prctl::set_name(c"b-msghand").unwrap();
                }
                Some(Command::SetTip(block)) => { state.tip.send_replace(block); }
                Some(Command::SetOutcome(outcome)) => state.templates.outcome.set(outcome),
                Some(Command::HangAt(step)) => { state.templates.hangs_at.send_replace(step); }
                Some(Command::AnswerHeaders(answer)) => *state.header_answer.borrow_mut() = answer,
                Some(Command::ShutDown) => { state.shutting_down.send_replace(true); }
                None => return,
            }
        }
    }
}

/// Serves one client connection to the fake node until the connection is closed.
async fn serve(state: Rc<State>, stream: UnixStream, connection: usize) {
    let (read, write) = stream.into_split();
    let reads = Watched { reads: read.compat(), templates: state.templates.clone(), connection };
    let network = twoparty::VatNetwork::new(reads, write.compat_write(), Side::Server, Default::default());
    let init: init::Client = new_client(Init { state: state.clone(), connection });
    match RpcSystem::new(Box::new(network), Some(init.client)).await {
        Err(error) if error.kind != capnp::ErrorKind::Disconnected => {
            state.counts.fault(format!("the connection was given up: {error}"));
        }
        _ => {}
    }
    let mut callbacks = state.callbacks.borrow_mut();
    if callbacks.iter().any(|(of, callback)| *of == connection && callback.borrow().is_some()) {
        state.counts.fault("the connection was closed with a live subscription");
    }
    callbacks.retain(|(of, _)| *of != connection);
    state.counts.connections.fetch_sub(1, Relaxed);
}

/// Makes a callback to each subscriber, one after the other, and adds the response times to `answers`.
async fn fire(state: &State, event: Event, answers: &mut Answers) {
    let callbacks: Vec<_> =
        state.callbacks.borrow().iter().filter_map(|(_, it)| it.borrow().clone()).collect();
    for callback in callbacks {
        macro_rules! call {
            ($client:ident.$request:ident $(, |$params:ident| $set:expr)?) => {{
                let mut request = $client.$request();
                $({ #[allow(unused_mut, reason = "not in each use of the macro")] let mut $params = request.get(); $set; })?
                let _ = &mut request;
                let asked = Instant::now();
                if request.send().promise.await.is_ok() {
                    answers.push(asked.elapsed());
                }
            }};
        }
        match (&callback, &event) {
            (Callback::Chain(client), Event::Added) => call!(client.transaction_added_to_mempool_request),
            (Callback::Chain(client), Event::Removed(reason)) => {
                call!(client.transaction_removed_from_mempool_request, |params| params.set_reason(*reason))
            }
            (Callback::Chain(client), Event::Connected { height, data }) => {
                call!(client.block_connected_request, |params| {
                    params.reborrow().init_role().set_validated(true);
                    let mut block = params.init_block();
                    block.set_height(*height);
                    block.set_data(data)
                })
            }
            (Callback::Chain(client), Event::Historical { height, data }) => {
                call!(client.block_connected_request, |params| {
                    params.reborrow().init_role().set_historical(true);
                    let mut block = params.init_block();
                    block.set_height(*height);
                    block.set_data(data)
                })
            }
            (Callback::Chain(client), Event::Disconnected(height)) => {
                call!(client.block_disconnected_request, |params| params.init_block().set_height(*height))
            }
            (Callback::Chain(client), Event::Tip) => call!(client.updated_block_tip_request),
            (Callback::Chain(client), Event::Flushed) => call!(client.chain_state_flushed_request),
            (Callback::Trace(client), Event::Add(value)) => {
                call!(client.add_request, |params| params.init_utxo_info().set_value(*value))
            }
            (Callback::Trace(client), Event::Spend(value)) => {
                call!(client.spend_request, |params| params.init_utxo_info().set_value(*value))
            }
            (Callback::Trace(client), Event::Uncache(value)) => {
                call!(client.uncache_request, |params| params.init_utxo_info().set_value(*value))
            }
            _ => {}
        }
    }
}

/// Defines the implementation of one IPC method of the fake node.
macro_rules! method {
    ($module:ident::$name:ident($params:ident: $Params:ident, $results:ident: $Results:ident), |$this:ident| $body:block) => {
        async fn $name(self: Rc<Self>, $params: $module::$Params, #[allow(unused_mut, reason = "not in each use of the macro")] mut $results: $module::$Results) -> Result<(), Error> {
            #[allow(unused_variables, reason = "not in each use of the macro")]
            let $this = self;
            $body
            #[allow(unreachable_code, reason = "not in each use of the macro")]
            Ok(())
        }
    };
}

/// Returns the error "Method not implemented" if the fake node does not offer the interface.
fn refused<T>(offered: bool, what: T) -> Result<T, Error> {
    if offered { Ok(what) } else { Err(Error::unimplemented("Method not implemented".into())) }
}

/// The Init interface of one connection to the fake node.
struct Init {
    state: Rc<State>,
    connection: usize,
}

impl Init {
    /// Called when the exporter requests data of the fake chain. Records a client error, which fails the test, if the
    /// fake node is still loading its chain.
    fn chain_is_loaded(&self) {
        if self.state.loading.get() {
            self.state.counts.fault("asked for its chain before it was loaded");
        }
    }

    /// Creates the object that implements all interfaces of the fake node except Init, for this connection.
    fn fake(&self) -> Fake {
        Fake { state: self.state.clone(), connection: self.connection }
    }
}

impl init::Server for Init {
    method!(init::construct(_params: ConstructParams, results: ConstructResults), |this| {
        results.get().set_thread_map(new_client(Threads));
    });
    method!(init::make_mining_core30(_params: MakeMiningCore30Params, results: MakeMiningCore30Results), |this| {
        if !this.state.offers.core30 {
            return Err(Error::failed("no longer supported".into()));
        }
        this.chain_is_loaded();
        results.get().set_result(new_client(this.fake()));
    });
    method!(init::make_mining(_params: MakeMiningParams, results: MakeMiningResults), |this| {
        refused(this.state.offers.mining, ())?;
        this.chain_is_loaded();
        results.get().set_result(new_client(this.fake()));
    });
    method!(init::make_rpc_or_chain(_params: MakeRpcOrChainParams, results: MakeRpcOrChainResults), |this| {
        refused(this.state.offers.rpc || this.state.offers.chain, ())?;
        let mut result = results.get().init_result();
        if this.state.offers.rpc {
            let rpc: rpc::Client = new_client(this.fake());
            result.set_as_capability(rpc.client.hook);
        } else {
            let chain: chain::Client = new_client(this.fake());
            result.set_as_capability(chain.client.hook);
        }
    });
    method!(init::make_node(_params: MakeNodeParams, results: MakeNodeResults), |this| {
        refused(this.state.offers.node, ())?;
        results.get().set_result(new_client(this.fake()));
    });
    method!(init::make_tracing(_params: MakeTracingParams, results: MakeTracingResults), |this| {
        refused(this.state.offers.tracing, ())?;
        results.get().set_result(new_client(this.fake()));
    });
}

/// The fake node's thread map, which creates thread objects for a client.
struct Threads;

impl thread_map::Server for Threads {
    method!(thread_map::make_thread(_params: MakeThreadParams, results: MakeThreadResults), |this| {
        results.get().set_result(new_client(Thread));
    });
}

/// The thread object that the fake node returns to a client. A client passes the object in its calls. The object has no
/// thread of the operating system.
struct Thread;

impl thread::Server for Thread {}

/// All interfaces of the fake node except Init, for one connection.
struct Fake {
    state: Rc<State>,
    connection: usize,
}

impl Fake {
    /// Waits until the test lets the fake node respond to requests for subscriptions.
    async fn subscriptions_pass(&self) {
        if *self.state.subscriptions_hang.borrow() {
            let mut call = InCall { state: self.state.clone(), answered: false };
            self.state.counts.hanging.fetch_add(1, Relaxed);
            let _ = self.state.subscriptions_hang.subscribe().wait_for(|hang| !hang).await;
            self.state.counts.hanging.fetch_sub(1, Relaxed);
            call.answered = true;
        }
    }

    /// Stores the callback of a new subscription, and returns the subscription's handler.
    fn subscribe(&self, callback: Callback) -> handler::Client {
        let callback = Rc::new(RefCell::new(Some(callback)));
        self.state.callbacks.borrow_mut().push((self.connection, callback.clone()));
        let counts = self.state.counts.clone();
        let subscriptions = self.state.subscriptions.replace(self.state.subscriptions.get() + 1);
        new_client(Handler {
            callback,
            disconnected: Cell::new(false),
            destroys_first: subscriptions.is_multiple_of(2),
            counts,
        })
    }

    /// The JSON response of the fake node to this JSON-RPC call.
    fn execute(&self, method: &str, params: &serde_json::Value) -> serde_json::Value {
        use serde_json::json;
        let hash = |block: u8| format!("{block:02x}").repeat(32);
        let tip = *self.state.tip.borrow();
        if method == "getudppeerinfo" {
            self.state.counts.getudppeerinfo_calls.fetch_add(1, Relaxed);
        }
        if method == "getpeerinfo" {
            self.state.counts.getpeerinfo_calls.fetch_add(1, Relaxed);
        }
        match method {
            "getpeerinfo" if self.state.oversizes_response.get() => json!({"result": "x".repeat(70_000_000)}),
            // The response of FIBRE 30.0, with `lastrecv` and the round trip times in milliseconds.
            "getudppeerinfo" if self.state.offers.fibre => json!({"result": [{
                "addr": "192.0.2.1:8336", "group": 2, "lastrecv": now_ms(), "ultimatetrust": true,
                "min_recent_rtt": 10.5, "max_recent_rtt": 20.25, "avg_recent_rtt": 15.125
            }]}),
            "uptime" => json!({"result": self.state.started.elapsed().as_secs()}),
            "getblockchaininfo" if self.state.offers.rpc => json!({"result": {
                "blocks": 42, "headers": null, "difficulty": "high", "initialblockdownload": self.state.ibd.get(),
                "verificationprogress": "0.5", "size_on_disk": -5, "chain": ["regtest"]
            }}),
            "getblockheader" if self.state.header_answer.borrow().is_some() => {
                self.state.header_answer.borrow().clone().unwrap()
            }
            "getblockheader" => match (0..=tip).find(|block| params[0] == hash(*block)) {
                Some(block) => json!({"result": {
                    "previousblockhash": hash(block.wrapping_sub(1)), "confirmations": tip - block + 1
                }}),
                None => json!({"error": {"code": -5, "message": "Block not found"}}),
            },
            "getblockhash" => json!({"result": hash((params[0].as_i64().unwrap() - 35) as u8)}),
            "getmempoolinfo" => json!({"result": {"size": 3, "total_fee": null}}),
            _ => json!({"error": {"code": -32601, "message": "Method not found"}}),
        }
    }
}

/// A call to which the fake node has not responded. A client error is recorded if this value is dropped before the
/// response, because a real node can abort when its client disconnects or cancels the call before the response.
struct InCall {
    state: Rc<State>,
    answered: bool,
}

impl Drop for InCall {
    fn drop(&mut self) {
        if !self.answered {
            self.state.counts.fault("a call was left or cancelled before its answer");
        }
    }
}

impl mining::Server for Fake {
    method!(mining::is_initial_block_download(_params: IsInitialBlockDownloadParams, results: IsInitialBlockDownloadResults), |this| {
        results.get().set_result(this.state.ibd.get());
    });
    method!(mining::get_tip(_params: GetTipParams, results: GetTipResults), |this| {
        let mut results = results.get();
        results.set_has_result(true);
        let mut tip = results.init_result();
        let block = *this.state.tip.borrow();
        tip.set_hash(&[block; 32]);
        tip.set_height(height_of(block));
    });
    method!(mining::create_new_block(params: CreateNewBlockParams, results: CreateNewBlockResults), |this| {
        refused(this.state.offers.templates, ())?;
        let mut call = InCall { state: this.state.clone(), answered: false };
        let created = this.state.templates.create(&params, this.state.offers.core30, this.connection).await;
        call.answered = true;
        if let Some(template) = created? {
            results.get().set_result(template);
        }
    });
    method!(mining::wait_tip_changed(params: WaitTipChangedParams, results: WaitTipChangedResults), |this| {
        this.state.counts.long_polls.fetch_add(1, Relaxed);
        if this.state.offers.tip_fails {
            return Err(Error::failed("no tip".into()));
        }
        let params = params.get()?;
        let mut milliseconds = params.get_timeout();
        if this.state.offers.core30 {
            // Cap'n Proto sends the XOR of a value and its default. For the timeout, this project's schema has the
            // default f64::MAX, and the schema of Core 30 has no default. To get the value that Core 30 would read, the
            // fake node undoes the XOR with f64::MAX.
            milliseconds = f64::from_bits(milliseconds.to_bits() ^ f64::MAX.to_bits());
        }
        let timeout = Duration::from_secs_f64(milliseconds / 1000.0);
        assert!((100..10_000).contains(&timeout.as_millis()), "a long poll of {timeout:?}");
        let mut call = InCall { state: this.state.clone(), answered: false };
        let mut shutting_down = this.state.shutting_down.subscribe();
        let known: Vec<u8> = params.get_current_tip()?.to_vec();
        this.state.counts.last_awaited_tip.store(known[0].into(), Relaxed);
        let mut tip = this.state.tip.subscribe();
        tokio::select! {
            _ = tip.wait_for(|&tip| known != [tip; 32]) => {}
            _ = shutting_down.wait_for(|&it| it) => {
                call.answered = true;
                return Ok(());
            }
            () = tokio::time::sleep(timeout) => {}
        }
        call.answered = true;
        let block = *this.state.tip.borrow();
        let mut tip = results.get().init_result();
        tip.set_hash(&[block; 32]);
        tip.set_height(height_of(block));
    });
}

impl rpc::Server for Fake {
    method!(rpc::execute_rpc(params: ExecuteRpcParams, results: ExecuteRpcResults), |this| {
        let request: serde_json::Value = serde_json::from_str(params.get()?.get_request()?.to_str()?).unwrap();
        assert_eq!(request["jsonrpc"], "2.0");
        let mut answer = this.execute(request["method"].as_str().unwrap(), &request["params"]);
        answer["id"] = request["id"].clone();
        results.get().set_result(answer.to_string());
    });
}

impl chain::Server for Fake {
    method!(chain::get_height(_params: GetHeightParams, results: GetHeightResults), |this| {
        let mut call = InCall { state: this.state.clone(), answered: false };
        if *this.state.hangs.borrow() {
            this.state.counts.hanging.fetch_add(1, Relaxed);
            let _ = this.state.hangs.subscribe().wait_for(|&hangs| !hangs).await;
            this.state.counts.hanging.fetch_sub(1, Relaxed);
        }
        call.answered = true;
        results.get().set_has_result(true);
        results.get().set_result(if this.state.offers.absurd { i32::MIN } else { 42 });
    });
    method!(chain::is_initial_block_download(_params: IsInitialBlockDownloadParams, results: IsInitialBlockDownloadResults), |this| {
        results.get().set_result(this.state.ibd.get());
    });
    method!(chain::have_pruned(_params: HavePrunedParams, results: HavePrunedResults), |this| {
        results.get().set_result(true);
    });
    method!(chain::get_prune_height(_params: GetPruneHeightParams, results: GetPruneHeightResults), |this| {
        results.get().set_has_result(true);
        results.get().set_result(9);
    });
    method!(chain::relay_min_fee(_params: RelayMinFeeParams, results: RelayMinFeeResults), |this| {
        // In a Chain interface with other ordinals, another method has the ordinal of `relayMinFee`. That method
        // returns a number, and the exporter therefore finds no data in the field for the fee rate.
        if !this.state.offers.other_chain {
            results.get().set_result(&1000u64.to_le_bytes());
        }
    });
    method!(chain::shutdown_requested(_params: ShutdownRequestedParams, results: ShutdownRequestedResults), |this| {
        results.get().set_result(*this.state.shutting_down.borrow());
    });
    method!(chain::handle_notifications(params: HandleNotificationsParams, results: HandleNotificationsResults), |this| {
        let callback = params.get()?.get_notifications()?;
        this.subscriptions_pass().await;
        results.get().set_result(this.subscribe(Callback::Chain(callback)));
    });
}

impl node::Server for Fake {
    method!(node::get_node_count(params: GetNodeCountParams, results: GetNodeCountResults), |this| {
        let flags = params.get()?.get_flags() as u64;
        results.get().set_result(if this.state.offers.absurd { u64::MAX } else { flags });
    });
    method!(node::get_nodes_stats(_params: GetNodesStatsParams, results: GetNodesStatsResults), |this| {
        results.get().set_result(true);
        let mut peer = results.get().init_stats(1).get(0);
        let absurd = this.state.offers.absurd;
        peer.set_nodeid(3);
        peer.set_version(if absurd { i32::MIN } else { 70016 });
        peer.set_clean_sub_ver(if absurd { "\u{1f4a9}" } else { "/Satoshi:29.2.0/Knots:20251110/" });
        peer.set_network(if absurd { i32::MAX } else { 2 });
        peer.set_addr_name(if absurd { "no address" } else { "[2a01:4f8::1]:8333" });
        peer.set_mapped_as(if absurd { u32::MAX } else { 64496 });
        peer.set_conn_type(if absurd { -1 } else { 4 });
        peer.set_transport_type(if absurd { u8::MAX } else { 2 });
        peer.set_ping_time(if absurd { i64::MIN } else { 250_000 });
        peer.set_min_ping_time(i64::MAX);
        let mut received = peer.reborrow().init_recv_bytes_per_msg_type(1).get(0);
        received.set_key("block").unwrap();
        received.set_value(if absurd { u64::MAX } else { 1000 });
        let mut state = peer.init_state_stats();
        state.set_time_offset(if absurd { i64::MIN } else { 11 });
        state.set_sync_height(if absurd { i32::MIN } else { 43 });
        state.set_their_services(if absurd { u64::MAX } else { 0x409 });
        state.set_addresses_processed(if absurd { u64::MAX } else { 50 });
        state.set_addresses_rate_limited(if absurd { u64::MAX } else { 5 });
        state.set_ping_wait(if absurd { i64::MIN } else { 6_000_000 });
        let mut heights = state.reborrow().init_height_in_flight(2);
        (0..2).for_each(|at| heights.set(at, 43 + at as i32));
    });
    method!(node::get_total_bytes_recv(_params: GetTotalBytesRecvParams, results: GetTotalBytesRecvResults), |this| {
        results.get().set_result(if this.state.offers.absurd { -1 } else { 1234 });
    });
    method!(node::get_total_bytes_sent(_params: GetTotalBytesSentParams, results: GetTotalBytesSentResults), |this| {
        results.get().set_result(if this.state.offers.absurd { i64::MAX } else { 5678 });
    });
    method!(node::get_mempool_size(_params: GetMempoolSizeParams, results: GetMempoolSizeResults), |this| {
        results.get().set_result(if this.state.offers.absurd { u64::MAX } else { 17 });
    });
    method!(node::get_header_tip(_params: GetHeaderTipParams, results: GetHeaderTipResults), |this| {
        results.get().set_result(true);
        results.get().set_height(44);
    });
    method!(node::get_verification_progress(_params: GetVerificationProgressParams, results: GetVerificationProgressResults), |this| {
        results.get().set_result(if this.state.offers.absurd { f64::NAN } else { 0.5 });
    });
    method!(node::is_initial_block_download(_params: IsInitialBlockDownloadParams, results: IsInitialBlockDownloadResults), |this| {
        results.get().set_result(this.state.ibd.get());
    });
    method!(node::execute_rpc(params: ExecuteRpcParams, results: ExecuteRpcResults), |this| {
        let arguments = serde_json::from_str(params.get()?.get_params()?.to_str()?).unwrap();
        let answer = this.execute(params.get()?.get_command()?.to_str()?, &arguments);
        match answer.get("error") {
            Some(error) => results.get().set_rpc_error(error.to_string()),
            None => results.get().set_result(answer["result"].to_string()),
        }
    });
}

impl tracing::Server for Fake {
    method!(tracing::trace_utxo_cache(params: TraceUtxoCacheParams, results: TraceUtxoCacheResults), |this| {
        let callback = params.get()?.get_callback()?;
        this.subscriptions_pass().await;
        results.get().set_result(this.subscribe(Callback::Trace(callback)));
    });
}

/// The handler of a subscription. The client calls `disconnect` on the handler to end the subscription.
struct Handler {
    callback: Held,
    disconnected: Cell<bool>,
    /// Whether the fake node calls `destroy` on the callback before it responds to `disconnect`. If false, the fake
    /// node calls `destroy` after the response.
    destroys_first: bool,
    counts: Arc<Counts>,
}

impl handler::Server for Handler {
    method!(handler::disconnect(_params: DisconnectParams, _results: DisconnectResults), |this| {
        if this.disconnected.replace(true) {
            this.counts.fault("a handler was disconnected twice");
            return std::future::pending().await;
        }
        let (callback, counts) = (this.callback.clone(), this.counts.clone());
        let destroy = async move {
            tokio::time::sleep(Duration::from_millis(3)).await;
            let held = callback.borrow().clone();
            match held {
                Some(Callback::Chain(client)) => client.destroy_request().send().promise.await.is_ok(),
                Some(Callback::Trace(client)) => client.destroy_request().send().promise.await.is_ok(),
                None => false,
            }
        };
        let callback = this.callback.clone();
        let release = move |destroyed: bool| if destroyed {
            *callback.borrow_mut() = None;
            counts.unsubscribed.fetch_add(1, Relaxed);
        };
        if this.destroys_first {
            let destroyed = destroy.await;
            spawn(&this.counts, async move {
                tokio::time::sleep(Duration::from_millis(3)).await;
                release(destroyed);
            });
        } else {
            spawn(&this.counts, async move { release(destroy.await) });
        }
    });
}
