//! JSON-RPC, through whichever transport the node has: over IPC it needs no cookie and no port.
//!
//! Only methods that read are ever called: [`methods`] has them all.

use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::connection::{OnThread, call};
use super::{CallError, Thread};
use crate::json_rpc::http::HttpRpc;
use crate::json_rpc::{Answer, json_rpc_error, methods, parse, request};
use crate::schema::node_capnp::node;
use crate::schema::rpc_capnp::rpc;

/// How a node takes JSON-RPC.
#[derive(Clone)]
pub(super) enum Transport {
    /// `Rpc.executeRpc`: JSON-RPC 2.0 objects.
    Rpc(OnThread<rpc::Client>),
    /// `Node.executeRpc`: method and parameters apart.
    Node(OnThread<node::Client>),
    /// JSON-RPC 2.0 objects in HTTP requests.
    Http(HttpRpc),
}

/// JSON-RPC.
#[derive(Clone)]
pub struct JsonRpc(pub(super) Transport);

impl JsonRpc {
    /// The same transport; where its calls run on a thread of the node, on this one.
    pub fn on(&self, thread: &Thread) -> Self {
        JsonRpc(match &self.0 {
            Transport::Rpc(capability) => Transport::Rpc(capability.on(thread)),
            Transport::Node(capability) => Transport::Node(capability.on(thread)),
            Transport::Http(http) => Transport::Http(http.clone()),
        })
    }

    /// JSON-RPC over HTTP, which need not be usable yet.
    pub fn over_http(http: HttpRpc) -> Self {
        JsonRpc(Transport::Http(http))
    }

    /// Whether a call can be made now; over IPC always.
    pub fn is_available(&self) -> bool {
        self.unavailable().is_none()
    }

    /// Why no call can be made now.
    pub fn unavailable(&self) -> Option<CallError> {
        match &self.0 {
            Transport::Http(http) if !http.is_used() => Some(CallError::Http(http.why_not())),
            _ => None,
        }
    }

    /// Whether the capability really is what we take it for. `uptime` is safe to ask from the node's first moment.
    pub(super) async fn is_offered(&self) -> Result<bool, CallError> {
        match self.call("uptime", json!([])).await {
            Ok(_) | Err(CallError::JsonRpc { .. }) => Ok(true),
            Err(CallError::Unimplemented(_) | CallError::Failed(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// One call; `params` is an array or an object.
    pub async fn call(&self, method: &str, params: Value) -> Result<Value, CallError> {
        self.call_as(method, params).await
    }

    /// One call whose result is read into a type of its own while it is parsed, without a tree of it in memory. No result
    /// is the type's default.
    pub async fn call_as<T: DeserializeOwned + Default>(
        &self,
        method: &str,
        params: Value,
    ) -> Result<T, CallError> {
        if let Err(why) = methods::check(method, &params) {
            debug_assert!(false, "{why}");
            return Err(CallError::Unimplemented(format!("not permitted: {why}")));
        }
        match &self.0 {
            Transport::Http(http) => http.call(method, params).await,
            Transport::Rpc(capability) => {
                let request = request(method, &params);
                let answer = call!(capability, execute_rpc_request, |params| {
                    params.set_request(request);
                    params.set_uri("");
                    params.set_user(env!("CARGO_PKG_NAME"))
                })?;
                parse::<Answer>(answer.get()?.get_result()?.to_str()?)?.result()
            }
            Transport::Node(capability) => {
                let answer = call!(capability, execute_rpc_request, |parameters| {
                    parameters.set_command(method);
                    parameters.set_params(params.to_string());
                    parameters.set_uri("")
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
