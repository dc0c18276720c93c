//! The guard: a small process of the same binary between a node and the exporter, from the first byte to the last.
//!
//! A node can crash because of a client that disconnects in the middle of a call or with live subscriptions, and it waits for a client
//! that hangs. So the exporter, which can be killed, stopped or out of memory, is never that client. The guard sits on the
//! node's socket, answers each callback the moment it arrives, hands it on as an event over a bounded queue, and passes
//! the exporter's own calls through. When the exporter exits for any reason, or the node shuts down, it unsubscribes,
//! waits for the answers to calls under way, and closes.
//!
//! - `protocol` has the rules, without I/O; `allow_list` has the calls that are forwarded; `relay` is the poll loop;
//! - `message` parses messages, `outgoing` writes the guard's own; `framed_socket` and `frame` are sockets and framing;
//! - `events` are the events for the exporter; `busy_poll` and `trace_budget` keep the node's waiting short;
//! - `process` is the guard as a process, which [`supervisor`](crate::supervisor) starts; `subscription_store` is for its replacement.
//!   This file has the exporter's side.

mod allow_list;
mod busy_poll;
mod events;
mod frame;
mod framed_socket;
mod message;
mod outgoing;
mod process;
mod protocol;
mod relay;
mod subscription_store;
mod trace_budget;

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
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
pub use relay::relay;
pub(crate) use subscription_store::SubscriptionStore;

/// Permits for guards. A guard keeps its permit until it has disconnected: this limits the connections to a node that does not
/// answer.
#[derive(Clone)]
pub struct GuardPermits(Arc<Semaphore>);

impl GuardPermits {
    const COUNT: usize = 4;

    /// All permits are free.
    #[allow(clippy::new_without_default, reason = "there is no default number of permits")]
    pub fn new() -> Self {
        GuardPermits(Arc::new(Semaphore::new(Self::COUNT)))
    }

    /// Waits for a free permit.
    pub async fn acquire(&self) -> GuardPermit {
        match self.0.clone().try_acquire_owned() {
            Ok(permit) => return GuardPermit(permit),
            Err(_) => warn!(
                "{} guards are waiting for responses of the node; connecting again when one has disconnected",
                Self::COUNT
            ),
        }
        GuardPermit(self.0.clone().acquire_owned().await.expect("never closed"))
    }
}

/// A permit for one guard.
pub struct GuardPermit(#[expect(dead_code, reason = "held")] OwnedSemaphorePermit);

/// The guard on a connection.
pub struct Guard {
    pid: i32,
    /// The events, until [`forward_events`](Self::forward_events) takes them.
    events: Option<UnixStream>,
    reader: Option<JoinHandle<()>>,
    /// Ends when the connection to the node is closed.
    watch: AbortOnDropHandle<()>,
    state: Rc<GuardState>,
    /// As it was read last.
    run_delay: Duration,
    permit: GuardPermit,
}

/// The state of the connection.
#[derive(Default)]
struct GuardState {
    node_shuts_down: Cell<bool>,
    /// The guard was killed, and its replacement does not run yet.
    is_unguarded: Cell<bool>,
}

impl Guard {
    /// The guard of this connection; returns what to send requests to. Needs a [`tokio::task::LocalSet`].
    pub fn new(permit: GuardPermit, guarded: GuardedSockets) -> (UnixStream, Self) {
        let GuardedSockets { stream, events, notices, guard, .. } = guarded;
        let state: Rc<GuardState> = Rc::default();
        let watch = AbortOnDropHandle::new(tokio::task::spawn_local(log_notices(notices, state.clone())));
        let events = Some(events);
        (stream, Guard { pid: guard, events, reader: None, watch, state, run_delay: Duration::ZERO, permit })
    }

    /// How long the guard was ready to run and waited for a CPU, since the last call of this method; `None` if the kernel has no
    /// such statistic.
    pub fn new_run_delay(&mut self) -> Option<Duration> {
        let total = scheduling::run_delay(&self.pid.to_string())?;
        Some(total.saturating_sub(std::mem::replace(&mut self.run_delay, total)))
    }

    /// Passes each event to `sink`, from here to the end of the connection.
    pub fn forward_events(&mut self, mut sink: impl FnMut(TimedEvent) + 'static) {
        let Some(mut events) = self.events.take() else { return };
        let state = self.state.clone();
        self.reader = Some(tokio::task::spawn_local(async move {
            let mut buffer = Vec::with_capacity(64 * 1024);
            // The guard is the same binary: its events are well-formed. One that does not decode ends the loop.
            while events.read_buf(&mut buffer).await.is_ok_and(|read| read > 0) {
                let mut decoded = 0;
                while let Some((notice, length)) = TimedEvent::decode(&buffer[decoded..]) {
                    decoded += length;
                    match notice.event {
                        GuardEvent::Subscribed(_) | GuardEvent::Released(_) => {}
                        GuardEvent::NodeShutsDown => state.node_shuts_down.set(true),
                        _ => sink(notice),
                    }
                }
                buffer.drain(..decoded);
            }
        }));
    }

    /// After the exporter's side of the connection was closed: takes the last events and waits until the guard, or the
    /// replacement of a killed one, has disconnected from the node. A guard that still waits for the node after two seconds is
    /// left alone. Returns whether the node is shutting down.
    pub async fn disconnect(mut self) -> bool {
        const DISCONNECT_TIMEOUT: Duration = Duration::from_secs(2);
        self.forward_events(|_| ());
        let state = self.state.clone();
        let mut disconnected = tokio::task::spawn_local(async move {
            if let Some(reader) = self.reader.take() {
                let _ = reader.await;
            }
            let _ = self.watch.await;
            drop(self.permit);
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

/// Logs what the supervising process reports about the guard, until the connection to the node is closed.
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
