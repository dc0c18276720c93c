//! JSON-RPC calls, and the trait of their transports: IPC (`src/ipc/json_rpc.rs`) and [`http`].
//!
//! Only methods that read are called; `methods` lists them. `error` has the errors of calls, and `http_failure` has the failures of
//! requests over HTTP. This file has requests and responses.

mod error;
pub mod http;
mod http_failure;
pub(crate) mod methods;

use std::rc::Rc;

use futures::future::LocalBoxFuture;
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::text;
pub use error::CallError;
pub use http_failure::{FailureCause, HttpFailure};
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

/// The text of a JSON-RPC 2.0 request.
pub(crate) fn request(method: &str, parameters: &Value) -> String {
    json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": parameters}).to_string()
}

/// A JSON-RPC response object.
#[derive(Deserialize)]
pub(crate) struct Response<'a> {
    /// Only for the check that it is present: an object without an ID is not a response.
    #[serde(rename = "id")]
    _id: IgnoredAny,
    #[serde(borrow)]
    result: Option<&'a RawValue>,
    error: Option<Value>,
}

impl Response<'_> {
    /// The JSON text of the result; null if there is none.
    pub fn result(self) -> Result<String, CallError> {
        match self.error.filter(|error| !error.is_null()) {
            Some(error) => Err(call_error(&error)),
            None => Ok(self.result.map_or("null", RawValue::get).to_string()),
        }
    }
}

/// Parses JSON from the node.
pub(crate) fn parse<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, CallError> {
    serde_json::from_str(text).map_err(|error| CallError::Malformed(format!("unexpected JSON: {error}")))
}

/// Converts a JSON-RPC error object to a [`CallError`].
pub(crate) fn call_error(error: &Value) -> CallError {
    /// Limit on the error message, in bytes.
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
