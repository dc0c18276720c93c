//! The error type of calls to the node, over IPC and over HTTP, and the type that describes why a request over HTTP
//! failed.

use std::fmt;
use std::time::Duration;

use crate::text;

/// The reason why a call to the node failed. The error texts are untrusted and may have any length, because they come
/// from the node, or from another server at the node's address. [`Display`](fmt::Display) truncates the message to one
/// line of at most [`text::MESSAGE_BYTES`] bytes.
#[derive(Debug)]
pub enum CallError {
    /// The node did not respond within this time.
    TimedOut(Duration),
    /// The node does not have this method or interface.
    Unimplemented(String),
    /// The node did not execute the call, for example because it does not permit the method (HTTP status 403).
    Failed(String),
    /// The connection to the node is closed.
    Disconnected(String),
    /// The node's JSON-RPC response contains this error.
    JsonRpc {
        /// Core's error code, for example -28 while the node is starting.
        code: i64,
        /// The node's error message.
        message: String,
    },
    /// JSON-RPC over HTTP cannot be used, for this reason. The failure does not affect the connection over IPC.
    Http(HttpFailure),
    /// The response is larger than the exporter's limit. The exporter can still make other calls.
    TooLarge(String),
    /// The response does not have the format in the Cap'n Proto schema or in Core's RPC documentation.
    Malformed(String),
}

impl CallError {
    /// Whether the call failed because there was no response within the deadline, over IPC or HTTP.
    pub fn is_timeout(&self) -> bool {
        match self {
            CallError::TimedOut(_) => true,
            CallError::Http(failure) => failure.cause == FailureCause::Timeout,
            _ => false,
        }
    }

    /// Whether the current poll has to end, because the node hangs or has exited and further calls would fail, too. A
    /// failure over HTTP ends the poll if the node is polled over HTTP only (`is_http_only`). A full work queue of the
    /// node's HTTP server never ends the poll.
    pub fn ends_poll(&self, is_http_only: bool) -> bool {
        match self {
            CallError::TimedOut(_) | CallError::Disconnected(_) => true,
            CallError::Http(failure) => is_http_only && failure.cause != FailureCause::Busy,
            _ => false,
        }
    }

    /// Whether the call failed because the node is still loading its block index and chain state.
    pub fn is_warmup(&self) -> bool {
        /// `RPC_IN_WARMUP` in Core's rpc/protocol.h.
        const RPC_IN_WARMUP: i64 = -28;
        matches!(self, CallError::JsonRpc { code: RPC_IN_WARMUP, .. })
    }

    /// Whether the call failed because the node's JSON-RPC does not have the method.
    pub fn is_unknown_method(&self) -> bool {
        /// `RPC_METHOD_NOT_FOUND` in Core's rpc/protocol.h.
        const RPC_METHOD_NOT_FOUND: i64 = -32601;
        matches!(self, CallError::JsonRpc { code: RPC_METHOD_NOT_FOUND, .. })
    }
}

impl From<std::str::Utf8Error> for CallError {
    fn from(error: std::str::Utf8Error) -> Self {
        CallError::Malformed(error.to_string())
    }
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unbounded = fmt::from_fn(|f| match self {
            CallError::TimedOut(after) => {
                write!(f, "no response within {}", humantime::format_duration(*after))
            }
            CallError::Unimplemented(text) => write!(f, "not implemented by the node ({text})"),
            CallError::Failed(text) => write!(f, "the node could not execute the call: {text}"),
            CallError::Disconnected(text) => write!(f, "the connection is closed ({text})"),
            CallError::JsonRpc { code, message } => write!(f, "{message} (JSON-RPC error {code})"),
            CallError::Http(failure) => write!(f, "{failure}"),
            CallError::TooLarge(text) => f.write_str(text),
            CallError::Malformed(text) => write!(f, "the node's response is malformed: {text}"),
        });
        f.write_str(&text::message(unbounded))
    }
}

impl std::error::Error for CallError {}

/// The cause of a failed JSON-RPC request over HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureCause {
    /// The connection was refused, because no process listens at the node's address.
    Refused,
    /// The node did not respond within the timeout of the call.
    Timeout,
    /// The exporter has no credentials, or the node rejects the credentials.
    Unauthorized,
    /// The node does not allow the method (`-rpcwhitelist`) or the client's address (`-rpcallowip`).
    Forbidden,
    /// The node's RPC work queue is full.
    Busy,
    /// The node is starting and rejects calls (RPC_IN_WARMUP).
    Warmup,
    /// The node that responds over HTTP is not the node behind the IPC socket, or is not on the configured chain.
    DifferentNode,
    /// The response is larger than the exporter's limit.
    TooLarge,
    /// Any other cause, for example TLS, a proxy or a broken connection.
    Other,
}

impl FailureCause {
    /// Values of the label `cause` of the metric `bitcoin_exporter_http_rpc_failures_total`, in the order of the
    /// variants.
    pub const NAMES: [&'static str; FailureCause::Other as usize + 1] = [
        "refused",
        "timeout",
        "unauthorized",
        "forbidden",
        "busy",
        "warmup",
        "different_node",
        "too_large",
        "other",
    ];

    /// Value of the metric label `cause` for this cause.
    pub fn name(self) -> &'static str {
        Self::NAMES[self as usize]
    }

    /// Whether this cause means that the node that responded before no longer runs: the node has exited, the node was
    /// restarted, or another node responds now.
    pub fn is_node_gone(self) -> bool {
        matches!(self, FailureCause::Refused | FailureCause::Warmup | FailureCause::DifferentNode)
    }
}

/// The reason why a JSON-RPC request over HTTP failed, or why the exporter makes no such requests: a cause for the
/// metrics, and a text for the log.
#[derive(Clone, Debug, PartialEq)]
pub struct HttpFailure {
    /// Cause of the failure.
    pub cause: FailureCause,
    /// Text for the log: what failed, why, and the remedy.
    pub text: String,
}

impl HttpFailure {
    /// Creates a failure with this cause and text.
    pub fn new(cause: FailureCause, text: impl Into<String>) -> Self {
        HttpFailure { cause, text: text::message(text.into()) }
    }

    /// Returns the same failure, with `url` in front of the text.
    pub fn at(self, url: impl fmt::Display) -> Self {
        HttpFailure { text: format!("{url}: {}", self.text), ..self }
    }
}

impl From<String> for HttpFailure {
    fn from(text: String) -> Self {
        HttpFailure::new(FailureCause::Other, text)
    }
}

impl fmt::Display for HttpFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
#[test]
fn error_is_one_short_line() {
    let text = || "x\n".repeat(1 << 20);
    for error in [
        CallError::Unimplemented(text()),
        CallError::Failed(text()),
        CallError::Disconnected(text()),
        CallError::JsonRpc { code: -1, message: text() },
        CallError::Http(HttpFailure::from(text())),
        CallError::Malformed(text()),
    ] {
        let line = error.to_string();
        assert!(line.len() <= text::MESSAGE_BYTES && !line.contains(char::is_control), "{line}");
    }
}
