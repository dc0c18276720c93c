//! Talking to a node over its Cap'n Proto socket.
//!
//! - [`endpoint`] is where the socket comes from.
//! - `connection` is the handshake, the node's threads and their deadlines.
//! - `interfaces` is the list of interfaces, and finds out which of them a node offers.
//! - `mining`, `json_rpc`, `chain`, `node` and `tracing` are the interfaces; `template` is a block that Mining puts
//!   together; `subscription` is a subscription of the last two.
//! - `block` counts what a block holds; `error` is what an error over IPC means.
//! - [`guard`] is the process between the node and the exporter.

mod block;
mod chain;
mod connection;
pub mod endpoint;
mod error;
pub mod guard;
mod interfaces;
mod json_rpc;
mod mining;
mod node;
mod subscription;
mod template;
mod tracing;

pub use block::BlockContents;
pub use chain::{Chain, ChainEvent};
pub use connection::{IpcConnection, NodeThread};
use error::is_thread_busy;
pub use interfaces::{Interface, Interfaces};
pub use mining::{BlockHash, BlockRef, Mining};
pub use node::{CONNECTION_TYPES, NETWORKS, Node, PeerDirection, PeerStats, TRANSPORTS, ip_address};
pub use subscription::Subscription;
pub use template::BlockTemplate;
pub use tracing::{CoinEvent, Tracing};

use crate::json_rpc::CallError;
