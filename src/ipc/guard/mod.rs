//! The guard: a small process of the same binary between a node and the exporter, from the first byte to the last.
//!
//! A node can die of a client that leaves in the middle of a call or with live subscriptions, and it waits for a client
//! that hangs. So the exporter, which can be killed, stopped or out of memory, is never that client. The guard sits on the
//! node's socket, answers each callback the moment it arrives, hands it on as an event over a bounded queue, and passes
//! the exporter's own calls through. When the exporter goes away for whatever reason, or the node shuts down, it
//! unsubscribes, waits for the answers to calls under way, and closes.
//!
//! - `protocol` has the rules, without I/O; `allow_list` has the calls that are forwarded; `relay` is the poll loop;
//! - `message` is a message as what matters here, `written` those that the guard writes itself; `peer` and `frame` are sockets and framing;
//! - `events` is what the exporter is told; `burst` and `budget` keep the node's waiting short;
//! - `process` is the guard as a process. This file has the exporter's side: placing a guard and seeing it out.

mod allow_list;
mod budget;
mod burst;
mod events;
mod frame;
mod message;
mod peer;
mod process;
mod protocol;
mod relay;
mod written;

use std::cell::{Cell, RefCell};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::process::Child;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;
use tracing::{error, warn};

use crate::priority;

pub use events::{Event, Notice, SubscriptionIds};
pub use process::{ARGUMENT, main};
pub use relay::relay;
pub use written::TOO_LARGE;

/// Places for guards. A guard keeps its place until it has left its node, so that the connections to a node that does not
/// answer are few.
#[derive(Clone)]
pub struct Places(Arc<Semaphore>);

impl Places {
    const COUNT: usize = 4;

    /// All of them free.
    #[allow(clippy::new_without_default, reason = "there is no default number of places")]
    pub fn new() -> Self {
        Places(Arc::new(Semaphore::new(Self::COUNT)))
    }

    /// Waits for a free place.
    pub async fn take(&self) -> Place {
        match self.0.clone().try_acquire_owned() {
            Ok(permit) => return Place(permit),
            Err(_) => warn!("{} guards wait for answers of the node; waiting for one of them", Self::COUNT),
        }
        Place(self.0.clone().acquire_owned().await.expect("never closed"))
    }
}

