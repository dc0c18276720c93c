//! JSON-RPC over IPC: no cookie, no port.

use serde_json::{Value, json};

use super::{CallError, Thread, call};
use crate::schema::node_capnp::node;
use crate::schema::rpc_capnp::rpc;

/// How the node takes JSON-RPC.
#[derive(Clone)]
pub enum JsonRpc {
    /// `Rpc.executeRpc`: JSON-RPC 2.0 objects.
    Rpc(rpc::Client),
    /// `Node.executeRpc`: method and parameters apart.
    Node(node::Client),
}

impl JsonRpc {
    /// Whether the capability really is what we take it for. `uptime` is safe to ask from the node's first moment.
    pub(super) async fn is_offered(&self, on: &Thread) -> Result<bool, CallError> {
        match self.call(on, "uptime", json!([])).await {
            Ok(_) | Err(CallError::JsonRpc { .. }) => Ok(true),
            Err(CallError::Unimplemented(_) | CallError::Failed(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// One call; `params` is an array or an object.
    pub async fn call(&self, on: &Thread, method: &str, params: Value) -> Result<Value, CallError> {
        match self {
            JsonRpc::Rpc(client) => {
                let request = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
                let answer = call!(client, execute_rpc_request, on, |params| {
                    params.set_request(request.to_string());
                    params.set_uri("/");
                    params.set_user(env!("CARGO_PKG_NAME"))
                })?;
                let mut answer = parse(answer.get()?.get_result()?.to_str()?)?;
                match answer.get("error").filter(|error| !error.is_null()) {
                    Some(error) => Err(json_rpc_error(error)),
                    None => Ok(answer["result"].take()),
                }
            }
            JsonRpc::Node(client) => {
                let answer = call!(client, execute_rpc_request, on, |parameters| {
                    parameters.set_command(method);
                    parameters.set_params(params.to_string());
                    parameters.set_uri("/")
                })?;
                let answer = answer.get()?;
                if answer.has_rpc_error() {
                    return Err(json_rpc_error(&parse(answer.get_rpc_error()?.to_str()?)?));
                }
                if answer.has_error() {
                    return Err(CallError::Failed(answer.get_error()?.to_str()?.to_string()));
                }
                parse(answer.get_result()?.to_str()?)
            }
        }
    }
}

fn parse(text: &str) -> Result<Value, CallError> {
    serde_json::from_str(text).map_err(|error| CallError::Malformed(format!("no JSON: {error}")))
}

fn json_rpc_error(error: &Value) -> CallError {
    CallError::JsonRpc {
        code: error["code"].as_i64().unwrap_or(0),
        message: error["message"].as_str().unwrap_or("an error without a message").to_string(),
    }
}
