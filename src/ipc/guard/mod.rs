//! The guard: a small process of the same binary that relays all messages of a connection between the node and the
//! exporter.
//!
//! A node can crash if its client disconnects in the middle of a call or with active subscriptions, and a node that
//! makes a callback blocks until its client responds. The exporter can be killed, stopped or out of memory. Therefore
//! the node's client is the guard, not the exporter: the guard has the socket that is connected to the node. The guard
//! responds to each callback immediately, sends the callback as an event through a bounded queue to the exporter, and
//! relays the exporter's own calls. When the exporter exits for any reason, or the node shuts down, the guard
//! unsubscribes, waits for the responses to unfinished calls, and closes the connection.
//!
//! - `protocol` decides how each message is handled, without I/O; `allow_list` lists the calls that the guard forwards;
//!   `relay` is the loop around poll(2).
//! - `message` parses messages, `outgoing` encodes the messages that originate in the guard, and `frame` implements
//!   Cap'n Proto's framing on sockets.
//! - `events` defines the events for the exporter. `busy_poll` shortens the time for which the node waits for the
//!   response to a callback, and `trace_budget` limits the time for which the UTXO cache trace delays the node.
//! - `process` starts and sets up the guard process, on behalf of the [`supervisor`](crate::supervisor), the parent
//!   process of the exporter and of the guards. `subscription_store` passes the active subscriptions of a killed guard
//!   to its replacement.
//!
//! This file contains the code that runs in the exporter: the exporter's handle to a guard.

mod allow_list;
mod busy_poll;
mod events;
mod frame;
mod message;
mod outgoing;
mod process;
mod protocol;
mod relay;
mod subscription_store;
mod trace_budget;

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::task::JoinHandle;
use tokio_util::task::AbortOnDropHandle;
use tracing::{error, warn};

use crate::scheduling;
use crate::supervisor::{GuardedSockets, REPLACED, STOPPED};

pub(super) use message::CREATE_NEW_BLOCK;

pub use allow_list::Rejection;
pub use events::{GuardEvent, TimedEvent};
pub use outgoing::TOO_LARGE;
pub(crate) use process::start;
pub use process::{ARGUMENT, main};
pub use relay::{OpenFiles, relay};
pub(crate) use subscription_store::SubscriptionStore;

/// The exporter's handle to the guard process of one connection.
pub struct Guard {
    pid: i32,
    /// The socket for the guard's events; `None` after [`forward_events`](Self::forward_events) was called.
    events: Option<UnixStream>,
    reader: Option<JoinHandle<()>>,
    /// The task that logs the supervisor's notices about the guard. The task ends when the connection to the node is
    /// closed.
    watch: AbortOnDropHandle<()>,
    state: Rc<GuardState>,
    /// The guard's total run delay (time for which it waited for a CPU) at the last call of `new_run_delay`.
    run_delay: Duration,
}

/// Two facts about a connection that [`Guard::disconnect`] needs: the task that reads the guard's events sets the first
/// flag, and the task that reads the supervisor's notices sets the second flag.
#[derive(Default)]
struct GuardState {
    node_shuts_down: Cell<bool>,
    /// Whether the guard was killed and its replacement is not running yet.
    is_unguarded: Cell<bool>,
}

impl Guard {
    /// Creates the handle to the guard of this connection. Returns the socket for Cap'n Proto messages to and from the
    /// node, and the handle. This function must be called in a [`tokio::task::LocalSet`].
    pub fn new(guarded: GuardedSockets) -> (UnixStream, Self) {
        let GuardedSockets { stream, events, notices, guard, .. } = guarded;
        let state: Rc<GuardState> = Rc::default();
        let watch = AbortOnDropHandle::new(tokio::task::spawn_local(log_notices(notices, state.clone())));
        let events = Some(events);
        (stream, Guard { pid: guard, events, reader: None, watch, state, run_delay: Duration::ZERO })
    }

    /// The guard's run delay (time for which the guard was ready to run and waited for a CPU) since the last call of
    /// this method. `None` if the kernel does not provide this statistic.
    pub fn new_run_delay(&mut self) -> Option<Duration> {
        let total = scheduling::run_delay(&self.pid.to_string())?;
        Some(total.saturating_sub(std::mem::replace(&mut self.run_delay, total)))
    }

    /// Starts a task that reads the guard's events until the guard closes the event socket. The task passes callbacks,
    /// dropped callbacks, rejected calls and an exceeded trace budget to `sink`.
    pub fn forward_events(&mut self, mut sink: impl FnMut(TimedEvent) + 'static) {
        let Some(mut events) = self.events.take() else { return };
        let state = self.state.clone();
        self.reader = Some(tokio::task::spawn_local(async move {
            let mut buffer = Vec::with_capacity(64 * 1024);
            // The guard and the exporter are the same binary, so every event can be decoded once all its bytes have
            // arrived.
            while events.read_buf(&mut buffer).await.is_ok_and(|read| read > 0) {
                let mut decoded = 0;
                while let Some((timed, length)) = TimedEvent::decode(&buffer[decoded..]) {
                    decoded += length;
                    match timed.event {
                        GuardEvent::NodeShutsDown => state.node_shuts_down.set(true),
                        _ => sink(timed),
                    }
                }
                buffer.drain(..decoded);
            }
        }));
    }

    /// Reads the remaining events, and waits until the guard, or the replacement of a killed guard, has disconnected
    /// from the node. The caller must have closed the exporter's side of the connection. The wait ends after two
    /// seconds if a guard is running; the guard then continues to wait for the node without the exporter. Returns
    /// whether the node is shutting down.
    pub async fn disconnect(mut self) -> bool {
        const DISCONNECT_TIMEOUT: Duration = Duration::from_secs(2);
        self.forward_events(|_| ());
        let state = self.state.clone();
        let mut disconnected = tokio::task::spawn_local(async move {
            if let Some(reader) = self.reader.take() {
                let _ = reader.await;
            }
            let _ = self.watch.await;
        });
        while tokio::time::timeout(DISCONNECT_TIMEOUT, &mut disconnected).await.is_err() {
            if !state.is_unguarded.get() {
                warn!(
                    "the node has not responded to all calls; the guard waits for the responses, then disconnects and exits"
                );
                break;
            }
        }
        state.node_shuts_down.get()
    }
}

/// Logs the supervisor's notices about the guard (stopped, killed, replaced), until the connection to the node is
/// closed.
async fn log_notices(mut notices: UnixStream, state: Rc<GuardState>) {
    let name = |signal: u8| Signal::try_from(i32::from(signal)).map_or("a signal", Signal::as_str);
    while let Ok(notice) = notices.read_u8().await {
        match notice {
            REPLACED => state.is_unguarded.set(false),
            stopped if stopped & STOPPED != 0 => error!(
                "guard was stopped ({}) and has been resumed; a stopped guard blocks the node",
                name(stopped & !STOPPED)
            ),
            signal => {
                error!(
                    "guard killed by signal {signal}, which can crash the node; starting a replacement to disconnect \
                     cleanly"
                );
                state.is_unguarded.set(true);
            }
        }
    }
}