/// A place for a guard.
pub struct Place(#[expect(dead_code, reason = "held")] OwnedSemaphorePermit);

/// A guard that was placed on a connection.
pub struct Guard {
    child: Child,
    /// The connection stays open when the guard is killed, and the node does not notice.
    node: OwnedFd,
    /// The notices, until [`read`](Self::read) takes them.
    events: Option<UnixStream>,
    reader: Option<JoinHandle<()>>,
    told: Rc<Told>,
    /// As it was told last.
    run_delay: Duration,
    place: Place,
}

/// What the guard told about the connection.
#[derive(Default)]
struct Told {
    /// What the node holds at present.
    subscriptions: RefCell<Vec<SubscriptionIds>>,
    node_shuts_down: Cell<bool>,
    /// The guard was killed, and there is no other yet.
    is_unguarded: Cell<bool>,
}

impl Guard {
    /// Hands the connection to a guard; returns what to speak to instead. `trace_budget` is how long the node may wait for
    /// the UTXO cache trace in ten minutes.
    pub fn place(
        place: Place,
        node: UnixStream,
        trace_budget: Option<Duration>,
    ) -> Result<(UnixStream, Self)> {
        let node: OwnedFd = node.into_std()?.into();
        let started = process::start(&node, trace_budget, None)?;
        started.exporter.set_nonblocking(true)?;
        started.events.set_nonblocking(true)?;
        let events = Some(UnixStream::from_std(started.events)?);
        let exporter = UnixStream::from_std(started.exporter)?;
        let (told, run_delay) = (Rc::default(), Duration::ZERO);
        let guard = Guard { child: started.child, node, events, reader: None, told, run_delay, place };
        Ok((exporter, guard))
    }

    /// How long the guard was ready to run and waited for a CPU, since this was called last; `None` if the kernel does not
    /// tell.
    pub fn new_run_delay(&mut self) -> Option<Duration> {
        let total = priority::run_delay(&self.child.id()?.to_string())?;
        Some(total.saturating_sub(std::mem::replace(&mut self.run_delay, total)))
    }

    /// Continues the guard if somebody has stopped it: the node waits for it.
    pub fn wake(&self) {
        let Some(pid) = self.child.id().and_then(|pid| i32::try_from(pid).ok()) else { return };
        let stat = procfs::process::Process::new(pid).and_then(|process| process.stat());
        if stat.is_ok_and(|stat| stat.state == 'T') {
            error!("the guard was stopped by a signal: do not stop it, the node waits for it; continued");
            let _ = kill(Pid::from_raw(pid), Signal::SIGCONT);
        }
    }

    /// Gives each notice to `sink`, from here to the end of the connection.
    pub fn read(&mut self, mut sink: impl FnMut(Notice) + 'static) {
        let Some(mut events) = self.events.take() else { return };
        let told = self.told.clone();
        self.reader = Some(tokio::task::spawn_local(async move {
            let mut buffer = Vec::with_capacity(64 * 1024);
            // The guard is us: what it writes is well-formed, and what does not decode ends the reading.
            while events.read_buf(&mut buffer).await.is_ok_and(|read| read > 0) {
                let mut decoded = 0;
                while let Some((notice, length)) = Notice::decode(&buffer[decoded..]) {
                    decoded += length;
                    match notice.event {
                        Event::Subscribed(ids) => told.subscriptions.borrow_mut().push(ids),
                        Event::Released(callback) => {
                            told.subscriptions.borrow_mut().retain(|it| it.callback != callback)
                        }
                        Event::NodeShutsDown => told.node_shuts_down.set(true),
                        _ => sink(notice),
                    }
                }
                buffer.drain(..decoded);
            }
        }));
    }

    /// After the exporter's side of the connection was closed: takes the last notices and waits for the guard, which takes
    /// leave of the node. If it was killed, another one does so in its place. A guard that still waits for the node after
    /// two seconds is left alone. Returns whether the node is shutting down.
    pub async fn leave(mut self) -> bool {
        const AT_MOST: Duration = Duration::from_secs(2);
        self.read(|_| ());
        let told = self.told.clone();
        let mut seen_out = tokio::task::spawn_local(self.see_out());
        while tokio::time::timeout(AT_MOST, &mut seen_out).await.is_err() {
            if !told.is_unguarded.get() {
                warn!("the node has not answered all calls; the guard waits for it, and ends by itself");
                break;
            }
        }
        told.node_shuts_down.get()
    }

    async fn see_out(mut self) {
        if let Some(reader) = self.reader.take() {
            let _ = reader.await;
        }
        while let Some(signal) = self.child.wait().await.ok().and_then(|status| status.signal()) {
            error!(
                "the guard was killed by signal {signal}: do not kill it, the node can abort; another one takes leave of \
                 the node"
            );
            self.told.is_unguarded.set(true);
            self.child = self.replacement().await;
            self.told.is_unguarded.set(false);
        }
        drop(self.place);
    }

    /// Another guard, to take leave of the node. It may take a while until there is the memory for it.
    async fn replacement(&self) -> Child {
        const RETRY_INTERVAL: Duration = Duration::from_millis(250);
        let mut said = false;
        loop {
            let subscriptions = self.told.subscriptions.borrow().clone();
            match process::start(&self.node, None, Some(&subscriptions)) {
                // Our ends of its connections are closed at once.
                Ok(started) => return started.child,
                Err(error) if !said => {
                    error!("{error:#}; trying again until it works: without a guard the node can abort");
                    said = true;
                }
                Err(_) => {}
            }
            tokio::time::sleep(RETRY_INTERVAL).await;
        }
    }
}
