//! JSON-RPC over HTTP, for nodes without JSON-RPC over IPC, or without IPC.
//!
//! - `url` is the address of the node's JSON-RPC.
//! - [`credentials`] has the sources of credentials: a cookie file, or a user with a password.
//! - `client` makes the calls. `connection` is the HTTP connection, which is kept open and has one request at a time.
//! - [`tls`] has the certificates that are trusted for https.
//!
//! Nothing here checks whether the node is the one behind the IPC socket: [`collect`](crate::collect) does, before it uses HTTP.

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

/// Settings of JSON-RPC over HTTP: the node's address, the credentials, and when to use it.
#[derive(Clone, Debug)]
pub struct HttpRpcConfig {
    /// The address of the node's JSON-RPC.
    pub url: Url,
    /// TLS settings, for https.
    pub tls: Option<Arc<ClientConfig>>,
    /// The source of the credentials.
    pub credentials: Credentials,
    /// The configured chain, if any.
    pub chain: Option<String>,
    /// Whether HTTP was requested. If it is then not usable, a warning is logged, and `--once` and `--check` return an error.
    pub required: bool,
    /// Whether HTTP is used even without a connection over IPC.
    pub http_only: bool,
}
