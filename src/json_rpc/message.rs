//! A JSON-RPC request, and the answer to one.

use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::CallError;
use crate::text;

/// The text of a JSON-RPC 2.0 request.
pub(crate) fn request(method: &str, parameters: &Value) -> String {
    json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": parameters}).to_string()
}

/// A JSON-RPC answer.
#[derive(Deserialize)]
pub(crate) struct Answer<'a> {
    /// What has none is no answer.
    #[serde(rename = "id")]
    _id: IgnoredAny,
    #[serde(borrow)]
    result: Option<&'a RawValue>,
    error: Option<Value>,
}

impl Answer<'_> {
    /// What it holds. No result is the type's default.
    pub(crate) fn result<T: DeserializeOwned + Default>(self) -> Result<T, CallError> {
        match self.error.filter(|error| !error.is_null()) {
            Some(error) => Err(json_rpc_error(&error)),
            None => self.result.map_or_else(|| Ok(T::default()), |result| parse(result.get())),
        }
    }
}

pub(crate) fn parse<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, CallError> {
    serde_json::from_str(text)
        .map_err(|error| CallError::Malformed(format!("not the JSON expected: {error}")))
}

pub(crate) fn json_rpc_error(error: &Value) -> CallError {
    /// Limit on its message, in bytes.
    const MAX_BYTES: usize = 200;
    let message = error["message"].as_str().unwrap_or("an error without a message");
    CallError::JsonRpc {
        code: error["code"].as_i64().unwrap_or(0),
        message: text::bounded(message, MAX_BYTES),
    }
}

#[cfg(test)]
#[test]
fn the_message_of_an_error_is_one_short_line() {
    let message = "\u{1b}[31mEVIL\nERROR forged\r".repeat(100);
    let error = json_rpc_error(&json!({"code": -1, "message": message})).to_string();
    assert!(error.starts_with(" [31mEVIL ERROR forged  [31mEVIL") && error.len() < 230, "{error}");
    assert!(!error.contains(char::is_control));
}
