//! JSON-RPC calls to the node, and the trait that both transports implement: IPC (`src/ipc/execute_rpc.rs`) and
//! [`http`].
//!
//! `methods` lists the permitted methods, which only read the node's state. `error` contains the error type
//! of calls, with the failures of requests over HTTP. This file encodes requests and decodes responses.

mod error;
pub mod http;
pub(crate) mod methods;

use std::rc::Rc;

use futures::future::LocalBoxFuture;
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::text;
pub use error::{CallError, FailureCause, HttpFailure};
pub use methods::{method_names, whitelist_line};

/// A transport for JSON-RPC calls to a node, implemented for IPC and for HTTP.
pub trait Transport {
    /// Makes a JSON-RPC call to the node. Returns the JSON text of the result.
    fn call<'a>(
        &'a self,
        method: &'static str,
        params: &'a Value,
    ) -> LocalBoxFuture<'a, Result<String, CallError>>;

    /// The reason why no call can be made now; `None` if calls can be made.
    fn unavailable(&self) -> Option<CallError> {
        None
    }
}

/// A JSON-RPC client of a node, which makes its calls over IPC or over HTTP.
#[derive(Clone)]
pub struct JsonRpc(Rc<dyn Transport>);

impl JsonRpc {
    /// Creates a client that makes its calls over this transport.
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

    /// Tests with a call of `uptime` whether the node offers JSON-RPC over this transport. This method is safe even
    /// while the node is starting, because it needs no data that the node has to load first.
    ///
    /// # Errors
    /// The node does not respond, or the connection is closed.
    pub async fn is_offered(&self) -> Result<bool, CallError> {
        match self.call("uptime", json!([])).await {
            Ok(_) | Err(CallError::JsonRpc { .. }) => Ok(true),
            Err(CallError::Unimplemented(_) | CallError::Failed(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Makes a call. `params` must be a JSON array. Returns JSON null if the response has no result.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn call(&self, method: &'static str, params: Value) -> Result<Value, CallError> {
        Ok(self.call_as(method, params).await?.unwrap_or_default())
    }

    /// Makes a call, and parses the JSON text of the result directly into `T`, which needs less memory than a
    /// [`Value`]. Returns `None` if the response has no result.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn call_as<T: DeserializeOwned>(
        &self,
        method: &'static str,
        params: Value,
    ) -> Result<Option<T>, CallError> {
        require_permitted(method, &params)?;
        parse(&self.0.call(method, &params).await?)
    }
}

/// Returns an error if `methods` does not permit the call. Panics in debug builds, because such a call is a bug.
fn require_permitted(method: &str, params: &Value) -> Result<(), CallError> {
    methods::check(method, params).map_err(|why| {
        debug_assert!(false, "{why}");
        CallError::Unimplemented(format!("not permitted: {why}"))
    })
}

/// Encodes a JSON-RPC 2.0 request.
pub(crate) fn request(method: &str, parameters: &Value) -> String {
    json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": parameters}).to_string()
}

/// A JSON-RPC response object from the node.
#[derive(Deserialize)]
pub(crate) struct Response<'a> {
    /// Makes deserialization fail if the object has no `id`, because an object without an ID is not a JSON-RPC
    /// response.
    #[serde(rename = "id")]
    _id: IgnoredAny,
    #[serde(borrow)]
    result: Option<&'a RawValue>,
    error: Option<Value>,
}

impl Response<'_> {
    /// Returns the JSON text of the result, or `null` if the response has no result.
    ///
    /// # Errors
    /// The response contains an error object.
    pub fn result(self) -> Result<String, CallError> {
        match self.error.filter(|error| !error.is_null()) {
            Some(error) => Err(call_error(&error)),
            None => Ok(self.result.map_or("null", RawValue::get).to_string()),
        }
    }
}

/// Parses a JSON text from the node into `T`.
pub(crate) fn parse<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, CallError> {
    serde_json::from_str(text).map_err(|error| CallError::Malformed(format!("unexpected JSON: {error}")))
}

/// Converts a JSON-RPC error object to a [`CallError`].
pub(crate) fn call_error(error: &Value) -> CallError {
    /// Maximum length of the error message, in bytes.
    const MAX_BYTES: usize = 200;
    let message = error["message"].as_str().unwrap_or("an error without a message");
    CallError::JsonRpc {
        code: error["code"].as_i64().unwrap_or(0),
        message: text::bounded(message, MAX_BYTES),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_of_an_error_is_one_short_line() {
        let message = "\u{1b}[31mEVIL\nERROR forged\r".repeat(100);
        let error = call_error(&json!({"code": -1, "message": message})).to_string();
        assert!(error.starts_with(" [31mEVIL ERROR forged  [31mEVIL") && error.len() < 230, "{error}");
        assert!(!error.contains(char::is_control));
    }

    #[test]
    fn response_has_a_result_or_an_error() {
        let result = |text| parse::<Response>(text)?.result();
        assert_eq!(result(r#"{"id": 1, "result": {"a": [1]}, "error": null}"#).unwrap(), r#"{"a": [1]}"#);
        assert_eq!(result(r#"{"id": 1, "result": null}"#).unwrap(), "null");
        assert_eq!(result(r#"{"id": 1}"#).unwrap(), "null");
        let error = result(r#"{"id": 1, "result": null, "error": {"code": -28, "message": "Loading"}}"#);
        assert!(error.unwrap_err().is_warmup());
        for text in [r#"{"result": 1}"#, "[]", "null", "7", ""] {
            assert!(matches!(result(text), Err(CallError::Malformed(_))), "{text}");
        }
    }
}
