//! The list of the interfaces that a node can offer, and the discovery of those that a node has.

use capnp::capability::FromClientHook;

use super::connection::{BoundCapability, call};
use super::error::ok_if_offered;
use super::json_rpc::ExecuteRpc;
use super::{CallError, Chain, IpcConnection, Mining, Node, NodeThread, Tracing};
use crate::json_rpc::JsonRpc;
use crate::json_rpc::http::HttpRpc;

/// An interface that a node can offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interface {
    /// Tip and initial block download, in every node with IPC once its chain state is loaded.
    Mining,
    /// All JSON-RPC methods, in Bitcoin Core 32.
    Rpc,
    /// Chain notifications, in development branches.
    Chain,
    /// Node state, per-peer statistics and all JSON-RPC methods, in development branches.
    Node,
    /// UTXO cache trace, in a development branch.
    Tracing,
    /// All JSON-RPC methods, over HTTP instead of IPC, in every node with a port and a password for HTTP.
    HttpRpc,
}

impl Interface {
    /// All interfaces, in the order in which they are shown.
    pub const ALL: [Interface; 6] = [
        Interface::Mining,
        Interface::Rpc,
        Interface::Chain,
        Interface::Node,
        Interface::Tracing,
        Interface::HttpRpc,
    ];

    /// Value of the `interface` label.
    pub fn name(self) -> &'static str {
        match self {
            Interface::Mining => "mining",
            Interface::Rpc => "rpc",
            Interface::Chain => "chain",
            Interface::Node => "node",
            Interface::Tracing => "tracing",
            Interface::HttpRpc => "http-rpc",
        }
    }

    /// The data that the interface provides.
    pub fn description(self) -> &'static str {
        match self {
            Interface::Mining => "tip changes, the node's shutdown, the next block (see --next-block)",
            Interface::Rpc => {
                "JSON-RPC over IPC: chain, mempool, network, fees; blocks connected from tip changes"
            }
            Interface::Chain => "notifications, counted when they happen: blocks, mempool, flushes",
            Interface::Node => "state of the node and its peers; JSON-RPC over IPC",
            Interface::Tracing => "the UTXO cache trace (see --utxo-trace)",
            Interface::HttpRpc => "JSON-RPC over HTTP, for nodes without it over IPC (see --rpc)",
        }
    }
}

/// The interfaces that a node has.
#[derive(Default)]
pub struct Interfaces {
    /// [`Interface::Mining`]
    pub mining: Option<Mining>,
    /// [`Interface::Chain`]
    pub chain: Option<Chain>,
    /// Whether the node has a Chain interface whose methods have other ordinals, so that it is not used.
    pub has_unknown_chain: bool,
    /// [`Interface::Node`]
    pub node: Option<Node>,
    /// [`Interface::Tracing`]
    pub tracing: Option<Tracing>,
    /// [`Interface::HttpRpc`], for a node without JSON-RPC over IPC. It may not be usable yet.
    pub http: Option<HttpRpc>,
    /// JSON-RPC over IPC, by [`Interface::Rpc`], else by [`Interface::Node`].
    pub(super) execute_rpc: Option<ExecuteRpc>,
}

impl Interfaces {
    /// The interfaces of a node without IPC.
    pub fn over_http(http: HttpRpc) -> Self {
        Interfaces { http: Some(http), ..Interfaces::default() }
    }

    /// Whether the node has this interface.
    pub fn offers(&self, interface: Interface) -> bool {
        match interface {
            Interface::Mining => self.mining.is_some(),
            Interface::Rpc => matches!(self.execute_rpc, Some(ExecuteRpc::Rpc(_))),
            Interface::Chain => self.chain.is_some(),
            Interface::Node => self.node.is_some(),
            Interface::Tracing => self.tracing.is_some(),
            Interface::HttpRpc => self.http.as_ref().is_some_and(HttpRpc::is_usable),
        }
    }

    /// JSON-RPC: over IPC if the node has it there, else over HTTP.
    pub fn json_rpc(&self) -> Option<JsonRpc> {
        self.json_rpc_with(ExecuteRpc::clone)
    }

    /// Like [`json_rpc`](Self::json_rpc), with calls over IPC that run on this thread.
    pub fn json_rpc_on(&self, thread: &NodeThread) -> Option<JsonRpc> {
        self.json_rpc_with(|execute_rpc| execute_rpc.on_thread(thread))
    }

