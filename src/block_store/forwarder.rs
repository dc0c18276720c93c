//! Sends rows to the block store, a PostgreSQL database, on a dedicated thread. The rows come from the outbox: the
//! table in the block log's file that keeps rows until the block store has confirmed them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::Duration;

use anyhow::Result;
use tokio::sync::mpsc::Receiver;
use tokio::time::{Instant, sleep, timeout_at};
use tracing::{info, warn};

use super::connection::{StoreConnection, is_invalid_row};
use super::settings::StoreSettings;
use super::{STATE, StoreState, propagation};
use crate::block_log::outbox::{Batch, RowOrigin};
use crate::block_log::{Forwarding, OutboxBatch};
use crate::scheduling;

/// Minimum and maximum delay before the next attempt to use the block store after a failure. The delay doubles with
/// each consecutive failure.
const RETRY_INTERVAL: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// Time without rows to send after which the exporter closes its connection to the block store, because a PostgreSQL
/// server permits only a limited number of connections.
const IDLE_TIMEOUT: Duration = Duration::from_secs(300);
/// Delays after a stored batch at which the exporter reads the ranks of its node: the node's positions in the order in
/// which the nodes connected each of the last blocks. The ranks are read twice because other nodes may report a block
/// later.
const RANK_DELAYS: [Duration; 2] = [Duration::from_secs(2), Duration::from_secs(30)];

/// Maximum number of nodes whose times for one block are compared. With more nodes, the exporter stops reading ranks,
/// because the load would be too high for the server: for each block, every exporter would read the rows of all nodes.
const MAX_RANKED_NODES: i64 = 1000;

