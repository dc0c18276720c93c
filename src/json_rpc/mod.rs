//! JSON-RPC: the calls, and the trait of a transport. IPC is one (`src/ipc/json_rpc.rs`), [`http`] is the other.
//!
//! Only methods that read are ever called: `methods` has them all. `message` is a request and its response, `error` what can go
//! wrong with a call to the node, `http_failure` why one over HTTP failed.

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

/// How a node takes JSON-RPC.
pub trait Transport {
    /// Makes a call; returns the JSON text of its result.
    fn call<'a>(&'a self, method: Method, params: &'a Value)
    -> LocalBoxFuture<'a, Result<String, CallError>>;

    /// Why no call can be made now.
    fn unavailable(&self) -> Option<CallError> {
        None
    }
}

/// JSON-RPC, whatever the transport.
#[derive(Clone)]
pub struct JsonRpc(Rc<dyn Transport>);

impl JsonRpc {
    /// Over this transport.
    pub fn new(transport: impl Transport + 'static) -> Self {
        JsonRpc(Rc::new(transport))
    }

    /// Whether a call can be made now; over IPC always.
    pub fn is_available(&self) -> bool {
        self.unavailable().is_none()
    }

    /// Why no call can be made now.
    pub fn unavailable(&self) -> Option<CallError> {
        self.0.unavailable()
    }

    /// Whether what was taken for JSON-RPC is. `uptime` is safe to call from the node's first moment.
    ///
    /// # Errors
    /// The node does not answer, or the connection is gone.
    pub async fn is_offered(&self) -> Result<bool, CallError> {
        match self.call(Method::Uptime, json!([])).await {
            Ok(_) | Err(CallError::JsonRpc { .. }) => Ok(true),
            Err(CallError::Unimplemented(_) | CallError::Failed(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// One call; `params` is an array or an object. No result is null.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn call(&self, method: Method, params: Value) -> Result<Value, CallError> {
        Ok(self.call_as(method, params).await?.unwrap_or_default())
    }

    /// One call whose result is read into a type of its own while it is parsed, without a tree of it in memory. `None` if there
    /// is no result.
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
