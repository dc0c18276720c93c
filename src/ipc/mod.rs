//! The client of a node's IPC: Cap'n Proto over a Unix socket.
//!
//! - [`endpoint`] opens connections to the node: a connection inherited at the exporter's start, or new connections to
//!   a socket path.
//! - `connection` contains the Cap'n Proto handshake, the handles to the node's threads, and the deadline of each call.
//! - `interfaces` lists the interfaces that a node can have, and discovers which of them the connected node has.
//! - `mining`, `execute_rpc`, `chain`, `node` and `tracing` are the clients of the node's interfaces. `template` is the
//!   client of a block template. `subscription` is a subscription to the callbacks of Chain or Tracing.
//! - `block` counts the transactions, inputs and outputs of a block. `error` converts Cap'n Proto errors to
//!   `CallError`.
//! - [`guard`] is the process that relays Cap'n Proto messages between the node and the exporter.

mod block;
mod chain;
mod connection;
pub mod endpoint;
mod error;
mod execute_rpc;
pub mod guard;
mod interfaces;
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
pub use mining::{BlockHash, BlockRef, LONG_POLL, Mining, MiningSchema};
pub use node::{CONNECTION_TYPES, NETWORKS, Node, PeerDirection, PeerStats, TRANSPORTS, ip_address};
pub use subscription::Subscription;
pub use template::BlockTemplate;
pub use tracing::{CoinEvent, Tracing};

use crate::json_rpc::CallError;