/// Starts the thread that forwards rows to the block store. The thread ends when the returned value is dropped.
///
/// # Errors
/// The thread cannot be started.
pub fn start(settings: StoreSettings, origin: RowOrigin) -> Result<Forwarding> {
    let state = STATE.get_or_init(Arc::default).clone();
    let (batches, receiver) = tokio::sync::mpsc::channel(1);
    let forwarder = Forwarder {
        application: format!("bitcoind-{}-exporter {}", origin.source, origin.node),
        settings,
        origin: origin.clone(),
        state: state.clone(),
        batches: receiver,
        connection: None,
        last_logged: None,
        failures: 0,
        rank_times: VecDeque::new(),
        reads_ranks: true,
        ranks_failed: false,
        last_height: None,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    thread::Builder::new().name("block-store".into()).spawn(move || {
        scheduling::lower_priority();
        runtime.block_on(forwarder.run());
    })?;
    Ok(Forwarding { origin, counts: state, batches })
}

/// The state of the thread that forwards rows of the block log to the block store.
struct Forwarder {
    application: String,
    settings: StoreSettings,
    origin: RowOrigin,
    state: Arc<StoreState>,
    batches: Receiver<OutboxBatch>,
    connection: Option<StoreConnection>,
    /// The last logged failure; `None` after a success.
    last_logged: Option<String>,
    /// Number of consecutive failed attempts to use the block store.
    failures: u32,
    /// Times at which the ranks of this node will be read from the block store.
    rank_times: VecDeque<Instant>,
    /// Whether the exporter reads the ranks of its node: false after more than [`MAX_RANKED_NODES`] nodes had a rank
    /// for one block.
    reads_ranks: bool,
    /// Whether the last attempt to read the ranks failed. A failure does not affect the forwarding of rows.
    ranks_failed: bool,
    /// Greatest block height in the last batch that the block store has confirmed.
    last_height: Option<i32>,
}

impl Forwarder {
    async fn run(mut self) {
        let mut is_first = true;
        loop {
            // Connect to the block store at startup, before there is a row to send, to log invalid settings early.
            // After a failure, connect again without waiting for a row.
            while std::mem::take(&mut is_first) || self.failures > 0 {
                match self.connect().await {
                    Ok(_) => self.on_success(),
                    Err(error) => self.on_failure(&error).await,
                }
            }
            let next = self.rank_times.front().copied().unwrap_or(Instant::now() + IDLE_TIMEOUT);
            match timeout_at(next, self.batches.recv()).await {
                Ok(Some(batch)) => self.forward(batch).await,
                Ok(None) => return,
                Err(_) if self.rank_times.pop_front().is_some() => self.read_ranks().await,
                Err(_) => self.connection = None,
            }
        }
    }

    /// Sends a batch repeatedly until the block store has confirmed it.
    async fn forward(&mut self, OutboxBatch { batch, stored }: OutboxBatch) {
        loop {
            match self.send(&batch).await {
                Ok(()) => break,
                Err(error) => self.on_failure(&error).await,
            }
        }
        self.on_success();
        let _ = stored.send(());
        self.last_height = batch.heights.iter().copied().max();
        let now = Instant::now();
        let delays = RANK_DELAYS.iter().filter(|_| self.reads_ranks);
        self.rank_times = delays.map(|delay| now + *delay).collect();
    }

    /// Sends a batch once. Rows that the block store rejects as invalid are dropped, because sending them again would
    /// fail each time, and all later rows would have to wait.
    async fn send(&mut self, Batch { rows, heights, .. }: &Batch) -> Result<()> {
        let connection = self.connect().await?;
        let rejected = match connection.store(rows, heights).await {
            Ok(()) => 0,
            Err(error) if !is_invalid_row(&error) => return Err(error),
            Err(_) => {
                let mut rejected = 0;
                for (row, height) in rows.iter().zip(heights) {
                    let Err(error) = connection.store(std::slice::from_ref(row), &[*height]).await else {
                        continue;
                    };
                    if !is_invalid_row(&error) {
                        return Err(error);
                    }
                    warn!(
                        block_height = height,
                        "the block store rejected a row, which is dropped: {error:#}"
                    );
                    rejected += 1;
                }
                rejected
            }
        };
        self.state.sent.fetch_add(rows.len() as u64 - rejected, Relaxed);
        self.state.rejected.fetch_add(rejected, Relaxed);
        Ok(())
    }

    async fn connect(&mut self) -> Result<&StoreConnection> {
        let open = self.connection.take().filter(|connection| !connection.is_closed());
        let connection = match open {
            Some(connection) => connection,
            None => StoreConnection::open_to_write(&self.settings, &self.application).await?,
        };
        Ok(self.connection.insert(connection))
    }

    async fn read_ranks(&mut self) {
        let Some(height) = self.last_height else { return };
        let RowOrigin { chain, node, .. } = self.origin.clone();
        let connection = match self.connect().await {
            Ok(connection) => connection,
            Err(error) => return self.on_failure(&error).await,
        };
        let ranks = propagation::ranks(connection, &chain, &node, height).await;
        let had_failed = std::mem::replace(&mut self.ranks_failed, ranks.is_err());
        let show = |ranks| *self.state.ranks.lock().expect("nobody panics holding it") = ranks;
        match ranks {
            Ok(ranks) if ranks.iter().any(|rank| rank.nodes > Some(MAX_RANKED_NODES)) => {
                show(Vec::new());
                info!(
                    "the block store has more than {MAX_RANKED_NODES} nodes: the status page shows no rank"
                );
                self.reads_ranks = false;
            }
            Ok(ranks) => show(ranks),
            Err(error) => {
                show(Vec::new());
                if !had_failed {
                    warn!("cannot read the ranks in the block store, the page shows none: {error:#}");
                }
            }
        }
        if self.ranks_failed {
            // A new connection is needed to find out whether the store can be reached, because a timed-out query may
            // still occupy the old connection.
            self.connection = None;
            if let Err(error) = self.connect().await {
                self.on_failure(&error).await;
            }
        }
    }

    fn on_success(&mut self) {
        self.failures = 0;
        let was_up = self.state.is_up.swap(true, Relaxed);
        if self.last_logged.take().is_some() {
            info!("sending rows to the block store {} again", self.settings);
        } else if !was_up {
            info!("connected to the block store {}", self.settings);
        }
    }

    /// Logs a failure to use the block store, unless it equals the failure that was logged last, and waits before the
    /// next attempt.
    async fn on_failure(&mut self, error: &anyhow::Error) {
        self.state.is_up.store(false, Relaxed);
        self.connection = None;
        let why = format!("{error:#}");
        if self.last_logged.as_ref() != Some(&why) {
            warn!(
                "cannot use the block store {}: {why}; rows wait in the block log, retrying until it succeeds",
                self.settings
            );
            self.last_logged = Some(why);
        }
        let (first, longest) = RETRY_INTERVAL;
        let wait = (first * 2u32.saturating_pow(self.failures.min(6))).min(longest);
        self.failures = self.failures.saturating_add(1);
        sleep(wait.mul_f64(rand::random_range(0.5..=1.0))).await;
    }
}
