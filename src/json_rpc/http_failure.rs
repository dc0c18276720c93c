//! Why a request over HTTP failed.

use std::fmt;

use crate::text;

/// The cause of a failed request over HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureCause {
    /// Nothing listens at the address.
    Refused,
    /// There was no response within the deadline.
    Timeout,
    /// There are no credentials, or the node rejects them.
    Unauthorized,
    /// The node does not allow the method, or does not allow this client.
    Forbidden,
    /// The node's work queue is full.
    Busy,
    /// The node is starting.
    Warmup,
    /// The node is not the one behind the IPC socket, or not on the configured chain.
    DifferentNode,
    /// The response is larger than the limit.
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

    /// Value of the `cause` label.
    pub fn name(self) -> &'static str {
        Self::NAMES[self as usize]
    }

    /// Whether the node that responded before is gone: it has exited, was restarted, or another one is in its place.
    pub fn is_node_gone(self) -> bool {
        matches!(self, FailureCause::Refused | FailureCause::Warmup | FailureCause::DifferentNode)
    }
}

/// A failed request over HTTP: its cause, and the text to log.
#[derive(Clone, Debug, PartialEq)]
pub struct HttpFailure {
    /// Cause of the failure.
    pub cause: FailureCause,
    /// The failed action, the reason, and what to do.
    pub text: String,
}

impl HttpFailure {
    /// Creates a failure with this cause and text.
    pub fn new(cause: FailureCause, text: impl Into<String>) -> Self {
        HttpFailure { cause, text: text::message(text.into()) }
    }

    /// The same failure, with this URL in front of its text.
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
