//! Encodes JSON-RPC requests, and decodes responses.

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::CallError;
use crate::text;

/// Encodes a JSON-RPC 2.0 request.
pub(crate) fn request(method: &str, parameters: &Value) -> String {
    json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": parameters}).to_string()
}

/// A JSON-RPC response object.
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
    pub fn result(self) -> Result<String, CallError> {
        match self.error.filter(|error| !error.is_null()) {
            Some(error) => Err(call_error(&error)),
            None => Ok(self.result.map_or("null", RawValue::get).to_string()),
        }
    }
}

/// Parses a JSON text from the node.
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
