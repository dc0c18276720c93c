//! Talking to a node: the connection and its handshake, what the node offers, a file per interface.

mod chain;
mod error;
pub mod guard;
mod handler;
mod json_rpc;
mod mining;
mod node;
pub mod source;
mod trace;

use std::rc::Rc;
use std::time::Duration;

use capnp::capability::{FromClientHook, Promise};
use capnp_rpc::{RpcSystem, rpc_twoparty_capnp, twoparty};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio_util::compat::{TokioAsyncReadCompatExt, TokioAsyncWriteCompatExt};

use crate::schema::init_capnp::init;
use crate::schema::proxy_capnp::{thread, thread_map};

pub use chain::{Chain, ChainEvent};
pub use error::CallError;
pub use handler::Subscription;
pub use json_rpc::JsonRpc;
pub use mining::{BlockRef, Hash, Mining};
pub use node::{CONNECTION_TYPES, Direction, NETWORKS, Node, PeerStats, TRANSPORTS};
pub use trace::{CoinEvent, Tracing};

/// Sends a request whose parameters have a `context`, on a node thread, within that thread's deadline.
macro_rules! call {
    ($client:expr, $request:ident, $thread:expr $(, |$params:ident| $set:expr)?) => {{
        let mut request = $client.$request();
        request.get().init_context().set_thread($thread.client.clone());
        $({ let mut $params = request.get(); $set; })?
        $thread.within(request.send().promise).await
    }};
}
pub(crate) use call;

/// A thread of the node's that runs our calls, one at a time, and how long one may take.
///
/// Two calls at once on one thread wait for each other, or fail with `thread busy`: work that may wait needs a
/// thread of its own.
pub struct Thread {
    client: thread::Client,
    deadline: Duration,
}

impl Thread {
    /// Waits for the answer until the deadline. A call that is given up goes on in the node: the guard waits for it.
    pub(crate) async fn within<T>(&self, answer: Promise<T, capnp::Error>) -> Result<T, CallError> {
        match tokio::time::timeout(self.deadline, answer).await {
            Ok(answer) => Ok(answer?),
            Err(_) => Err(CallError::TimedOut(self.deadline)),
        }
    }

    /// The same thread with more time for each call.
    pub fn patient(&self, extra: Duration) -> Thread {
        Thread { client: self.client.clone(), deadline: self.deadline.saturating_add(extra) }
    }

    /// The same thread for calls that may take any time.
    pub fn without_deadline(&self) -> Thread {
        self.patient(Duration::MAX)
    }
}

/// The interfaces that a node offers.
#[derive(Default)]
pub struct Interfaces {
    /// Tip and initial block download: every node, once its chain state is loaded.
    pub mining: Option<Mining>,
    /// Chain notifications: development branches.
    pub chain: Option<Chain>,
    /// Node state and per-peer statistics: development branches.
    pub node: Option<Node>,
    /// UTXO cache trace: a development branch.
    pub tracing: Option<Tracing>,
    /// Every JSON-RPC: Core 32 through Rpc, development branches through Node.
    pub json_rpc: Option<JsonRpc>,
    /// The node is going down: ask nothing of it.
    pub shutting_down: bool,
}

impl Interfaces {
    /// Their names, as the `interface` label has them.
    pub fn names(&self) -> Vec<&'static str> {
        let rpc = matches!(self.json_rpc, Some(JsonRpc::Rpc(_)));
        [
            ("mining", self.mining.is_some()),
            ("rpc", rpc),
            ("chain", self.chain.is_some()),
            ("node", self.node.is_some()),
            ("tracing", self.tracing.is_some()),
        ]
        .into_iter()
        .filter_map(|(name, offered)| offered.then_some(name))
        .collect()
    }
}

/// A connection to a node after the handshake.
pub struct Connection {
    init: init::Client,
    threads: thread_map::Client,
    deadline: Duration,
    closed: watch::Receiver<Option<Rc<str>>>,
    driver: tokio::task::AbortHandle,
}

