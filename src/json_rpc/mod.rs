//! JSON-RPC calls, and the trait of their transports: IPC (`src/ipc/json_rpc.rs`) and [`http`].
//!
//! Only methods that read are called; `methods` lists them. `message` has requests and responses, `error` has the errors of calls, and
//! `http_failure` has the failures of requests over HTTP.

mod error;
pub mod http;
mod http_failure;
mod message;
pub(crate) mod methods;

use std::rc::Rc;

use futures::future::LocalBoxFuture;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

pub use error::CallError;
pub use http_failure::{FailureCause, HttpFailure};
pub(crate) use message::{Response, call_error, parse, request};
pub use methods::{Method, method_names, whitelist_line};

/// A transport for JSON-RPC calls to a node.
pub trait Transport {
    /// Makes a call. Returns the JSON text of the result.
    fn call<'a>(&'a self, method: Method, params: &'a Value)
    -> LocalBoxFuture<'a, Result<String, CallError>>;

    /// Why no call can be made now; `None` if one can.
    fn unavailable(&self) -> Option<CallError> {
        None
    }
}

/// A JSON-RPC client over any transport.
#[derive(Clone)]
pub struct JsonRpc(Rc<dyn Transport>);

impl JsonRpc {
    /// Creates a client over this transport.
    pub fn new(transport: impl Transport + 'static) -> Self {
        JsonRpc(Rc::new(transport))
    }

    /// Whether a call can be made now; always true over IPC.
    pub fn is_available(&self) -> bool {
        self.unavailable().is_none()
    }

    /// Why no call can be made now; `None` if one can.
    pub fn unavailable(&self) -> Option<CallError> {
        self.0.unavailable()
    }

    /// Whether the node has JSON-RPC at the other end of this transport. Calls `uptime`, which is safe from the node's first moment.
    ///
    /// # Errors
    /// The node does not respond, or the connection is closed.
    pub async fn is_offered(&self) -> Result<bool, CallError> {
        match self.call(Method::Uptime, json!([])).await {
            Ok(_) | Err(CallError::JsonRpc { .. }) => Ok(true),
            Err(CallError::Unimplemented(_) | CallError::Failed(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Makes a call. `params` is an array. Returns null if there is no result.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn call(&self, method: Method, params: Value) -> Result<Value, CallError> {
        Ok(self.call_as(method, params).await?.unwrap_or_default())
    }

    /// Makes a call, and parses the result directly into `T`, without a tree of JSON values in memory. Returns `None` if there is no
    /// result.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn call_as<T: DeserializeOwned>(
        &self,
        method: Method,
        params: Value,
    ) -> Result<Option<T>, CallError> {
        if let Err(why) = methods::check(method.name(), &params) {
            debug_assert!(false, "{why}");
            return Err(CallError::Unimplemented(format!("not permitted: {why}")));
        }
        parse(&self.0.call(method, &params).await?)
    }
}
