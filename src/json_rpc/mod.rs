//! JSON-RPC.
//!
//! - `message` is a request and its answer; `methods` is the list of methods that are called.
//! - `error` is what can go wrong with a call to the node, whatever the transport; `failure` is why one over HTTP failed.
//! - [`http`] is the transport over HTTP. That over IPC is in [`ipc`](crate::ipc).

mod error;
mod failure;
pub mod http;
mod message;
pub(crate) mod methods;

pub use error::CallError;
pub use failure::{Cause, Failure};
pub(crate) use message::{Answer, json_rpc_error, parse, request};
pub use methods::{method_names, whitelist_of};
