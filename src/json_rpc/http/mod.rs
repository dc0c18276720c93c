//! JSON-RPC over HTTP, for nodes whose IPC has none, or that have no IPC.
//!
//! - `url` is where the node's JSON-RPC listens.
//! - [`credentials`] are the cookie, or a user with a password.
//! - `client` makes the calls; `connection` is what they go over: one that is kept, one request after the other.
//! - [`tls`] has the certificates that are trusted for https.
//!
//! It does not depend on the methods, and does not check whether this is the node behind the IPC socket:
//! [`collect`](crate::collect) does before it uses it.

mod client;
mod connection;
pub mod credentials;
pub mod tls;
mod url;

use std::sync::Arc;

use rustls::ClientConfig;

use super::{FailureCause, HttpFailure};
pub use client::HttpRpc;
pub use credentials::{Credentials, Password};
pub use url::Url;

/// The address of a node's JSON-RPC over HTTP, and its credentials.
#[derive(Clone, Debug)]
pub struct HttpRpcConfig {
    /// Where it listens.
    pub url: Url,
    /// For https.
    pub tls: Option<Arc<ClientConfig>>,
    /// Its credentials.
    pub credentials: Credentials,
    /// The configured chain, if any.
    pub chain: Option<String>,
    /// It was requested: if it is not usable, that is a warning, or with `--once` and `--check` an error.
    pub required: bool,
    /// It is used even without a connection over IPC.
    pub http_only: bool,
}
