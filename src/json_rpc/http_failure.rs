//! Why a request over HTTP failed.

use std::fmt;

use crate::text;

/// The kind of a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureCause {
    /// Nothing listens at the address.
    Refused,
    /// No answer within the deadline.
    Timeout,
    /// No credentials, or the node rejects them.
    Unauthorized,
    /// The node does not permit the method, or this client.
    Forbidden,
    /// The node's work queue is full.
    Busy,
    /// The node is starting.
    Warmup,
    /// It is not the node behind the IPC socket, or not on the configured chain.
    DifferentNode,
    /// The answer is larger than the limit.
    TooLarge,
    /// Anything else: TLS, a proxy, a broken connection.
    Other,
}

impl FailureCause {
    /// All of them.
    pub const ALL: [FailureCause; 9] = [
        FailureCause::Refused,
        FailureCause::Timeout,
        FailureCause::Unauthorized,
        FailureCause::Forbidden,
        FailureCause::Busy,
        FailureCause::Warmup,
        FailureCause::DifferentNode,
        FailureCause::TooLarge,
        FailureCause::Other,
    ];

    /// The `cause` label.
    pub fn name(self) -> &'static str {
        match self {
            FailureCause::Refused => "refused",
            FailureCause::Timeout => "timeout",
            FailureCause::Unauthorized => "unauthorized",
            FailureCause::Forbidden => "forbidden",
            FailureCause::Busy => "busy",
            FailureCause::Warmup => "warmup",
            FailureCause::DifferentNode => "different_node",
            FailureCause::TooLarge => "too_large",
            FailureCause::Other => "other",
        }
    }

    /// Whether the node that answered before is gone: it ended, was restarted, or another one is in its place.
    pub fn is_node_gone(self) -> bool {
        matches!(self, FailureCause::Refused | FailureCause::Warmup | FailureCause::DifferentNode)
    }
}

/// A failure: its kind and what to log.
#[derive(Clone, Debug, PartialEq)]
pub struct HttpFailure {
    /// Its kind.
    pub cause: FailureCause,
    /// The failed action, the reason, and what to do.
    pub text: String,
}

impl HttpFailure {
    /// A failure with this text.
    pub fn new(cause: FailureCause, text: impl Into<String>) -> Self {
        HttpFailure { cause, text: text::message(text.into()) }
    }

    /// The same at this address.
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
