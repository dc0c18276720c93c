//! The guard: a small process of the same binary that relays between the node and the exporter, from the first byte of a connection to the
//! last.
//!
//! A node can crash because of a client that disconnects in the middle of a call or with live subscriptions, and it waits for a client that
//! hangs. The exporter can be killed, stopped or out of memory, and therefore is never that client. The guard has the node's socket. It
//! responds to each callback as soon as it arrives, forwards the callback as an event over a bounded queue, and relays the exporter's own
//! calls. When the exporter exits for any reason, or the node shuts down, the guard unsubscribes, waits for the responses to calls under
//! way, and closes the connection.
//!
//! - `protocol` has the rules, without I/O; `allow_list` has the calls that are forwarded; `relay` is the poll loop.
//! - `message` parses messages, `outgoing` encodes the guard's own messages, and `frame` has the sockets with their framing.
//! - `events` has the events for the exporter. `busy_poll` and `trace_budget` limit how long the node waits.
//! - `process` is the guard as a process, which the [`supervisor`](crate::supervisor) starts. `subscription_store` passes the subscriptions
//!   to a replacement guard.
//!
//! This file has the exporter's side.

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

pub use events::{GuardEvent, TimedEvent};
pub use outgoing::TOO_LARGE;
pub(crate) use process::start;
pub use process::{ARGUMENT, main};
pub use relay::{OpenFiles, relay};
pub(crate) use subscription_store::SubscriptionStore;

/// The exporter's handle to the guard of one connection.
pub struct Guard {
    pid: i32,
    /// The event socket, until [`forward_events`](Self::forward_events) takes it.
    events: Option<UnixStream>,
    reader: Option<JoinHandle<()>>,
    /// The task that logs the supervisor's notices; it finishes when the connection to the node is closed.
    watch: AbortOnDropHandle<()>,
    state: Rc<GuardState>,
    /// The guard's run delay at the last reading.
    run_delay: Duration,
}

/// Flags about a connection and its guard, which the exporter's tasks share.
#[derive(Default)]
struct GuardState {
    node_shuts_down: Cell<bool>,
    /// The guard was killed, and its replacement is not running yet.
    is_unguarded: Cell<bool>,
}

impl Guard {
    /// Creates the handle for the guard of this connection, and returns the socket for requests with it. Needs a [`tokio::task::LocalSet`].
    pub fn new(guarded: GuardedSockets) -> (UnixStream, Self) {
        let GuardedSockets { stream, events, notices, guard, .. } = guarded;
        let state: Rc<GuardState> = Rc::default();
        let watch = AbortOnDropHandle::new(tokio::task::spawn_local(log_notices(notices, state.clone())));
        let events = Some(events);
        (stream, Guard { pid: guard, events, reader: None, watch, state, run_delay: Duration::ZERO })
    }

    /// The guard's run delay since the last call of this method: the time that it was ready to run and waited for a CPU. `None` if the
    /// kernel has no such statistic.
    pub fn new_run_delay(&mut self) -> Option<Duration> {
        let total = scheduling::run_delay(&self.pid.to_string())?;
        Some(total.saturating_sub(std::mem::replace(&mut self.run_delay, total)))
    }

    /// Passes each event to `sink`, until the connection ends.
    pub fn forward_events(&mut self, mut sink: impl FnMut(TimedEvent) + 'static) {
        let Some(mut events) = self.events.take() else { return };
        let state = self.state.clone();
        self.reader = Some(tokio::task::spawn_local(async move {
            let mut buffer = Vec::with_capacity(64 * 1024);
            // The guard is the same binary, so its events are well-formed. An event that cannot be decoded ends the loop.
            while events.read_buf(&mut buffer).await.is_ok_and(|read| read > 0) {
                let mut decoded = 0;
                while let Some((timed, length)) = TimedEvent::decode(&buffer[decoded..]) {
                    decoded += length;
                    match timed.event {
                        GuardEvent::Subscribed(_) | GuardEvent::Released(_) => {}
                        GuardEvent::NodeShutsDown => state.node_shuts_down.set(true),
                        _ => sink(timed),
                    }
                }
                buffer.drain(..decoded);
            }
        }));
    }

    /// Reads the last events, and waits until the guard, or the replacement of a killed guard, has disconnected from the node. For use
    /// after the exporter's side of the connection was closed. If the guard still waits for the node after two seconds, it continues
    /// without the exporter. Returns whether the node is shutting down.
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

/// Logs the supervisor's notices about the guard, until the connection to the node is closed.
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