    fn json_rpc_with(&self, over_ipc: impl FnOnce(&ExecuteRpc) -> ExecuteRpc) -> Option<JsonRpc> {
        match (&self.execute_rpc, &self.http) {
            (Some(execute_rpc), _) => Some(JsonRpc::new(over_ipc(execute_rpc))),
            (None, Some(http)) => Some(JsonRpc::new(http.clone())),
            (None, None) => None,
        }
    }

    /// Whether JSON-RPC is called over HTTP, as soon as HTTP is usable.
    pub fn uses_http(&self) -> bool {
        self.http.is_some()
    }

    /// Whether there is no connection over IPC.
    pub fn is_http_only(&self) -> bool {
        self.uses_http() && self.mining.is_none() && self.chain.is_none() && self.node.is_none()
    }

    /// The names of the interfaces that the node has.
    pub fn names(&self) -> Vec<&'static str> {
        self.all(|offered| offered)
    }

    /// The names of the interfaces that the node does not have over IPC.
    pub fn missing(&self) -> Vec<&'static str> {
        self.all(|offered| !offered).into_iter().filter(|name| *name != Interface::HttpRpc.name()).collect()
    }

    fn all(&self, is_included: impl Fn(bool) -> bool) -> Vec<&'static str> {
        let all = Interface::ALL.into_iter();
        all.filter(|it| is_included(self.offers(*it))).map(Interface::name).collect()
    }

    /// Whether the node has an interface that reports the tip.
    pub fn has_tip_source(&self) -> bool {
        self.mining.is_some() || self.execute_rpc.is_some() || self.http.is_some() || self.chain.is_some()
    }

    /// Discovers the interfaces of the node, except Mining. Makes only calls that are safe at any time: a node that has just started
    /// aborts when a call needs a chain that it has not loaded. Returns `None` if the node is shutting down. No further call may then
    /// be made.
    pub async fn discover(
        connection: &IpcConnection,
        thread: &NodeThread,
    ) -> Result<Option<Self>, CallError> {
        let init = connection.init(thread);
        let mut offered = Interfaces::default();
        if let Some(answer) = ok_if_offered(call!(init, make_rpc_or_chain_request))?
            && let Ok(capability) =
                answer.get()?.get_result().get_as_capability::<capnp::capability::Client>()
        {
            // One capability, which may be Rpc or Chain: it rejects calls that it does not implement.
            let rpc = ExecuteRpc::Rpc(with_thread(&capability, thread));
            if JsonRpc::new(rpc.clone()).is_offered().await? {
                offered.execute_rpc = Some(rpc);
            } else {
                let chain = Chain(with_thread(&capability, thread));
                match chain.has_our_schema().await? {
                    Some(true) => match chain.shutdown_requested().await? {
                        Some(true) => return Ok(None),
                        Some(false) => offered.chain = Some(chain),
                        None => {}
                    },
                    Some(false) => offered.has_unknown_chain = true,
                    None => {}
                }
            }
        }
        if let Some(answer) = ok_if_offered(call!(init, make_node_request))?
            && let Ok(client) = answer.get()?.get_result()
        {
            let client = BoundCapability { client, thread: thread.clone() };
            let rpc = ExecuteRpc::Node(client.clone());
            // With other ordinals the response is no JSON.
            let is_node = match JsonRpc::new(rpc.clone()).is_offered().await {
                Err(CallError::Malformed(_)) => false,
                offered => offered?,
            };
            if is_node {
                offered.execute_rpc.get_or_insert(rpc);
                offered.node = Some(Node(client));
            }
        }
        if let Some(answer) = ok_if_offered(call!(init, make_tracing_request))?
            && let Ok(client) = answer.get()?.get_result()
        {
            offered.tracing = Some(Tracing(BoundCapability { client, thread: thread.clone() }));
        }
        Ok(Some(offered))
    }
}

/// The capability as a client of one interface, with the thread that runs its calls.
fn with_thread<C: FromClientHook>(
    capability: &capnp::capability::Client,
    thread: &NodeThread,
) -> BoundCapability<C> {
    BoundCapability { client: FromClientHook::new(capability.hook.add_ref()), thread: thread.clone() }
}
