//! The failure of a JSON-RPC request over HTTP, and its cause.

use std::fmt;

use crate::text;

/// The cause of a failed JSON-RPC request over HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureCause {
    /// The connection was refused, because no process listens at the address.
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
    /// Values of the `cause` label, in the order of the variants.
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

    /// Value of the metric label `cause`.
    pub fn name(self) -> &'static str {
        Self::NAMES[self as usize]
    }

    /// Whether this cause means that the node that responded before no longer runs: the node has exited, the node was
    /// restarted, or another node responds now.
    pub fn is_node_gone(self) -> bool {
        matches!(self, FailureCause::Refused | FailureCause::Warmup | FailureCause::DifferentNode)
    }
}

/// A failed JSON-RPC request over HTTP: its cause, and a text for the log.
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
