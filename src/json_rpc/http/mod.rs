//! JSON-RPC over HTTP, for nodes whose IPC has none, or that have no IPC.
//!
//! - `url` is where the node's JSON-RPC listens.
//! - [`credentials`] are the cookie, or a user with a password.
//! - `client` makes the calls; `connection` is what they go over: one that is kept, one request after the other.
//! - [`tls`] says which certificates are trusted behind https.
//!
//! It does not know what is asked, nor whether this is the node that IPC leads to: [`collect`](crate::collect) finds out
//! before it uses it.

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

/// Where a node's JSON-RPC over HTTP is, and how to be let in.
#[derive(Clone, Debug)]
pub struct HttpRpcConfig {
    /// Where it listens.
    pub url: Url,
    /// For https.
    pub tls: Option<Arc<ClientConfig>>,
    /// What it asks for.
    pub credentials: Credentials,
    /// The chain that was asked for, if one was.
    pub chain: Option<String>,
    /// It was asked for: that it cannot be used is a warning, or with `--once` and `--check` an error.
    pub required: bool,
    /// It is asked even when there is no connection over IPC.
    pub http_only: bool,
}