impl Connection {
    /// Bootstraps and constructs. Needs a [`tokio::task::LocalSet`]. Each call is given `deadline`.
    pub async fn new(stream: UnixStream, deadline: Duration) -> Result<Self, CallError> {
        let (read, write) = stream.into_split();
        let network = twoparty::VatNetwork::new(
            read.compat(),
            write.compat_write(),
            rpc_twoparty_capnp::Side::Client,
            Default::default(),
        );
        let mut system = RpcSystem::new(Box::new(network), None);
        let init: init::Client = system.bootstrap(rpc_twoparty_capnp::Side::Server);
        let (close, closed) = watch::channel(None);
        let driver = tokio::task::spawn_local(async move {
            let reason = match system.await {
                Ok(()) => "the node closed the connection".to_string(),
                Err(error) => CallError::from(error).to_string(),
            };
            close.send_replace(Some(reason.into()));
        })
        .abort_handle();

        let mut connection =
            Connection { threads: capnp_rpc::new_client(OurThreads), init, deadline, closed, driver };
        let mut construct = connection.init.construct_request();
        construct.get().set_thread_map(connection.threads.clone());
        let answer = tokio::select! {
            answer = tokio::time::timeout(deadline, construct.send().promise) => {
                answer.map_err(|_| CallError::TimedOut(deadline))??
            }
            reason = connection.closed() => return Err(CallError::Disconnected(reason.to_string())),
        };
        connection.threads = answer.get()?.get_thread_map()?;
        Ok(connection)
    }

    /// A new thread on the node.
    pub async fn thread(&self, name: &str) -> Result<Thread, CallError> {
        let mut request = self.threads.make_thread_request();
        request.get().set_name(name);
        let answer = tokio::time::timeout(self.deadline, request.send().promise)
            .await
            .map_err(|_| CallError::TimedOut(self.deadline))??;
        Ok(Thread { client: answer.get()?.get_result()?, deadline: self.deadline })
    }

    /// Finds out which interfaces the node offers, all but Mining, with calls that do no harm at any time: a node
    /// that has only just started aborts when it is asked about a chain that it has not loaded.
    pub async fn discover(&self, on: &Thread) -> Result<Interfaces, CallError> {
        let mut offered = Interfaces::default();
        if let Some(answer) = optional(call!(self.init, make_rpc_or_chain_request, on))?
            && let Ok(capability) =
                answer.get()?.get_result().get_as_capability::<capnp::capability::Client>()
        {
            // One capability, two candidates: each refuses what it does not implement.
            let rpc = JsonRpc::Rpc(FromClientHook::new(capability.hook.add_ref()));
            if rpc.is_offered(on).await? {
                offered.json_rpc = Some(rpc);
            } else {
                let chain = Chain::new(FromClientHook::new(capability.hook.add_ref()));
                if let Some(shutting_down) = chain.shutdown_requested(on).await? {
                    offered.shutting_down = shutting_down;
                    offered.chain = Some(chain);
                }
            }
        }
        if let Some(answer) = optional(call!(self.init, make_node_request, on))?
            && let Ok(client) = answer.get()?.get_result()
        {
            let rpc = JsonRpc::Node(client.clone());
            if rpc.is_offered(on).await? {
                offered.json_rpc.get_or_insert(rpc);
                offered.node = Some(Node::new(client));
            }
        }
        if let Some(answer) = optional(call!(self.init, make_tracing_request, on))?
            && let Ok(client) = answer.get()?.get_result()
        {
            offered.tracing = Some(Tracing::new(client));
        }
        Ok(offered)
    }

    /// The Mining interface under the ordinal of Core 31 and later. These nodes answer when their chain state is loaded,
    /// which may take long.
    pub async fn mining(&self, on: &Thread) -> Result<Option<Mining>, CallError> {
        let answer = optional(call!(self.init, make_mining_request, on))?;
        Ok(answer.and_then(|answer| Some(Mining::new(answer.get().ok()?.get_result().ok()?, true))))
    }

    /// The Mining interface under the ordinal of Core 30. That node answers at any time, and aborts when the interface is
    /// used before its chain state is loaded.
    pub async fn mining_core30(&self, on: &Thread) -> Result<Option<Mining>, CallError> {
        let answer = optional(call!(self.init, make_mining_core30_request, on))?;
        Ok(answer.and_then(|answer| Some(Mining::new(answer.get().ok()?.get_result().ok()?, false))))
    }

    /// Resolves with the reason when the connection is gone.
    pub async fn closed(&self) -> Rc<str> {
        let mut closed = self.closed.clone();
        match closed.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().expect("waited for"),
            Err(_) => "closed".into(),
        }
    }
}

impl Drop for Connection {
    /// Closes the socket, without a Cap'n Proto Abort message: the node would log it as an error.
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// 'Not offered' is normal: a method that the node does not have answers Unimplemented, one of its stubs Failed.
fn optional<T>(answer: Result<T, CallError>) -> Result<Option<T>, CallError> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(CallError::Unimplemented(_) | CallError::Failed(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// What the handshake gives the node to ask us for threads with. The guard answers for it.
struct OurThreads;

impl thread_map::Server for OurThreads {}
