//! The collector: decides which calls the exporter makes to the node and when, and converts the responses to metrics.
//!
//! - `collector` connects to the node and reconnects. `handshake` prepares a connection until the node can be polled.
//!   `session` is the event loop of one connection.
//! - `poll` reads the node's state periodically, with one file per area (group of metrics: chain, mempool, network and
//!   others), as in [`metrics`](crate::metrics). `peers` and `json` parse responses.
//! - `rate_limit` decides when a call to the node may be repeated, and detects that the machine was suspended.
//! - `http_rpc_verifier` checks whether JSON-RPC over HTTP works and reaches the same node as IPC.
//! - `tip` runs the long poll, a call to which the node responds when its tip changes, when it shuts down, or after a
//!   timeout. `block_counting` decides which blocks are counted at a new tip; `chain_diff` counts the blocks between
//!   two tips. `connected_blocks` is the queue of blocks whose transactions and fees are still to be counted.
//! - `next_block` requests block templates periodically.
//! - `subscriptions` subscribes to events of the node, which the node reports by callbacks to the exporter.
//!   `notifications` counts the events of the chain and the mempool, and `utxo_trace` counts the changes of the UTXO
//!   cache.
//! - `context` contains the settings that all connections share, and the state that is kept from one connection to the
//!   next: the counted traffic of peers, the CPU times of the node's threads (`thread_times`), the tip, the start time
//!   of the node (`node_start`), and the node's warnings that were logged (`warnings`).
//! - `one_shot` implements `--once` and `--check`.

mod block_counting;
mod chain_diff;
mod collector;
mod connected_blocks;
mod context;
mod handshake;
mod http_rpc_verifier;
mod json;
mod next_block;
mod node_start;
mod notifications;
mod one_shot;
mod peers;
mod poll;
mod rate_limit;
mod session;
mod subscriptions;
mod thread_times;
mod tip;
mod utxo_trace;
mod warnings;

pub use collector::Collector;
pub use context::{Config, Context, NextBlockMode, UtxoTraceMode};
pub use handshake::open;
pub use one_shot::{check, once};
pub use poll::DatadirCandidates;
pub use session::SessionEnd;
