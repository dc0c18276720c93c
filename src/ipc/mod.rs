//! Talking to a node over its Cap'n Proto socket.
//!
//! - [`source`] is where the socket comes from.
//! - `connection` is the handshake, the node's threads and their deadlines.
//! - `interfaces` is the list of interfaces, and finds out which of them a node offers.
//! - `mining`, `json_rpc`, `chain`, `node` and `tracing` are the interfaces; `template` is a block that Mining puts
//!   together; `handler` is a subscription of the last two.
//! - `methods` is the list of JSON-RPC methods; `error` is what can go wrong with a call.
//! - [`guard`] is the process between the node and the exporter.

mod chain;
mod connection;
mod error;
pub mod guard;
mod handler;
mod interfaces;
mod json_rpc;
mod methods;
mod mining;
mod node;
pub mod source;
mod template;
mod tracing;

pub use chain::{Chain, ChainEvent};
pub use connection::{Connection, Thread};
pub use error::CallError;
use error::is_thread_busy;
pub use handler::Subscription;
pub use interfaces::{Interface, Interfaces};
pub(crate) use json_rpc::Answer as JsonRpcAnswer;
pub use json_rpc::JsonRpc;
pub use methods::{method_names, whitelist_of};
pub use mining::{BlockRef, Hash, Mining};
pub use node::{CONNECTION_TYPES, Direction, NETWORKS, Node, PeerStats, TRANSPORTS, ip_address};
pub use template::Template;
pub use tracing::{CoinEvent, Tracing};
