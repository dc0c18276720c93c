//! The collector: decides which calls the exporter makes to the node and when, and converts the responses to metrics.
//!
//! - `collector` connects to the node and reconnects. `handshake` prepares a connection until the node can be polled.
//!   `session` is the event loop of one connection.
//! - `poll` reads the node's state periodically, with one file per area as in [`metrics`](crate::metrics). `peers` and
//!   `json` parse responses.
//! - `rate_limit` decides when a call may be repeated, and detects that the machine was suspended.
//! - `http_rpc_verifier` checks whether JSON-RPC over HTTP can be used.
//! - `tip` runs the long poll that reports new tips and the node's shutdown. `block_counting` decides which blocks are
//!   counted at a new tip; `chain_diff` counts the blocks between two tips.
//! - `next_block` requests block templates periodically.
//! - `subscriptions` starts and ends subscriptions. `notifications` and `utxo_trace` count their events.
//! - `context` contains the settings that all connections share, and the state that is kept from one connection to the
//!   next: the counted traffic of peers, the CPU times in `thread_times`, the tip, the start time in `node_start`, and
//!   the logged `warnings`.
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
