//! The block store (`--block-store`): a PostgreSQL database that collects the rows of many exporters' block logs (one
//! row per block that a node connected), to compare the times at which the nodes received and connected each block.
//!
//! - [`settings`] parses the URL of the database and finds the source of the password. `tls` makes TLS connections, and
//!   verifies the server's certificate as the URL's `sslmode` requires.
//! - `connection` connects to the database, creates or checks the schema (`contrib/postgresql/propagation.sql`), and
//!   stores rows.
//! - `forwarder` sends rows on a dedicated thread, from the outbox: the table in the block log's file that keeps rows
//!   until the block store has confirmed them.
//! - [`propagation`] queries the store for the time from the connection of a block by the first node to the connection
//!   by each other node.

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
    /// Position of this node in the order in which the nodes connected the block, 1 for the first node; `None` if this
    /// node's clock was not synchronized, or if this node connected the block more than an hour after the first node.
    pub rank: Option<i64>,
    /// Number of nodes that have a rank for this block.
    pub nodes: Option<i64>,
    /// Time from the connection of the block by the first node to the connection by this node, in microseconds.
    pub offset_us: Option<i64>,
    /// Bound on the error of `offset_us`, in microseconds.
    pub error_us: Option<i64>,
}

/// The progress of this exporter in sending its rows to the block store. The metrics show the counts, and the status
/// page shows the ranks.
#[derive(Debug, Default)]
pub struct StoreState {
    /// Rows that the block store has confirmed.
    pub sent: AtomicU64,
    /// Rows that were dropped before they were sent, because a limit of the block log was reached or the block log's
    /// file was moved or deleted.
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

/// The progress of this process; unset if the exporter has no block store.
static STATE: OnceLock<Arc<StoreState>> = OnceLock::new();

/// The ranks of this node for its last blocks, newest first; `None` if the exporter has no block store.
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
