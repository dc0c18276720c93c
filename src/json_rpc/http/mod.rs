//! JSON-RPC over HTTP, for nodes that have no JSON-RPC over IPC, or no IPC.
//!
//! - `url` parses the URL of the node's JSON-RPC server.
//! - [`credentials`] reads the credentials: a cookie file, or a user name with a password.
//! - `client` makes the calls. `connection` is the HTTP connection, which stays open between calls and carries one
//!   request at a time.
//! - [`tls`] loads the CA certificates that the exporter trusts for https.
//!
//! This module does not check whether the node that responds over HTTP is the node behind the IPC socket.
//! [`collect`](crate::collect) makes this check before it uses HTTP.

mod client;
mod connection;
pub mod credentials;
pub mod tls;
mod url;

use std::sync::Arc;

use rustls::ClientConfig;

use super::{FailureCause, HttpFailure};
pub use client::HttpRpc;
pub use credentials::Credentials;
pub use url::Url;

/// Settings of JSON-RPC over HTTP: the node's address, the credentials, and when to use HTTP.
#[derive(Clone, Debug)]
pub struct HttpRpcConfig {
    /// The URL of the node's JSON-RPC server.
    pub url: Url,
    /// TLS settings of the connection; `None` for an http URL.
    pub tls: Option<Arc<ClientConfig>>,
    /// The source from which the exporter reads its credentials for the node.
    pub credentials: Credentials,
    /// Name of the chain that the node must have: the chain in `--chain`, or the chain whose directory contains the
    /// node's IPC socket. `None` if neither is known.
    pub chain: Option<String>,
    /// Whether the user requires HTTP (`--rpc on`). If HTTP is required and not usable, a warning is logged, and
    /// `--once` and `--check` return an error if the exporter would use HTTP for this node.
    pub required: bool,
    /// Whether the exporter polls the node over HTTP if it cannot connect to the node over IPC.
    pub http_only: bool,
}
