//! Why a request over HTTP failed.

use std::fmt;

use crate::text;

/// The kind of a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
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

impl Cause {
    /// All of them.
    pub const ALL: [Cause; 9] = [
        Cause::Refused,
        Cause::Timeout,
        Cause::Unauthorized,
        Cause::Forbidden,
        Cause::Busy,
        Cause::Warmup,
        Cause::DifferentNode,
        Cause::TooLarge,
        Cause::Other,
    ];

    /// The `cause` label.
    pub fn name(self) -> &'static str {
        match self {
            Cause::Refused => "refused",
            Cause::Timeout => "timeout",
            Cause::Unauthorized => "unauthorized",
            Cause::Forbidden => "forbidden",
            Cause::Busy => "busy",
            Cause::Warmup => "warmup",
            Cause::DifferentNode => "different_node",
            Cause::TooLarge => "too_large",
            Cause::Other => "other",
        }
    }

    /// Whether the node that answered before is gone: it ended, was restarted, or another one is in its place.
    pub fn is_node_gone(self) -> bool {
        matches!(self, Cause::Refused | Cause::Warmup | Cause::DifferentNode)
    }
}

/// A failure: its kind and what to log.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    /// Its kind.
    pub cause: Cause,
    /// What failed, why, and what to do.
    pub text: String,
}

impl Failure {
    /// A failure with this text.
    pub fn new(cause: Cause, text: impl Into<String>) -> Self {
        Failure { cause, text: text::message(text.into()) }
    }

    /// The same at this address.
    pub fn at(self, url: impl fmt::Display) -> Self {
        Failure { text: format!("{url}: {}", self.text), ..self }
    }
}

impl From<String> for Failure {
    fn from(text: String) -> Self {
        Failure::new(Cause::Other, text)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
