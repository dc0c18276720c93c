//! JSON-RPC calls to the node, and the trait of the two transports: IPC (`src/ipc/json_rpc.rs`) and [`http`].
//!
//! `methods` lists the permitted methods, which only read the node's state. `message` encodes requests and decodes
//! responses, `error` contains the error type of calls, and `http_failure` the failures of requests over HTTP.

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

/// A transport for JSON-RPC calls to a node, implemented for IPC and for HTTP.
pub trait Transport {
    /// Makes a call. Returns the JSON text of the result.
    fn call<'a>(&'a self, method: Method, params: &'a Value)
    -> LocalBoxFuture<'a, Result<String, CallError>>;

    /// The reason why no call can be made now; `None` if calls can be made.
    fn unavailable(&self) -> Option<CallError> {
        None
    }
}

/// A JSON-RPC client, over IPC or HTTP.
#[derive(Clone)]
pub struct JsonRpc(Rc<dyn Transport>);

impl JsonRpc {
    /// Creates a client over this transport.
    pub fn new(transport: impl Transport + 'static) -> Self {
        JsonRpc(Rc::new(transport))
    }

    /// Whether a call can be made now. Over IPC this is always true.
    pub fn is_available(&self) -> bool {
        self.unavailable().is_none()
    }

    /// The reason why no call can be made now; `None` if calls can be made.
    pub fn unavailable(&self) -> Option<CallError> {
        self.0.unavailable()
    }

    /// Tests with a call of `uptime` whether the node offers JSON-RPC over this transport. The node responds to
    /// `uptime` safely even while it starts.
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

    /// Makes a call. `params` must be a JSON array. Returns JSON null if the response has no result.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn call(&self, method: Method, params: Value) -> Result<Value, CallError> {
        Ok(self.call_as(method, params).await?.unwrap_or_default())
    }

    /// Makes a call, and parses the JSON text of the result directly into `T`, which needs less memory than a
    /// [`Value`]. Returns `None` if the response has no result.
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
