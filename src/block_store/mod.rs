//! The block store (`--block-store`): a PostgreSQL database in which the exporters of many nodes store their rows of
//! the block log, to compare the times at which the nodes received and connected each block.
//!
//! - [`settings`] parses the URL and finds the password. `tls` verifies the server's certificate as `sslmode`
//!   requires.
//! - `connection` connects, creates or checks the schema, and stores rows. The schema is
//!   `contrib/postgresql/propagation.sql`.
//! - `forwarder` forwards the rows of the block log's outbox on a dedicated thread.
//! - [`propagation`] queries the store for the delay of each node after the first node that connected a block.

mod connection;
mod forwarder;
pub mod propagation;
pub mod settings;
mod tls;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock};

use serde::Serialize;

use crate::metrics::{Family, counter, gauge};

pub use forwarder::start;
pub use settings::{StoreArgs, StoreSettings};

/// The rank of this node for one block among the nodes in the block store, by the time at which each node connected
/// the block. The status page shows the rank.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Rank {
    /// Hash of the block, in the byte order of `bitcoin-cli`.
    pub block_hash: String,
    /// Height of the block.
    pub block_height: i32,
    /// Position of this node in the order in which the nodes connected the block; `None` if this node's clock was not
    /// synchronized, or if this node connected the block more than an hour after the first node.
    pub rank: Option<i64>,
    /// Number of nodes that have a rank for this block.
    pub nodes: Option<i64>,
    /// Time from the connection of the block by the first node to the connection by this node, in microseconds.
    pub offset_us: Option<i64>,
    /// Bound on the error of `offset_us`, in microseconds.
    pub error_us: Option<i64>,
}

/// The state of the forwarding of rows to the block store, which the metrics and the status page show.
#[derive(Debug, Default)]
pub struct StoreState {
    /// Rows that the block store has confirmed.
    pub sent: AtomicU64,
    /// Rows that were dropped before they were sent, because a limit of the block log was reached or the block log's
    /// file was moved away.
    pub dropped: AtomicU64,
    /// Rows that the block store rejected as invalid.
    pub rejected: AtomicU64,
    /// Rows in the outbox of the block log that the block store does not have yet.
    pub waiting: AtomicU64,
    /// Whether the last attempt to reach the block store succeeded.
    pub is_up: AtomicBool,
    /// The ranks of this node for its last blocks, newest first.
    pub ranks: Mutex<Vec<Rank>>,
}

const EXPORTER: &[&str] = &["the exporter"];

/// The state of the forwarding in this process; unset without a block store.
static STATE: OnceLock<Arc<StoreState>> = OnceLock::new();

/// The ranks of this node for its last blocks, newest first; `None` without a block store.
pub fn ranks() -> Option<Vec<Rank>> {
    STATE.get().map(|state| state.ranks.lock().expect("nobody panics holding it").clone())
}

/// The metrics about the block store; without samples if there is no block store.
#[rustfmt::skip]
pub fn families() -> Vec<Family> {
    let state = STATE.get();
    let count = |read: fn(&StoreState) -> &AtomicU64| state.map(|state| read(state).load(Relaxed));
    vec![
        gauge("bitcoin_block_store_up", "1 if the last attempt to reach the block store (`--block-store`) succeeded, otherwise 0", EXPORTER)
            .value_if_known(state.map(|state| f64::from(u8::from(state.is_up.load(Relaxed))))),
        gauge("bitcoin_block_store_rows_waiting", "Rows of the block log that the block store does not have yet", EXPORTER)
            .value_if_known(count(|state| &state.waiting)),
        counter("bitcoin_block_store_rows_sent_total", "Rows of the block log that the block store has confirmed", EXPORTER)
            .value_if_known(count(|state| &state.sent)),
        counter("bitcoin_block_store_rows_dropped_total",
            "Rows of the block log that were dropped before they were sent to the block store, because a limit of \
             the block log was reached or its file was moved away", EXPORTER)
            .value_if_known(count(|state| &state.dropped)),
        counter("bitcoin_block_store_rows_rejected_total",
            "Rows of the block log that the block store rejected as invalid; the exporter's log has the reason", EXPORTER)
            .value_if_known(count(|state| &state.rejected)),
    ]
}
