//! The client of a node's IPC: Cap'n Proto over a Unix socket.
//!
//! - [`endpoint`] is the source of connections.
//! - `connection` has the handshake, the node's threads and the deadlines of calls.
//! - `interfaces` lists the interfaces and discovers which of them a node has.
//! - `mining`, `json_rpc`, `chain`, `node` and `tracing` are the interfaces. `template` is a block template of Mining. `subscription`
//!   is a subscription of Chain or Tracing.
//! - `block` counts the contents of a block. `error` converts the errors of Cap'n Proto.
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
