//! The list of interfaces that a node can offer, and the discovery of the interfaces that the connected node has.

use capnp::capability::FromClientHook;

use super::connection::call;
use super::error::ok_if_offered;
use super::execute_rpc::ExecuteRpc;
use super::{CallError, Chain, IpcConnection, Mining, Node, NodeThread, Tracing};
use crate::json_rpc::JsonRpc;
use crate::json_rpc::http::HttpRpc;

/// An interface that a node can offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interface {
    /// Provides the tip, the state of initial block download, and block templates. Every node with IPC has this
    /// interface once its chain state is loaded.
    Mining,
    /// Provides all JSON-RPC methods over IPC. Bitcoin Core 32 has this interface.
    Rpc,
    /// Provides notifications about blocks and mempool transactions, the height of the tip, and the state of pruning.
    /// Nodes built from development branches of Bitcoin Core have this interface.
    Chain,
    /// Provides state of the node's mempool and network, statistics of each peer, and all JSON-RPC methods over IPC.
    /// Nodes built from development branches of Bitcoin Core have this interface.
    Node,
    /// Provides a callback for each coin that enters or leaves a UTXO cache of the node. Nodes built from one
    /// development branch of Bitcoin Core have this interface.
    Tracing,
    /// Provides all JSON-RPC methods over HTTP. Every node with an RPC port and an RPC password or cookie has this
    /// interface.
    HttpRpc,
}

/// Each interface, with its value of the metric label `interface` and a description of the interface's data, in the
/// order of the variants of [`Interface`].
const INTERFACES: [(Interface, &str, &str); 6] = [
    (Interface::Mining, "mining", "tip changes, the node's shutdown, the next block (see --next-block)"),
    (
        Interface::Rpc,
        "rpc",
        "JSON-RPC over IPC: chain, mempool, network, fees; blocks connected from tip changes",
    ),
    (Interface::Chain, "chain", "notifications, counted when they happen: blocks, mempool, flushes"),
    (Interface::Node, "node", "state of the node and its peers; JSON-RPC over IPC"),
    (Interface::Tracing, "tracing", "the UTXO cache trace (see --utxo-trace)"),
    (Interface::HttpRpc, "http-rpc", "JSON-RPC over HTTP, for nodes without it over IPC (see --rpc)"),
];

impl Interface {
    /// All interfaces, in the order in which metrics and log messages list them.
    pub fn all() -> impl Iterator<Item = Interface> {
        INTERFACES.iter().map(|(interface, ..)| *interface)
    }

    /// Value of the metric label `interface`.
    pub fn name(self) -> &'static str {
        INTERFACES[self as usize].1
    }

    /// Description of the data that the interface provides, which `--check` prints.
    pub fn description(self) -> &'static str {
        INTERFACES[self as usize].2
    }
}

/// The clients of the interfaces that a node has.
#[derive(Default)]
pub struct Interfaces {
    /// Client of [`Interface::Mining`]; `None` if the node does not have this interface.
    pub mining: Option<Mining>,
    /// Client of [`Interface::Chain`]; `None` if the node does not have this interface.
    pub chain: Option<Chain>,
    /// Whether the node has a Chain interface whose method ordinals differ from the exporter's schema. The exporter
    /// does not use such an interface.
    pub has_unknown_chain: bool,
    /// Client of [`Interface::Node`]; `None` if the node does not have this interface.
    pub node: Option<Node>,
    /// Client of [`Interface::Tracing`]; `None` if the node does not have this interface.
    pub tracing: Option<Tracing>,
    /// Client of [`Interface::HttpRpc`], set only for a node without JSON-RPC over IPC. [`HttpRpc::is_usable`] reports
    /// whether the client can make calls.
    pub http: Option<HttpRpc>,
    /// JSON-RPC over IPC: through [`Interface::Rpc`] if the node has this interface, otherwise through
    /// [`Interface::Node`]; `None` if the node has neither interface.
    pub(super) execute_rpc: Option<ExecuteRpc>,
}

impl Interfaces {
    /// The interfaces of a node that is polled only over HTTP.
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

    /// Client for JSON-RPC: over IPC if the node has JSON-RPC over IPC, otherwise over HTTP. `None` if JSON-RPC is
    /// available neither over IPC nor over HTTP.
    pub fn json_rpc(&self) -> Option<JsonRpc> {
        let over_ipc = self.execute_rpc.clone().map(JsonRpc::new);
        over_ipc.or_else(|| self.http.clone().map(JsonRpc::new))
    }

    /// Like [`json_rpc`](Self::json_rpc), but calls over IPC run on `thread`.
    pub fn json_rpc_on(&self, thread: &NodeThread) -> Option<JsonRpc> {
        let over_ipc =
            self.execute_rpc.as_ref().map(|execute_rpc| JsonRpc::new(execute_rpc.on_thread(thread)));
        over_ipc.or_else(|| self.json_rpc())
    }

    /// Whether JSON-RPC calls to this node go over HTTP. The result is true even if HTTP is not usable yet.
    pub fn uses_http(&self) -> bool {
        self.http.is_some()
    }

    /// Whether the node is polled only over HTTP, without a connection over IPC.
    pub fn is_http_only(&self) -> bool {
        self.uses_http() && self.mining.is_none() && self.chain.is_none() && self.node.is_none()
    }

    /// The names of the interfaces that the node has.
    pub fn names(&self) -> Vec<&'static str> {
        Interface::all().filter(|it| self.offers(*it)).map(Interface::name).collect()
    }

    /// The names of the interfaces that the node does not have over IPC.
    pub fn missing(&self) -> Vec<&'static str> {
        let over_ipc = Interface::all().filter(|it| *it != Interface::HttpRpc);
        over_ipc.filter(|it| !self.offers(*it)).map(Interface::name).collect()
    }

    /// Whether the node has an interface that reports the tip.
    pub fn has_tip_source(&self) -> bool {
        self.mining.is_some() || self.execute_rpc.is_some() || self.http.is_some() || self.chain.is_some()
    }

    /// Discovers the interfaces of the node, except Mining, which [`Mining::discover`] requests. Makes only calls that
    /// are safe at any time: a node that has just started aborts if a call needs the chain state before the chain state
    /// is loaded. Returns `None` if the node is shutting down; the caller must then make no further call.
    ///
    /// # Errors
    /// The node does not respond in time, sends a malformed response, or closes the connection.
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
            // Depending on the node's version, this capability implements the Rpc or the Chain interface. A node
            // rejects calls that the capability does not implement, so a test call shows which of the two interfaces
            // the capability has.
            let rpc = ExecuteRpc::Rpc(thread.bind(capability.clone().cast_to()));
            if JsonRpc::new(rpc.clone()).is_offered().await? {
                offered.execute_rpc = Some(rpc);
            } else {
                let chain: Chain = thread.bind(capability.cast_to());
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
            let client = thread.bind(client);
            let rpc = ExecuteRpc::Node(client.clone());
            // If the ordinals of the Node interface differ between the node's schema and the exporter's schema, this
            // `executeRpc` call runs another method, and the response is not JSON.
            let is_node = match JsonRpc::new(rpc.clone()).is_offered().await {
                Err(CallError::Malformed(_)) => false,
                offered => offered?,
            };
            if is_node {
                offered.execute_rpc.get_or_insert(rpc);
                offered.node = Some(client);
            }
        }
        if let Some(answer) = ok_if_offered(call!(init, make_tracing_request))?
            && let Ok(client) = answer.get()?.get_result()
        {
            offered.tracing = Some(thread.bind(client));
        }
        Ok(Some(offered))
    }
}
