//! JSON-RPC over IPC, through the method `executeRpc` of the Rpc or the Node interface. Unlike JSON-RPC over HTTP,
//! JSON-RPC over IPC needs no cookie and no port.

use futures::future::LocalBoxFuture;
use serde_json::Value;

use super::connection::{BoundCapability, call};
use super::{CallError, NodeThread};
use crate::json_rpc::{Response, Transport, call_error, parse, request};
use crate::schema::node_capnp::node;
use crate::schema::rpc_capnp::rpc;

/// IPC transport of JSON-RPC: a client of an interface with the method `executeRpc`.
#[derive(Clone)]
pub(super) enum ExecuteRpc {
    /// `Rpc.executeRpc`, which takes and returns JSON-RPC 2.0 objects.
    Rpc(BoundCapability<rpc::Client>),
    /// `Node.executeRpc`, which takes the method and its parameters separately.
    Node(BoundCapability<node::Client>),
}

impl ExecuteRpc {
    /// Returns a client of the same interface whose calls run on `thread`.
    pub fn on_thread(&self, thread: &NodeThread) -> Self {
        match self {
            ExecuteRpc::Rpc(capability) => ExecuteRpc::Rpc(capability.on_thread(thread)),
            ExecuteRpc::Node(capability) => ExecuteRpc::Node(capability.on_thread(thread)),
        }
    }

    async fn execute(&self, method: &str, params: &Value) -> Result<String, CallError> {
        match self {
            ExecuteRpc::Rpc(capability) => {
                let request = request(method, params);
                let answer = call!(capability, execute_rpc_request, |params| {
                    params.set_request(request);
                    params.set_uri("");
                    params.set_user(env!("CARGO_PKG_NAME"))
                })?;
                parse::<Response>(answer.get()?.get_result()?.to_str()?)?.result()
            }
            ExecuteRpc::Node(capability) => {
                let answer = call!(capability, execute_rpc_request, |parameters| {
                    parameters.set_command(method);
                    parameters.set_params(params.to_string());
                    parameters.set_uri("")
                })?;
                let answer = answer.get()?;
                if answer.has_rpc_error() {
                    return Err(call_error(&parse(answer.get_rpc_error()?.to_str()?)?));
                }
                if answer.has_error() {
                    return Err(CallError::Failed(answer.get_error()?.to_str()?.to_string()));
                }
                Ok(answer.get_result()?.to_str()?.to_string())
            }
        }
    }
}

impl Transport for ExecuteRpc {
    fn call<'a>(
        &'a self,
        method: &'static str,
        params: &'a Value,
    ) -> LocalBoxFuture<'a, Result<String, CallError>> {
        Box::pin(self.execute(method, params))
    }
}
